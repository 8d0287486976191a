"""Packed codes: exact, dense, little-endian, and the layout of the core's own packer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniquant import _core, bitstream
from omniquant.bitstream import pack_rows, packed_width, unpack_rows


def codes_of(bits: int, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns)).astype(np.uint8)


@given(bits=st.integers(2, 8), rows=st.integers(0, 5), columns=st.integers(1, 67), seed=st.integers(0, 99))
def test_round_trip_is_exact(bits, rows, columns, seed):
    codes = codes_of(bits, rows, columns, seed)
    packed = pack_rows(codes, bits)
    assert packed.shape == (rows, packed_width(columns, bits))
    np.testing.assert_array_equal(unpack_rows(packed, bits, columns), codes)


def test_layout_is_a_little_endian_stream():
    packed = pack_rows(np.array([[1, 2, 3, 4, 5, 6, 7, 0, 5]], np.uint8), 3)
    stream = sum(code << (3 * i) for i, code in enumerate([1, 2, 3, 4, 5, 6, 7, 0, 5]))
    assert packed.tobytes() == stream.to_bytes(4, "little")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("columns", [1, 7, 8, 33, 172])
def test_layout_is_the_one_of_the_core(bits, columns):
    codes = codes_of(bits, 6, columns)
    np.testing.assert_array_equal(pack_rows(codes, bits), _core.pack(codes, bits))


def test_many_rows_are_packed_in_parts(monkeypatch):
    codes = codes_of(5, 40, 11)
    whole = pack_rows(codes, 5)
    monkeypatch.setattr(bitstream, "_ROWS_AT_ONCE_BYTES", 8 * 11 * 3)
    np.testing.assert_array_equal(pack_rows(codes, 5), whole)
    np.testing.assert_array_equal(unpack_rows(whole, 5, 11), codes)


def test_a_code_too_large_is_named():
    with pytest.raises(ValueError, match="code 9 at row 1 column 2 does not fit in 3 bits"):
        pack_rows(np.array([[1, 2, 3], [1, 2, 9]], np.uint8), 3)


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match="a row of 10 codes of 4 bits has 5 bytes, not 6"):
        unpack_rows(np.zeros((2, 6), np.uint8), 4, 10)
