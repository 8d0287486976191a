"""The products of a training step beside oneDNN's of the same operands: pytest benchmarks/test_products.py.

Ours of integers end in floats, scales and zero points applied; oneDNN's stop at the sums. Operands lie in the
cache where they fit. Nothing is asserted but that both run: times are for reading, as ratios of the medians
of calls in turn.
"""

from __future__ import annotations

from statistics import median

import pytest

from benchmarks.conftest import RESULTS
from benchmarks.shapes import LAYERS
from omniquant import _core
from omniquant.products import Product

TOKENS = 512
KINDS = ("float32", "integer", "bfloat16")
HAVE = KINDS[1 : KINDS.index(_core.runtime_info()["products"]) + 1]  # of floats both are the same


@pytest.mark.parametrize("kind", HAVE)
@pytest.mark.parametrize(("k", "n"), LAYERS, ids=lambda size: str(size))
def test_products(benchmark, kind: str, k: int, n: int, threads: int, seconds: float) -> None:
    product = Product(kind, TOKENS, n, k, transpose_b=True)
    rounds = max(3, round(1e3 * seconds / (2 * product.milliseconds(1, threads))))
    theirs: list[float] = []

    def their_turn() -> None:
        theirs.append(product.milliseconds(1, threads))

    ours: list[float] = []

    def our_turn() -> None:
        ours.append(product.milliseconds(1, threads, own=True))

    benchmark.pedantic(our_turn, setup=their_turn, rounds=rounds)
    rate = product.operations / median(ours) / 1e6
    ratio = median(theirs) / median(ours)
    benchmark.extra_info.update(ratio=ratio, rate=rate)
    RESULTS.append(
        f"{kind:8s} {k:5d} x {n:5d}, {TOKENS} rows, {threads} thread{'s' if threads > 1 else ' '} "
        f"{rate:6.0f} GOP/s: oneDNN {ratio:.2f}"
    )
