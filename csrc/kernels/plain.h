/* What kernels without instructions of their own share: unpacking, and what is done once a group. */
#ifndef OQ_KERNELS_PLAIN_H
#define OQ_KERNELS_PLAIN_H

#include "kernels/kernel.h"

/* quads [unit / 4][16 outputs, 4 inputs] of a unit of a tile. */
void oq_unpack_unit(const oq_layout *layout, const uint8_t *unit, uint8_t (*quads)[64]);

/* total [rows, lanes]: sums of products a' w of a run, made sums of (a - z_a)(w - z_w), and then added to t->sums
 * times their scales. */
void oq_finish_run(const oq_tiles *t, const oq_run *run, int rows, int lanes, int32_t (*total)[OQ_PANEL]);

#endif
