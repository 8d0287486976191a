#ifndef OQ_MATH_LAY_OUT_H
#define OQ_MATH_LAY_OUT_H

#include <stdbool.h>

#include "base/context.h"
#include "math/right.h"

/* B by rows or by columns becomes what products take here, in the arena where that is another layout. Often: several
 * products take it. */
oq_code oq_lay_out(oq_context *context, oq_right *b, bool often);

#endif
