"""What methods come to at some schemes: perplexity, divergence, bits, cost at run time, time and memory.

    python -m benchmarks.schemes omniquant-tiny --scheme W4A16 W3A16g64 --kept FOLDER
    python -m benchmarks.schemes MODEL --scheme W2A16g64 --method rtn gptq auto --data calibration.npy \\
        --eval evaluation.npy --seqlen 512 --epochs 2 --kept FOLDER

Every row is calibrated on the same windows, those that learn with every seed: mean and range; a row a scheme
and method, in Markdown, printed as soon as it is known. All of it fake-quantized. Each calibration is a
process of its own, whose processor seconds and peak memory are told. Results and what was measured of them
stay in the folder and are not made again, so that a table that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import omniquant
from benchmarks.rows import price, spread

LEARN_NOTHING = ("rtn", "smoothquant", "gptq", "awq")  # one seed tells all
COLUMNS = (
    "scheme", "method", "perplexity", "KL divergence", "bits a weight", "added a token and block", "time",
    "memory",
)  # fmt: skip


class Run(NamedTuple):
    """One calibration: what its result comes to, the processor's seconds and the memory's peak in MiB."""

    perplexity: float
    kl: float
    seconds: float
    mib: float


class Setting(NamedTuple):
    """What all rows of a table have in common; `more` are further options of omniquant quantize."""

    model: str
    kept: Path
    data: str | None = None
    evaluation: str | None = None
    samples: int = 32
    seqlen: int = 256
    threads: int = 1
    more: Sequence[str] = ()


def command(*arguments: str) -> tuple[dict[str, float], float, float]:
    """Run omniquant in a process of its own: what it says with --json, its seconds and its peak in MiB."""
    called = [sys.executable, "-m", "omniquant", *arguments, "--json", "--quiet"]
    process = subprocess.Popen(called, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"omniquant {' '.join(arguments)} ended with {process.returncode}")
    return json.loads(told), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def place_of(setting: Setting, scheme: str, method: str, seed: int) -> Path:
    """Return the directory of a result."""
    return setting.kept / f"{scheme}_{method}_{seed}"


def run(setting: Setting, scheme: str, method: str, seed: int) -> Run:
    """Return what was kept of a run, or calibrate and measure."""
    place = place_of(setting, scheme, method, seed)
    facts = place.with_name(f"{place.name}.json")
    if facts.exists():
        return Run(**json.loads(facts.read_text()))
    asked = ["--seqlen", str(setting.seqlen), "--threads", str(setting.threads)]
    data = [] if setting.data is None else ["--data", setting.data]
    text = setting.evaluation or setting.data
    wish = ["--scheme", scheme, "--method", method, "--samples", str(setting.samples)]
    if method not in LEARN_NOTHING:
        wish += ["--seed", str(seed), *setting.more]
    _, seconds, mib = command(
        "quantize", setting.model, *wish, *data, *asked, "--output", str(place), "--resume"
    )
    judged = [] if text is None else ["--data", text]
    told, _, _ = command("evaluate", str(place), *judged, *asked, "--against", setting.model)
    found = Run(told["perplexity"], told["kl"], seconds, mib)
    facts.write_text(json.dumps(found._asdict()))
    return found


def row(setting: Setting, scheme: str, method: str, seeds: Sequence[int]) -> str:
    """Return a row of the table."""
    seeds = seeds[:1] if method in LEARN_NOTHING else seeds
    runs = [run(setting, scheme, method, seed) for seed in seeds]
    result = omniquant.CalibrationResult.load(place_of(setting, scheme, method, seeds[0]))
    perplexity, kl = spread([r.perplexity for r in runs], ".4g"), spread([r.kl for r in runs], ".3f")
    time, memory = fmean(r.seconds for r in runs), max(r.mib for r in runs)
    told = [scheme, method, perplexity, kl, price(result), f"{time:.0f} s", f"{memory:.0f} MiB"]
    return f"| {' | '.join(told)} |"


def table(
    setting: Setting, schemes: Sequence[str], methods: Sequence[str], seeds: Sequence[int]
) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for scheme in schemes:
        for method in methods:
            yield row(setting, scheme, method, seeds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schemes", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model")
    parser.add_argument("--scheme", nargs="+", default=["W4A16", "W3A16"])
    parser.add_argument("--method", nargs="+", default=["rtn", "gptq", "awq", "auto"])
    parser.add_argument("--data", help="calibration: as omniquant quantize takes it")
    parser.add_argument("--eval", help="evaluation: as omniquant evaluate takes it; default: --data's")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--epochs", help="of what learns; default: the recipe's")
    parser.add_argument(
        "--target", default="any", help="of the recipe: formats have no place for online maps"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kept", type=Path, required=True, help="a folder for results and figures")
    arguments = parser.parse_args()
    arguments.kept.mkdir(parents=True, exist_ok=True)
    more = ["--target", arguments.target, *(["--epochs", arguments.epochs] if arguments.epochs else [])]
    setting = Setting(
        arguments.model,
        arguments.kept,
        arguments.data,
        arguments.eval,
        arguments.samples,
        arguments.seqlen,
        arguments.threads,
        more,
    )
    for line in table(setting, arguments.scheme, arguments.method, arguments.seeds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
