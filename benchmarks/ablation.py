"""What each piece of `--method auto` is worth: the recipe, and the recipe without one piece at a time.

    python -m benchmarks.ablation omniquant-tiny --scheme W3A16 W4A4KV16
    python -m benchmarks.ablation MODEL --data calibration.npy --eval evaluation.npy --seqlen 512

Every row is calibrated on the same windows with the same seeds; a row a piece, in Markdown, printed as soon
as it is known. All of it fake-quantized; seconds are the processor's, of one calibration.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import omniquant
from omniquant.config import CalibrationOptions, QuantConfig
from omniquant.describe import bits_per_weight, describe_maps
from omniquant.models.model import Model

WHOLE = "the whole recipe"
# What is done in a piece's place. A recipe that does so anyway has not got the piece.
PIECES: dict[str, dict[str, Any]] = {
    "learned rounding": {"rounding": "nearest"},
    "learned rounding (GPTQ in its place)": {"rounding": "gptq"},
    "searched start": {"start": "paper"},
    "clipping (LWC)": {"lwc": False, "start": "paper"},
    "maps that fold": {
        "norm_map": "none",
        "vo_map": "none",
        "qk_map": "none",
        "up_down": False,
        "start": "paper",
    },
    "rotations": {"rotation": "none"},
    "online rotations (folded in their place)": {"rotation": "folded"},
    "Kronecker maps": {"input_map": "none"},
    "clipping of activations": {"lac": False},
    "relative loss": {"loss": "mse"},
    "best iterate": {"best_iterate": False},
    "cosine schedule": {"schedule": "constant"},
}
# Pieces that are two options of one choice: the same value is another piece's absence.
_PRESENT = {
    "learned rounding (GPTQ in its place)": ("rounding", "learned"),
    "online rotations (folded in their place)": ("rotation", "online"),
}


@dataclass(frozen=True)
class Row:
    """One variant over all seeds: perplexities, mean processor seconds, bits a weight, cost at run time."""

    name: str
    perplexities: list[float]
    seconds: float
    bits: float
    added: int

    def markdown(self, whole: Row | None) -> str:
        """Return a row of the table; `whole` is the recipe itself."""
        mean = fmean(self.perplexities)
        spread = (
            f" ({min(self.perplexities):.4g}-{max(self.perplexities):.4g})" if self.perplexities[1:] else ""
        )
        worse = "" if whole is None else f"{100 * math.log(mean / fmean(whole.perplexities)):+.1f} %"
        added = f"{self.added:,}" if self.added else "nothing"
        name = self.name if whole is None else f"without {self.name}"
        return f"| {name} | {mean:.4g}{spread} | {worse} | {self.bits:.2f} | {added} | {self.seconds:.0f} s |"


def has_piece(options: CalibrationOptions, name: str) -> bool:
    """Tell whether a recipe's options hold a piece."""
    if name in _PRESENT:
        field, value = _PRESENT[name]
        return bool(getattr(options, field) == value)
    field, value = next(iter(PIECES[name].items()))
    if name == "maps that fold":
        return any(getattr(options, field) != value for field, value in list(PIECES[name].items())[:4])
    return bool(getattr(options, field) != value)


def run(
    model: Model, windows: Any, evaluation: Any, scheme: str, seed: int, threads: int, **changes: Any
) -> tuple[omniquant.CalibrationResult, float, float]:
    """Calibrate once: the result, its perplexity and the processor's seconds."""
    began = time.process_time()
    result = omniquant.calibrate(
        model, windows, scheme, method="auto", seed=seed, threads=threads, progress=False, **changes
    )
    seconds = time.process_time() - began
    return result, omniquant.perplexity(result, evaluation, threads=threads), seconds


def measure(name: str, seeds: Sequence[int], arguments: tuple[Any, ...], **changes: Any) -> tuple[Row, Any]:
    """Return a variant's row, and the options it was calibrated with."""
    model, windows, evaluation, scheme, threads = arguments
    runs = [run(model, windows, evaluation, scheme, seed, threads, **changes) for seed in seeds]
    result = runs[0][0]
    quantized = result.fold()
    row = Row(
        name,
        [perplexity for _, perplexity, _ in runs],
        fmean(seconds for _, _, seconds in runs),
        bits_per_weight(result.scheme, quantized.spec, quantized.num_layers),
        sum(entry.multiply_adds for entry in describe_maps(result.options, quantized.spec)),
    )
    return row, result.options


def table(seeds: Sequence[int], arguments: tuple[Any, ...], changes: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a scheme's table."""
    scheme = QuantConfig.parse(arguments[3])
    yield f"| {scheme} | perplexity | log | bits a weight | added a token and block | time |"
    yield "|---|---|---|---|---|---|"
    whole, options = measure(WHOLE, seeds, arguments, **changes)
    yield whole.markdown(None)
    for name, absence in PIECES.items():
        if has_piece(options, name):
            yield measure(name, seeds, arguments, **changes | absence)[0].markdown(whole)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model")
    parser.add_argument("--scheme", nargs="+", default=["W3A16", "W4A4KV16"])
    parser.add_argument("--data", help="calibration: as omniquant quantize takes it")
    parser.add_argument("--eval", help="evaluation: as omniquant evaluate takes it; default: --data's")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--target", default="any", help="of the recipe: a format leaves no place for online maps"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    model = omniquant.load_model(arguments.model)
    windows = omniquant.calibration_windows(arguments.data, model, arguments.samples, arguments.seqlen)
    evaluation = omniquant.evaluation_windows(arguments.eval or arguments.data, model, arguments.seqlen)
    for scheme in arguments.scheme:
        common = (model, windows, evaluation, scheme, arguments.threads)
        for line in table(arguments.seeds, common, {"target": arguments.target}):
            print(line, flush=True)
        print(flush=True)


if __name__ == "__main__":
    main()
