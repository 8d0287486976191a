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
from typing import Any, NamedTuple

import omniquant
from benchmarks.rows import price, spread
from omniquant.calibration import CalibrationResult
from omniquant.config import CalibrationOptions, QuantConfig
from omniquant.models.model import Model

WHOLE = "the whole recipe"


class Piece(NamedTuple):
    """What options have, any of it, that hold a piece, and what is done in its place."""

    held: dict[str, tuple[Any, ...]]
    absence: dict[str, Any]


def piece(field: str, held: Any, otherwise: Any, **more: Any) -> Piece:
    """Return the piece of one option's value."""
    return Piece({field: (held,)}, {field: otherwise, **more})


PIECES: dict[str, Piece] = {
    "learned rounding": piece("rounding", "learned", "nearest"),
    "learned rounding (GPTQ in its place)": piece("rounding", "learned", "gptq"),
    "searched start": piece("start", "search", "paper"),
    "clipping (LWC)": piece("lwc", True, False, start="paper"),
    "maps that fold": Piece(
        {
            "norm_map": ("diagonal",),
            "vo_map": ("diagonal", "affine"),
            "qk_map": ("exact", "scale", "full"),
            "up_down": (True,),
        },
        {"norm_map": "none", "vo_map": "none", "qk_map": "none", "up_down": False, "start": "paper"},
    ),
    "rotations": Piece({"rotation": ("folded", "online")}, {"rotation": "none"}),
    "online rotations (folded in their place)": piece("rotation", "online", "folded"),
    "Kronecker maps": piece("input_map", "kronecker", "none"),
    "clipping of activations": piece("lac", True, False),
    "relative loss": piece("loss", "relative", "mse"),
    "cosine schedule": piece("schedule", "cosine", "constant"),
}


class Setting(NamedTuple):
    """What all rows of a table have in common."""

    model: Model
    windows: Any
    evaluation: Any
    scheme: str
    threads: int = 1


@dataclass(frozen=True)
class Row:
    """One variant over all seeds: perplexities, mean processor seconds, bits a weight, cost at run time."""

    perplexities: list[float]
    seconds: float
    price: str

    def markdown(self, name: str, whole: Row | None) -> str:
        """Return a row of the table; `whole` is the recipe itself, which is compared with nothing."""
        mean = fmean(self.perplexities)
        worse = "" if whole is None else f"{100 * math.log(mean / fmean(whole.perplexities)):+.1f} %"
        perplexity = spread(self.perplexities, ".4g")
        return f"| {name} | {perplexity} | {worse} | {self.price} | {self.seconds:.0f} s |"


def has_piece(options: CalibrationOptions, name: str) -> bool:
    """Tell whether a recipe's options hold a piece."""
    return any(getattr(options, field) in values for field, values in PIECES[name].held.items())


def run(setting: Setting, seed: int, changes: dict[str, Any]) -> tuple[CalibrationResult, float, float]:
    """Calibrate once: the result, its perplexity and the processor's seconds."""
    began = time.process_time()
    result = omniquant.calibrate(
        setting.model,
        setting.windows,
        setting.scheme,
        method="auto",
        seed=seed,
        threads=setting.threads,
        progress=False,
        **changes,
    )
    seconds = time.process_time() - began
    return result, omniquant.perplexity(result, setting.evaluation, threads=setting.threads), seconds


def measure(
    setting: Setting, seeds: Sequence[int], changes: dict[str, Any]
) -> tuple[Row, CalibrationOptions]:
    """Return a variant's row, and the options it was calibrated with."""
    runs = [run(setting, seed, changes) for seed in seeds]
    result = runs[0][0]
    row = Row(
        [perplexity for _, perplexity, _ in runs],
        fmean(seconds for _, _, seconds in runs),
        price(result),
    )
    return row, result.options


def table(setting: Setting, seeds: Sequence[int], changes: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a scheme's table."""
    scheme = QuantConfig.parse(setting.scheme)
    yield f"| {scheme} | perplexity | log | bits a weight | added a token and block | time |"
    yield "|---|---|---|---|---|---|"
    whole, options = measure(setting, seeds, changes)
    yield whole.markdown(WHOLE, None)
    for name, (_, absence) in PIECES.items():
        if has_piece(options, name):
            yield measure(setting, seeds, changes | absence)[0].markdown(f"without {name}", whole)


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
        setting = Setting(model, windows, evaluation, scheme, arguments.threads)
        for line in table(setting, arguments.seeds, {"target": arguments.target}):
            print(line, flush=True)
        print(flush=True)


if __name__ == "__main__":
    main()
