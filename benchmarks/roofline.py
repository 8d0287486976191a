"""Where a calibration step lies under the machine's roof, and what more threads make of it.

    python -m benchmarks.roofline --output roofline.png [--blocks SmolLM2-135M 1.1B] [--threads 1 2]

The roof is measured: large products of each kind, and reading memory, on the most threads. A step counts the
operations and the operands of its products (omniquant.products) alone; hollow marks are those products by
themselves, so that the way down to the filled mark is what the rest of a step costs. Right: a step's speed
over that on the fewest threads. Prints one JSON object a measurement.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.blocks import BLOCKS, SETTINGS, TOKENS
from benchmarks.measure import memory_reader
from omniquant.bench import bench
from omniquant.config import CalibrationOptions, QuantConfig
from omniquant.errors import UnsupportedError
from omniquant.products import Product, step_products
from omniquant.threads import resolve_threads

PEAK_SIZE = 2048
BYTES = {"float32": 4, "bfloat16": 2, "integer": 1}  # of an operand; results are 4 bytes
COLORS = {"W3A16 omniquant": "#3c7d3c", "W4A4 omniquant": "#1f5fa8", "W4A4 affinequant": "#b5482a"}
# Both methods have the same products: their marks would cover each other.
ASIDE = {"W3A16 omniquant": 1.0, "W4A4 omniquant": 1.0, "W4A4 affinequant": 1.06}
MARKS = dict(zip(BLOCKS, "osD", strict=True))


def operations(products: Iterable[Product]) -> float:
    """Return multiplications and additions."""
    return sum(each.operations for each in products)


def traffic(products: Iterable[Product]) -> float:
    """Return the bytes of operands and results, each once."""
    return sum(p.count * (BYTES[p.kind] * p.k * (p.m + p.n) + 4.0 * p.m * p.n) for p in products)


@dataclass(frozen=True)
class Point:
    """A step of one block by one setting on so many threads."""

    block: str
    setting: str
    threads: int
    milliseconds: float
    products_alone: float  # milliseconds
    gflop: float
    intensity: float  # operations a byte

    def to_dict(self) -> dict[str, Any]:
        """Return what is printed: beside the times, the share a step's products would take by themselves."""
        return {
            "block": self.block,
            "setting": self.setting,
            "threads": self.threads,
            "ms_per_step": round(self.milliseconds, 2),
            "gemm_ms_alone": round(self.products_alone, 2),
            "products_share": round(self.products_alone / self.milliseconds, 3),
            "gflops": round(1e3 * self.gflop / self.milliseconds, 1),
            "gflops_alone": round(1e3 * self.gflop / self.products_alone, 1),
        }


def measure(block: str, scheme: str, method: str, threads: int, steps: int) -> Point:
    """Time a few steps, and their products alone."""
    spec, config = BLOCKS[block], QuantConfig.parse(scheme)
    found = bench(spec, config, method, seqlen=TOKENS, steps=steps, threads=threads, epochs=1)
    options = CalibrationOptions.for_method(
        method, config, products=found.precision, gradients=found.gradients
    )
    products = step_products(spec, config, options, TOKENS)
    work = operations(products)
    return Point(
        block, f"{scheme} {method}", threads, found.ms_per_step, found.gemm_ms_alone, work / 1e9,
        work / traffic(products),
    )  # fmt: skip


def peaks(threads: int) -> dict[str, float]:
    """Return the GFLOP/s of a large product of each kind the processor has."""
    found = {}
    for kind in BYTES:
        product = Product(kind, PEAK_SIZE, PEAK_SIZE, PEAK_SIZE, transpose_b=True)
        try:
            milliseconds = min(product.milliseconds(1, threads) for _ in range(5))
        except UnsupportedError:
            continue
        found[kind] = product.operations / milliseconds / 1e6
    return found


def bandwidth(threads: int) -> float:
    """Return the GB/s that are read from memory."""
    read, size = memory_reader(threads)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        read()
        best = max(best, size / (time.perf_counter() - start) / 1e9)
    return best


def draw(points: list[Point], roof: dict[str, float], stream: float, path: Path) -> None:
    """Write the figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    most = max(point.threads for point in points)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.8), layout="constrained", width_ratios=(3, 2))
    low, high = min(p.intensity for p in points) / 8, max(p.intensity for p in points) * 4
    for kind, peak in roof.items():
        ridge = peak / stream
        left.plot([low, ridge, high], [low * stream, peak, peak], color="0.5", linewidth=1)
        left.annotate(f"{kind} {peak:.0f}", (high, peak), ha="right", va="bottom", fontsize=8, color="0.3")
    left.annotate(f"memory {stream:.0f} GB/s", (low, low * stream), fontsize=8, color="0.3", va="top")
    for point in (p for p in points if p.threads == most):
        heights = [1e3 * point.gflop / point.milliseconds, 1e3 * point.gflop / point.products_alone]
        color, mark = COLORS[point.setting], MARKS[point.block]
        at = point.intensity * ASIDE[point.setting]
        left.plot([at, at], heights, color=color, linewidth=0.8)
        left.plot(at, heights[1], mark, color=color, markerfacecolor="white")
        left.plot(at, heights[0], mark, color=color, label=f"{point.block}, {point.setting}")
    left.set(xscale="log", yscale="log", xlabel="operations a byte of the products' operands")
    left.set(ylabel="GFLOP/s", title=f"a step of {TOKENS} tokens, {most} threads; hollow: products alone")
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    _draw_scaling(right, points, most)
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=150)


def _draw_scaling(axes: Any, points: list[Point], most: int) -> None:
    fewest = min(point.threads for point in points)
    axes.plot([fewest, most], [1, most / fewest], color="0.5", linewidth=1)
    for key in dict.fromkeys((point.block, point.setting) for point in points):
        of_key = sorted((p for p in points if (p.block, p.setting) == key), key=lambda p: p.threads)
        speed = [of_key[0].milliseconds / point.milliseconds for point in of_key]
        axes.plot([p.threads for p in of_key], speed, marker=MARKS[key[0]], color=COLORS[key[1]])
    axes.set(xlabel="threads", ylabel="speed over the fewest threads", title="scaling")
    axes.set_xticks(sorted({point.threads for point in points}))


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument("--threads", nargs="+", type=int, help="default: 1, 2, 4, ... and all")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("roofline.png"))
    arguments = parser.parse_args()
    every = resolve_threads(None)
    powers = {1 << power for power in range(every.bit_length())}
    threads = sorted(set(arguments.threads or powers | {every}))
    roof, stream = peaks(threads[-1]), bandwidth(threads[-1])
    print(
        json.dumps({"threads": threads[-1], "gflops": roof, "memory_gb_per_s": round(stream, 1)}), flush=True
    )
    points = []
    for block in arguments.blocks:
        for scheme, method in SETTINGS:
            for count in threads:
                points.append(measure(block, scheme, method, count, arguments.steps))
                print(json.dumps(points[-1].to_dict()), flush=True)
    draw(points, roof, stream, arguments.output)


if __name__ == "__main__":
    main()
