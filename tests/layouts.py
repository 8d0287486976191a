"""Row 6 of the reliability figures: the same numbers in every layout NumPy has, and what must be refused."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


def _unaligned(array: Array) -> Array:
    raw = np.zeros(array.nbytes + 1, np.uint8)
    result: Array = raw[1:].view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


def _strided(array: Array) -> Array:
    wide = np.zeros(tuple(2 * n + 1 for n in array.shape), array.dtype)
    result: Array = wide[tuple(slice(1, 2 * n + 1, 2) for n in array.shape)]
    result[...] = array
    return result


def _reversed(array: Array) -> Array:
    everything = tuple(slice(None, None, -1) for _ in array.shape)
    result: Array = array[everything].copy()[everything]
    return result


def _read_only(array: Array) -> Array:
    result = array.copy()
    result.flags.writeable = False
    return result


def layouts(array: Array) -> Iterator[tuple[str, Array]]:
    """Yield (name, array) with the values of `array` in every layout."""
    yield "strided", _strided(array)
    yield "negative strides", _reversed(array)
    yield "unaligned", _unaligned(array)
    yield "byte-swapped", array.astype(array.dtype.newbyteorder())
    yield "Fortran", np.asfortranarray(array)
    yield "read-only", _read_only(array)


def refused(array: Array) -> Iterator[tuple[str, Array]]:
    """Yield (name, array) of dtypes that no function of numbers takes."""
    yield "object", array.astype(object)
    yield "complex", array.astype(np.complex64)
    yield "string", array.astype(str)
    yield "bytes", array.astype(bytes)
    yield "datetime", array.astype("datetime64[s]")
    yield "structured", np.zeros(array.shape, [("x", np.float32)])
