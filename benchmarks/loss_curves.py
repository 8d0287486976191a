"""Loss against time: what each preset makes of a model, as curves and as perplexity.

    python -m benchmarks.loss_curves omniquant-tiny --output curves.png
    python -m benchmarks.loss_curves MODEL --data calibration.npy --eval evaluation.npy --seqlen 512

Every method is calibrated by every preset on the same windows, on one thread. Times are seconds of the
processor, which other work on the machine stretches least. Left: the first block, the same problem for all.
Right: all blocks, as the geometric mean of the loss over the loss they started with.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import omniquant
from omniquant.config.preset import PRESETS
from omniquant.models.model import Model
from omniquant.progress import Callback, StepEvent

METHODS = ("omniquant", "affinequant")
COLORS = {"omniquant": "#1f5fa8", "affinequant": "#b5482a"}
DASHES = {"default": (None, None), "fast": (4, 2)}

Curve = npt.NDArray[np.float64]


class Clock(Callback):
    """Note when each step of a block ended, since its first began, and its loss."""

    def __init__(self) -> None:
        self.blocks: list[list[tuple[float, float]]] = []
        self._began = 0.0

    def on_step(self, event: StepEvent) -> None:
        now = time.process_time()
        if event.step == 1:
            self.blocks.append([])
            self._began = now
        self.blocks[-1].append((now - self._began, event.loss))


@dataclass
class Run:
    """One calibration: a curve a block, [epochs, (seconds, loss)]; seconds and perplexity of the whole."""

    method: str
    preset: str
    curves: list[Curve]
    initial: list[float]
    seconds: float
    perplexity: float

    def mean_curve(self) -> tuple[Curve, Curve]:
        """Return seconds [epochs], the mean over blocks, and the geometric mean of loss over initial loss."""
        ratios = [np.log(curve[:, 1] / start) for curve, start in zip(self.curves, self.initial, strict=True)]
        return np.mean([curve[:, 0] for curve in self.curves], axis=0), np.exp(np.mean(ratios, axis=0))


def by_epoch(steps: list[tuple[float, float]], epochs: int) -> Curve:
    """Return the end and the mean loss of each epoch [epochs, 2]."""
    parts = np.array(steps).reshape(epochs, -1, 2)
    return np.stack([parts[:, -1, 0], parts[:, :, 1].mean(axis=1)], axis=1)


def measure(model: Model, windows: Any, evaluation: Any, scheme: str, method: str, preset: str) -> Run:
    """Calibrate once."""
    clock, began = Clock(), time.process_time()
    result = omniquant.calibrate(
        model, windows, scheme, method=method, preset=preset, threads=1, progress=False, callbacks=[clock]
    )
    seconds = time.process_time() - began
    epochs = len(result.blocks[0].trace)
    curves = [by_epoch(steps, epochs) for steps in clock.blocks]
    initial = [report.loss_initial for report in result.blocks]
    return Run(method, preset, curves, initial, seconds, omniquant.perplexity(result, evaluation, threads=1))


def draw(runs: list[Run], title: str, path: Path) -> None:
    """Write the figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", sharex=True)
    for run in runs:
        label = f"{run.method}, {run.preset}: {run.perplexity:.2f} in {run.seconds:.0f} s"
        style = {"color": COLORS[run.method], "dashes": DASHES[run.preset], "marker": "o", "markersize": 3}
        left.plot(run.curves[0][:, 0], run.curves[0][:, 1], label=label, **style)
        right.plot(*run.mean_curve(), label=label, **style)
    left.set(title="first block", ylabel="mean loss of an epoch", yscale="log")
    right.set(title="all blocks", ylabel="loss / loss at the start")
    for axes in (left, right):
        axes.set(xlabel="processor seconds of training a block", xscale="log")
        axes.grid(alpha=0.3, which="both")
    right.legend(title="perplexity, whole calibration", fontsize=8, title_fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss_curves", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model")
    parser.add_argument("--data", help="calibration: as omniquant quantize takes it")
    parser.add_argument("--eval", help="evaluation: as omniquant evaluate takes it; default: --data's")
    parser.add_argument("--scheme", default="W4A4")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--output", type=Path, default=Path("curves.png"))
    arguments = parser.parse_args()
    model = omniquant.load_model(arguments.model)
    windows = omniquant.calibration_windows(arguments.data, model, arguments.samples, arguments.seqlen)
    evaluation = omniquant.evaluation_windows(arguments.eval or arguments.data, model, arguments.seqlen)
    runs = []
    for method in arguments.methods:
        for preset in PRESETS:
            runs.append(measure(model, windows, evaluation, arguments.scheme, method, preset))
            run = runs[-1]
            print(
                f"{method:12s} {preset:8s} {run.seconds:8.1f} s  perplexity {run.perplexity:.3f}", flush=True
            )
    shape = f"{windows.shape[0]} windows of {windows.shape[1]} tokens"
    draw(runs, f"{model.name}, {arguments.scheme}, {shape}", arguments.output)


if __name__ == "__main__":
    main()
