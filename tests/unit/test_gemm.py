"""Products: oneDNN's, AVX2's, the reference's against NumPy in double; the same bits at any thread count."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from ways import WAYS

from omniquant import _core

Floats = npt.NDArray[np.floating]
TRANSPOSES = list(itertools.product([False, True], repeat=2))


def operands(rng: np.random.Generator, m: int, n: int, k: int, ta: bool, tb: bool) -> tuple[Floats, Floats]:
    a = rng.standard_normal((k, m) if ta else (m, k)).astype(np.float32)
    b = rng.standard_normal((n, k) if tb else (k, n)).astype(np.float32)
    return a, b


def rounded(x: Floats) -> Floats:
    """To bfloat16, ties to even: the upper half of a float's bits."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def check(a: Floats, b: Floats, ta: bool, tb: bool, by: str) -> None:
    """|error| <= 2 k eps |a| |b|: the bound of any order of summation."""
    if by == "bfloat16":
        a, b = rounded(a), rounded(b)
    left, right = (a.T if ta else a).astype(np.float64), (b.T if tb else b).astype(np.float64)
    bound = 2 * left.shape[1] * np.finfo(np.float32).eps * (np.abs(left) @ np.abs(right)) + 1e-30
    result = _core.matmul(a, b, transpose_a=ta, transpose_b=tb, by=by)
    assert result.shape == bound.shape
    assert (np.abs(result - left @ right) <= bound).all()


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize(("ta", "tb"), TRANSPOSES)
def test_odd_shapes(ta: bool, tb: bool, by: str) -> None:
    rng = np.random.default_rng(1)
    for m, n, k in rng.integers(1, 68, (150, 3)).tolist():
        check(*operands(rng, m, n, k, ta, tb), ta, tb, by)


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize(("ta", "tb"), TRANSPOSES)
@pytest.mark.parametrize(
    "shape", [(300, 70, 130), (70, 300, 130), (257, 1030, 65), (1, 1500, 900), (1500, 1, 900), (65, 129, 257)]
)
def test_shapes_cut_into_panels(shape: tuple[int, int, int], ta: bool, tb: bool, by: str) -> None:
    check(*operands(np.random.default_rng(2), *shape, ta, tb), ta, tb, by)


@pytest.mark.parametrize(("ta", "tb"), TRANSPOSES)
@pytest.mark.parametrize(
    "shape",
    [
        (512, 576, 192),
        (512, 192, 576),
        (576, 1536, 256),
        (2048, 64, 172),
        (64, 64, 64),
        (1, 576, 1536),
        (100, 128, 100),
        (100, 100, 128),  # the last panel has four rows
    ],
)
@pytest.mark.parametrize("by", sorted({"best", "bfloat16"}.intersection(WAYS)))
def test_bits_do_not_depend_on_threads(shape: tuple[int, int, int], ta: bool, tb: bool, by: str) -> None:
    a, b = operands(np.random.default_rng(3), *shape, ta, tb)
    one = _core.matmul(a, b, transpose_a=ta, transpose_b=tb, threads=1, by=by)
    for threads in (2, 3, 8, 0):
        many = _core.matmul(a, b, transpose_a=ta, transpose_b=tb, threads=threads, by=by)
        np.testing.assert_array_equal(one, many)


def test_bits_do_not_depend_on_the_default_number_of_threads() -> None:
    """OneDNN asks OpenMP how many threads there are; it must be told the same number each time."""
    program = (
        "import hashlib, numpy as np; from omniquant import _core; r = np.random.default_rng(4);"
        "a, b = r.standard_normal((2, 640, 640)).astype('f4');"
        "print(hashlib.sha256(_core.matmul(a, b, transpose_b=True, threads=1).tobytes()).hexdigest(),"
        "_core.runtime_info()['threads'])"
    )
    command = [sys.executable, "-c", program]
    answers = [
        subprocess.check_output(command, env=os.environ | {"OMP_NUM_THREADS": n}, text=True).split()
        for n in ("1", "2", "4")
    ]
    digests, threads = zip(*answers, strict=True)
    assert len(set(digests)) == 1
    if _core.runtime_info()["openmp"]:
        assert threads == ("1", "2", "4")


def test_double_build_is_double() -> None:
    double = pytest.importorskip("omniquant._core_double", reason="built only with OMNIQUANT_DOUBLE=1")
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((70, 150)), rng.standard_normal((150, 90))
    result = double.matmul(a, b)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, a @ b, rtol=0, atol=1e-12)
    assert double.runtime_info()["real"] == "float64"


def test_many_python_threads_at_once() -> None:
    rng = np.random.default_rng(6)
    pairs = [operands(rng, 96, 80, 300, False, True) for _ in range(8)]

    def product(pair: tuple[Floats, Floats], threads: int) -> Floats:
        return _core.matmul(*pair, transpose_b=True, threads=threads)

    expected = [product(pair, 1) for pair in pairs]
    with ThreadPoolExecutor(8) as pool:
        for i, result in enumerate(pool.map(lambda i: product(pairs[i % 8], i % 3), range(400))):
            np.testing.assert_array_equal(result, expected[i % 8])
