"""Linear layers side by side: pytest benchmarks [--full] [--threads 1] [--seconds 2].

Nothing is asserted but that the call works: times are for reading, as ratios of the medians of one run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.conftest import RESULTS
from benchmarks.measure import Call, Contender, interleaved, memory_reader
from benchmarks.shapes import ROTATION, Shape, Weights, make_weights, make_x
from omniquant.kernels import Linear

Maker = Callable[[Shape, Weights, int], Call]


def ours(activations: str) -> Maker:
    def make(shape: Shape, weights: Weights, threads: int) -> Call:
        layer = Linear(
            weights.codes, weights.scales, weights.zero_points, bits=weights.bits, group_size=weights.group,
            activations=activations, threads=threads,
        )  # fmt: skip
        x, out = make_x(shape), np.empty((shape.m, shape.n), np.float32)
        return lambda: layer(x, out)

    return make


def openvino_in_wide_groups(shape: Shape, weights: Weights, threads: int) -> Call:
    """Its inputs rounded in the groups that were fastest here: the weights' own, or 256."""
    group = weights.group if weights.group < shape.k else 256 if shape.k % 256 == 0 else 64
    return peers.openvino(shape, weights, threads, group)


def openvino_unrounded(shape: Shape, weights: Weights, threads: int) -> Call:
    return peers.openvino(shape, weights, threads, 0)


def onnx_at(level: int) -> Maker:
    return lambda shape, weights, threads: peers.matmul_nbits(shape, weights, threads, level)


FLOATS: dict[str, Maker] = {
    "numpy f32": peers.numpy_f32,
    "oneDNN f32": peers.onednn_f32,
    "torch bf16": peers.torch_bf16,
}
KINDS: dict[str, tuple[int, bool, dict[str, Maker]]] = {
    "W4A8 in groups": (
        4,
        True,
        {
            "ours": ours("int8"),
            "onnxruntime level 4": onnx_at(4),
            "openvino u4": peers.openvino,
            "openvino u4, wide groups": openvino_in_wide_groups,
        },
    ),
    "W4A16 in groups": (
        4,
        True,
        {
            "ours": ours("int16"),
            "onnxruntime level 0": onnx_at(0),
            "openvino u4": openvino_unrounded,
            "torch int4pack": peers.torch_int4pack,
            **FLOATS,
        },
    ),
    "W8A8": (
        8,
        False,
        {
            "ours": ours("int8"),
            "onnxruntime dynamic": peers.dynamic_quantize_matmul,
            "openvino u8": peers.openvino,
            "openvino u8, wide groups": openvino_in_wide_groups,
            "torch _int_mm": peers.torch_int_mm,
            "oneDNN int8, bare": peers.onednn_int8,
        },
    ),
}


def contenders(
    makers: dict[str, Maker], shape: Shape, weights: Weights, threads: int
) -> dict[str, Contender]:
    """Each with copies of its own; those that are missing are named on standard error."""
    copies = max(1, min(24, ROTATION // (len(makers) * weights.codes.size * weights.bits // 8)))
    found = {}
    for name, make in makers.items():
        try:
            found[name] = Contender([make(shape, weights, threads) for _ in range(copies)])
        except peers.MissingError as missing:
            print(f"without {name}: {missing}", file=sys.stderr)
    return found


def speed(shape: Shape, weights: Weights, seconds: float, memory: float) -> str:
    """Of weights read, where that is what takes the time, else of multiplications."""
    if shape.m == 1:
        return f"{weights.codes.size * weights.bits / 8 / seconds / memory:.0%} of memory's speed"
    return f"{2 * shape.m * shape.n * shape.k / seconds / 1e9:.0f} GOP/s"


@pytest.mark.parametrize("kind", KINDS)
def test_linear(benchmark, kind: str, shape: Shape, threads: int, seconds: float) -> None:
    bits, grouped, makers = KINDS[kind]
    weights = make_weights(shape, bits, shape.group if grouped else shape.k)
    found = contenders(makers, shape, weights, threads)
    read, size = memory_reader(threads)
    times = interleaved({**found, "memory": Contender([read])}, seconds)
    memory, mine = size / times.pop("memory"), times.pop("ours")
    ratios = {name: time / mine for name, time in times.items()}
    benchmark.extra_info.update(ratios)
    benchmark.pedantic(found["ours"], rounds=5, warmup_rounds=1)
    RESULTS.append(
        f"{kind:16s} {shape!s:20s} {threads} thread{'s' if threads > 1 else ' '} {mine * 1e6:9.1f} us "
        f"({speed(shape, weights, mine, memory)}): "
        + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    )
