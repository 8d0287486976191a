"""Row 8 of the reliability figures: bit streams, exhaustively on byte values and tail lengths."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

import omniquant

U8 = npt.NDArray[np.uint8]
all_bits = pytest.mark.parametrize("bits", range(1, 9))


def stream(codes: U8, bits: int) -> bytes:
    """One row as one long integer: code i at bit i * bits."""
    number = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    return number.to_bytes((len(codes) * bits + 7) // 8, "little")


@all_bits
def test_every_code_at_every_place_of_every_tail(bits: int) -> None:
    for width in range(1, 18):
        for others in (0, 2**bits - 1):
            rows = np.full((width, 2**bits, width), others, np.uint8)
            for place in range(width):
                rows[place, :, place] = np.arange(2**bits)
            packed = omniquant.pack(rows, bits)
            assert packed.shape == (width, 2**bits, (width * bits + 7) // 8)
            np.testing.assert_array_equal(omniquant.unpack(packed, bits, width), rows)
            for place in range(width):
                for code in (0, 1, 2**bits - 1):
                    assert packed[place, code].tobytes() == stream(rows[place, code], bits)


@all_bits
@pytest.mark.parametrize("width", [*range(70), 255, 256, 257, 1000])
def test_random_rows_are_one_long_integer(bits: int, width: int) -> None:
    codes = np.random.default_rng(width).integers(0, 2**bits, (5, width)).astype(np.uint8)
    packed = omniquant.pack(codes, bits)
    assert [row.tobytes() for row in packed] == [stream(row, bits) for row in codes]
    np.testing.assert_array_equal(omniquant.unpack(packed, bits, width), codes)


@all_bits
def test_every_pair_of_bytes_is_read(bits: int) -> None:
    pairs = np.stack(np.meshgrid(np.arange(256), np.arange(256)), axis=-1).reshape(-1, 2).astype(np.uint8)
    width = 16 // bits
    codes = omniquant.unpack(pairs, bits, width)
    numbers = pairs[:, 0] + 256 * pairs[:, 1].astype(np.int64)
    expected = (numbers[:, None] >> (bits * np.arange(width))) & (2**bits - 1)
    np.testing.assert_array_equal(codes, expected)
    used = numbers & ((1 << (width * bits)) - 1)
    np.testing.assert_array_equal(omniquant.pack(codes, bits), np.stack([used % 256, used // 256], axis=1))


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_code_that_does_not_fit_is_named(bits: int) -> None:
    codes = np.zeros((3, 4), np.uint8)
    codes[2, 1] = 2**bits
    with pytest.raises(ValueError, match=f"code {2**bits} at row 2 column 1 does not fit in {bits} bits"):
        omniquant.pack(codes, bits)


@pytest.mark.parametrize(("bits", "width"), [(0, 4), (9, 4), (-1, 4), (4, -1), (8, 2**62)])
def test_senseless_sizes_are_refused(bits: int, width: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        omniquant.unpack(np.zeros((1, 2), np.uint8), bits, width)
    if width == 4:
        with pytest.raises(ValueError, match="bits"):
            omniquant.pack(np.zeros((1, 4), np.uint8), bits)


def test_a_packed_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 5 codes of 3 bits has 2 bytes, not 3"):
        omniquant.unpack(np.zeros((1, 3), np.uint8), 3, 5)


def test_no_rows_and_no_columns() -> None:
    assert omniquant.pack(np.zeros((0, 5), np.uint8), 3).shape == (0, 2)
    assert omniquant.pack(np.zeros((5, 0), np.uint8), 3).shape == (5, 0)
    assert omniquant.unpack(np.zeros((5, 0), np.uint8), 3, 0).shape == (5, 0)
