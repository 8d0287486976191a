/* Codes as a dense little-endian bit stream a row: code i of b bits fills bits i b .. i b + b - 1 of its row,
 * bit 0 first; rows are padded with zeros to whole bytes. */
#ifndef OQ_QUANT_PACK_H
#define OQ_QUANT_PACK_H

#include "base/context.h"
#include "base/real.h"

/* Bytes of a row; -1 when width or bits (1..8) make no sense. */
int64_t oq_packed_width(int64_t width, int bits);

/* packed [rows, oq_packed_width]; a code of more than `bits` bits is an error. */
oq_code oq_pack(oq_context *context, const uint8_t *codes, int64_t rows, int64_t width, int bits, uint8_t *packed);
/* codes [rows, width]; padding bits are not read. */
oq_code oq_unpack(oq_context *context, const uint8_t *packed, int64_t rows, int64_t width, int bits,
                  uint8_t *codes);

#endif
