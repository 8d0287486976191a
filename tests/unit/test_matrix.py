"""Embedding and head keep the precision they came in: every float comes back, in the smallest kind."""

from __future__ import annotations

import numpy as np
import pytest

from omniquant.errors import CheckpointError
from omniquant.runtime.matrix import BFLOAT, BYTES, FLOAT, HALF, NIBBLES, Matrix, from_tensors

RNG = np.random.default_rng(5)
FLOATS = RNG.standard_normal((9, 64)).astype(np.float32)
CODES = RNG.integers(-127, 128, (9, 2, 32))
CODES[:, :, 7] = 127
SMALL_CODES = RNG.integers(-7, 8, (9, 2, 32))
SMALL_CODES[:, :, 20] = -8  # of either sign, as steps are
STEPS = RNG.uniform(0.001, 0.1, (9, 2, 1)).astype(np.float16)
STEPS[3] = 0
SIGNS = RNG.choice([-1, 1], STEPS.shape)
NAMES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(np.int8): "I8",
    np.dtype("u2"): "U16",
    np.dtype("u1"): "U8",
}
KINDS = {
    FLOAT: FLOATS,
    HALF: FLOATS.astype(np.float16).astype(np.float32),
    # Beyond the range of halves, which would hold the few bits too.
    BFLOAT: ((FLOATS * 1e6).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),
    BYTES: (CODES * STEPS.astype(np.float32)).astype(np.float32).reshape(9, 64),
    NIBBLES: (SMALL_CODES * SIGNS * STEPS.astype(np.float32)).astype(np.float32).reshape(9, 64),
}


def read(tensors, shape=(9, 64)):
    listed = {name: (NAMES[array.dtype], array.shape) for name, array in tensors.items()}
    return from_tensors("head", shape, listed, tensors.__getitem__, "outer.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_comes_back(kind):
    values = KINDS[kind]
    matrix = Matrix.exact(values)
    assert matrix.kind == kind
    again = read(matrix.to_tensors("head"))
    assert again.kind == kind
    for stored in (matrix, again):
        np.testing.assert_array_equal(stored.rows(), values)
        np.testing.assert_array_equal(stored.rows(np.array([4, 4, 0])), values[[4, 4, 0]])
        assert stored.rows().dtype == np.float32
    assert matrix.nbytes == sum(array.nbytes for array in matrix.to_tensors("head").values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 4, 9])
def test_a_few_rows_at_a_time_make_the_same(kind, rows, monkeypatch):
    whole, asked = Matrix.exact(KINDS[kind]), []
    monkeypatch.setattr("omniquant.runtime.matrix._ROWS", rows)

    def load(part):
        asked.append(part.stop - part.start)
        return KINDS[kind][part]

    parts = Matrix.exact_rows(load, 9)
    assert max(asked) == rows
    assert parts.kind == whole.kind
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.rows(), KINDS[kind])


def test_the_last_rows_decide_too(monkeypatch):
    monkeypatch.setattr("omniquant.runtime.matrix._ROWS", 2)
    values = np.zeros((9, 64), np.float32)
    assert Matrix.exact(values).kind == NIBBLES
    values[8, 1] = 1 / 3
    assert Matrix.exact(values).kind == FLOAT
    np.testing.assert_array_equal(Matrix.exact(values).rows(), values)


@pytest.mark.parametrize("kind", [BYTES, NIBBLES])
def test_integers_are_taken_only_where_nothing_is_lost(kind):
    nearly = KINDS[kind].copy()
    nearly[8, 63] = np.nextafter(nearly[8, 63], np.float32(np.inf))
    assert Matrix.exact(nearly).kind == FLOAT
    assert Matrix.exact(KINDS[kind][:, :48].copy()).kind == FLOAT  # no whole groups
    assert Matrix.exact(np.zeros((2, 64), np.float32)).kind == NIBBLES


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (BYTES, lambda t: t.pop("head.scale"), "head.scale is missing"),
        (
            BYTES,
            lambda t: t.update({"head.scale": t["head.scale"][:, :1]}),
            r"F16 \[9, 1\], expected F16 \[9, 2\]",
        ),
        (BYTES, lambda t: t.update({"head.codes": t["head.codes"].astype(np.float32)}), "head.codes is F32"),
        (BYTES, lambda t: t["head.scale"].__setitem__((2, 1), np.nan), "head.scale holds NaN"),
        (NIBBLES, lambda t: t.pop("head.scale"), "head.scale is missing"),
        (
            NIBBLES,
            lambda t: t.update({"head.nibbles": t["head.nibbles"][:, 1:].copy()}),
            r"U8 \[9, 31\], expected U8 \[9, 32\]",
        ),
        (NIBBLES, lambda t: t["head.scale"].__setitem__((2, 1), np.nan), "head.scale holds NaN"),
        (HALF, lambda t: t["head.weight"].__setitem__((2, 1), np.inf), "head.weight holds NaN or infinity"),
        (FLOAT, lambda t: t["head.weight"].__setitem__((2, 1), np.nan), "head.weight holds NaN"),
        (BFLOAT, lambda t: t["head.bfloat16"].__setitem__((2, 1), 0x7F80), "head.bfloat16 holds NaN"),
        (FLOAT, dict.clear, "head.weight is missing"),
    ],
)
def test_files_that_lie_are_refused(kind, change, message):
    tensors = {name: array.copy() for name, array in Matrix.exact(KINDS[kind]).to_tensors("head").items()}
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        read(tensors)


def test_nibbles_of_broken_groups_are_refused():
    tensors = {"head.nibbles": np.zeros((9, 24), np.uint8), "head.scale": np.zeros((9, 2), np.float16)}
    with pytest.raises(CheckpointError, match=r"head\.weight is missing"):
        read(tensors, (9, 48))
