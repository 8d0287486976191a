/* The codes of a whole block by error feedback (GPTQ), as the last step after any learned transform. */
#ifndef OQ_CALIBRATE_ERROR_FEEDBACK_H
#define OQ_CALIBRATE_ERROR_FEEDBACK_H

#include "calibrate/calibrate_block.h"
#include "calibrate/fold.h"

/* folded holds the grids and codes of theta; its codes are replaced by those of error feedback on the inputs the
 * block has on X_q, unless the block loses more with them than with its weights rounded to nearest. */
oq_code oq_error_feedback(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights,
                          const oq_options *options, const oq_calibration_data *data, const oq_folded *folded,
                          oq_calibration_result *result);

#endif
