/* IEEE half precision, to and from float; bfloat16 is in math/bf16.h. */
#ifndef OQ_RUNTIME_HALF_H
#define OQ_RUNTIME_HALF_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float oq_float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t oq_bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Of a finite half: the bits moved to a float's places are too small by 2^112, subnormals included. */
static inline float oq_float_of_half(uint16_t h)
{
    const float magnitude = oq_float_of_bits((uint32_t)(h & 0x7fff) << 13) * 0x1p112f;
    return h >> 15 ? -magnitude : magnitude;
}

/* The nearest half, ties to even; beyond its range the largest one, so a cache never holds infinity. */
static inline uint16_t oq_half_of_float(float value)
{
    const uint16_t sign = (uint16_t)(oq_bits_of_float(value) >> 16 & 0x8000);
    float magnitude = fabsf(value);
    magnitude = magnitude < 65504.0f ? magnitude : 65504.0f;
    if (magnitude < 0x1p-14f) return (uint16_t)(sign | (uint16_t)rintf(magnitude * 0x1p24f));
    const uint32_t bits = oq_bits_of_float(magnitude);
    const uint32_t rounded = bits + 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | (uint16_t)((rounded - (112u << 23)) >> 13));
}

#endif
