"""A calibration step beside the same step in torch: pytest benchmarks/test_step.py [--full].

Ours is timed between the callbacks of a calibration, torch's step by step, in turns. Nothing is asserted but
that all of them run: times are for reading, as ratios of the medians of one run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import pytest

from benchmarks.blocks import BLOCKS, QUICK, SETTINGS, TOKENS
from benchmarks.conftest import RESULTS
from omniquant.bench import BenchResult, bench
from omniquant.config import QuantConfig
from omniquant.models.spec import BlockSpec

torch = pytest.importorskip("torch")

from benchmarks.torch_step import Step  # noqa: E402  (needs torch)

ROUNDS = 3


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(("scheme", "method"), SETTINGS, ids=[" ".join(setting) for setting in SETTINGS])
def test_step(
    benchmark, request: pytest.FixtureRequest, name: str, scheme: str, method: str, threads: int
) -> None:
    if name not in QUICK and not request.config.getoption("--full"):
        pytest.skip("only with --full: minutes and gigabytes")
    spec, config = BLOCKS[name], QuantConfig.parse(scheme)
    others = torch_steps(spec, config, method, threads)
    times: dict[str, list[float]] = {kind: [] for kind in others}
    ours: list[BenchResult] = []

    def torchs_turn() -> None:
        for kind, step in others.items():
            times[kind].append(timed(step))

    def our_turn() -> None:
        ours.append(bench(spec, config, method, seqlen=TOKENS, steps=3, threads=threads, epochs=1))

    benchmark.pedantic(our_turn, setup=torchs_turn, rounds=ROUNDS)
    mine = median(found.ms_per_step for found in ours)
    alone = median(found.gemm_ms_alone / found.ms_per_step for found in ours)
    linears = median(found.linears_ms_alone / found.ms_per_step for found in ours)
    ratios = {kind: 1e3 * median(values) / mine for kind, values in times.items()}
    benchmark.extra_info.update(ratios, ms_per_step=mine, products_alone=alone, linears_alone=linears)
    RESULTS.append(
        f"step {name:14s} {scheme} {method:11s} {threads} thread{'s' if threads > 1 else ' '} {mine:8.1f} ms "
        f"(products alone {alone:.0%}, linears' {linears:.0%}): "
        + ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in ratios.items())
    )


def torch_steps(
    spec: BlockSpec, config: QuantConfig, method: str, threads: int
) -> dict[str, Callable[[], float]]:
    """Torch's variants, each warmed up; one that does not work here is named on standard error."""
    torch.set_num_threads(threads)
    torch._dynamo.reset()  # of one function it compiles eight shapes, then runs the others eagerly
    makers: dict[str, Callable[[], Step]] = {
        "torch eager": lambda: Step(spec, config, method, TOKENS),
        "torch bf16 autocast": lambda: Step(spec, config, method, TOKENS, autocast=True),
        "torch.compile": lambda: Step(spec, config, method, TOKENS).compile(),
        "torch.compile bf16": lambda: Step(spec, config, method, TOKENS, autocast=True).compile(),
    }
    found: dict[str, Callable[[], float]] = {}
    for kind, make in makers.items():
        try:
            step = make()
            step(), step()
        except Exception as error:  # torch raises whatever its compiler meets
            print(f"without {kind}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        found[kind] = step
    return found


def timed(step: Callable[[], float]) -> float:
    """Return the seconds of the faster of two steps."""
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - start)
    return best
