"""Row 3 of the reliability figures: the k-th allocation of the core fails, for every k, once and for good."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from ways import AVAILABLE

from omniquant import _core

Function = Callable[[], npt.NDArray[np.floating]]

RNG = np.random.default_rng(0)
A = RNG.standard_normal((300, 80)).astype(np.float32)
BYTES = RNG.integers(0, 256, (130, 70), np.uint8)
SQUARE = RNG.standard_normal((120, 120)) + 60 * np.eye(120)

CALLS: dict[str, Function] = {
    "matmul": lambda: _core.matmul(A, A, transpose_b=True, threads=2),
    "matmul reference": lambda: _core.matmul(A, A, transpose_b=True, by="reference"),
    "inverse": lambda: _core.inverse(SQUARE),
    "inverse pivoting": lambda: _core.inverse(SQUARE, pivot=True, threads=2),
}
if "integer" in AVAILABLE:
    CALLS["byte product"] = lambda: _core.byte_product(BYTES, BYTES, threads=2)
    CALLS["byte product by rows"] = lambda: _core.byte_product(BYTES, BYTES.T, by_rows=True, often=True)


def allocations_of(call: Function) -> int:
    _core._fail_allocation(0, False)
    call()
    return _core._fail_allocation(0, False)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_allocation_fails_once(call: Function, persistent: bool) -> None:
    expected = call()
    inputs = A.tobytes(), SQUARE.tobytes()
    count = allocations_of(call)
    assert count >= 1
    for k in range(1, count + 1):
        _core._fail_allocation(k, persistent)
        try:
            with pytest.raises(MemoryError, match="out of memory"):
                call()
        finally:
            _core._fail_allocation(0, False)
        np.testing.assert_array_equal(call(), expected, err_msg=f"after allocation {k} of {count} failed")
    assert (A.tobytes(), SQUARE.tobytes()) == inputs


def test_hook_switched_off_fails_nothing() -> None:
    assert allocations_of(CALLS["inverse"]) == allocations_of(CALLS["inverse"])
