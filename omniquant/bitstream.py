"""Integer codes as a dense little-endian bit stream a row: b bits a code, rows padded to whole bytes.

The same layout as compressed-tensors' and GPTQ's streams along the inputs. ``_core.pack`` knows 2, 3, 4 and 8
bits; a state also holds 5, 6 and 7, so this is the one place where states are packed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

_ROWS_AT_ONCE_BYTES = 1 << 24  # the bits of that many bytes are spread out at a time


def packed_width(columns: int, bits: int) -> int:
    """Return the bytes of a packed row of `columns` codes."""
    return (columns * bits + 7) // 8


def _row_chunks(rows: int, columns: int) -> range:
    return range(0, rows, max(1, _ROWS_AT_ONCE_BYTES // max(1, 8 * columns)))


def pack_rows(codes: U8, bits: int) -> U8:
    """Pack codes [rows, columns] below 2^bits into bytes [rows, ceil(columns * bits / 8)].

    Raises
    ------
    ValueError
        If a code does not fit in `bits` bits; the message names its row and column.
    """
    rows, columns = codes.shape
    if codes.size and int(codes.max()) >> bits:
        row, column = np.argwhere(codes >> bits)[0]
        raise ValueError(
            f"code {codes[row, column]} at row {row} column {column} does not fit in {bits} bits"
        )
    packed = np.empty((rows, packed_width(columns, bits)), np.uint8)
    chunks = _row_chunks(rows, columns)
    for start in chunks:
        part = codes[start : start + chunks.step]
        spread = np.unpackbits(part[:, :, None], axis=2, count=bits, bitorder="little")
        packed[start : start + chunks.step] = np.packbits(
            spread.reshape(len(part), columns * bits), axis=1, bitorder="little"
        )
    return packed


def unpack_rows(packed: U8, bits: int, columns: int) -> U8:
    """Unpack what :func:`pack_rows` packed into codes uint8 [rows, columns]."""
    rows = packed.shape[0]
    if packed.shape[1] != packed_width(columns, bits):
        raise ValueError(
            f"a row of {columns} codes of {bits} bits has {packed_width(columns, bits)} bytes, "
            f"not {packed.shape[1]}"
        )
    codes = np.empty((rows, columns), np.uint8)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    chunks = _row_chunks(rows, columns)
    for start in chunks:
        part = packed[start : start + chunks.step]
        spread = np.unpackbits(part, axis=1, count=columns * bits, bitorder="little")
        codes[start : start + chunks.step] = spread.reshape(len(part), columns, bits) @ weights
    return codes
