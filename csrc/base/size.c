#include "base/size.h"

#include <stdint.h>

bool oq_size_mul(size_t a, size_t b, size_t *result)
{
    if (b != 0 && a > SIZE_MAX / b) return false;
    *result = a * b;
    return true;
}

bool oq_size_add(size_t a, size_t b, size_t *result)
{
    if (a > SIZE_MAX - b) return false;
    *result = a + b;
    return true;
}

bool oq_size_align(size_t n, size_t alignment, size_t *result)
{
    size_t padded;
    if (!oq_size_add(n, alignment - 1, &padded)) return false;
    *result = padded & ~(alignment - 1);
    return true;
}
