"""Change valid files at random, a million times: every reader ends with a model or one line about it.

    python tests/fuzz/fuzz_readers.py --executions 1000000

Each execution is drawn from (seed, number) alone. A finding is written to a folder with the command that
repeats it; the exit status is then 1. It is run with less memory than an attacker would ask for.
"""

from __future__ import annotations

import argparse
import random
import resource
import shlex
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from fuzz_targets import Target, all_targets  # noqa: E402

from omniquant.errors import OmniQuantError  # noqa: E402

SECONDS = 2.0  # of processor time, for files of a few kilobytes
MEMORY = 4 << 30


def problem(target: Target, content: bytes) -> tuple[str, bool]:
    """Return what is wrong with how a content was met ("" where nothing is), and whether it was taken."""
    started, taken = time.process_time(), True
    try:
        target.put(content)
        target.read(target.path)
    except OmniQuantError as error:
        taken, message = False, str(error)
        named = target.path.stem in message or "text.txt" in message
        if not message.isprintable() or len(message) > 600 or not named:
            return f"not one printable line that names the model: {message!r}", taken
    except Exception:
        return traceback.format_exc(), taken
    seconds = time.process_time() - started
    return (f"took {seconds:.1f} s" if seconds > SECONDS else ""), taken


def fuzz(targets: list[Target], seed: int, numbers: range, seconds: float, findings: Path) -> Counter[str]:
    """Run executions until their numbers or the time run out; return how many were taken, refused, found."""
    counts: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    for number in numbers:
        if time.monotonic() > deadline:
            break
        rng = random.Random(f"{seed}:{number}")
        target = targets[number % len(targets)]
        content = target.mutate(rng)
        what, taken = problem(target, content)
        counts["executions"] += 1
        counts["taken" if taken else "refused"] += 1
        counts[f"{target.name} {'taken' if taken else 'refused'}"] += 1
        if what:
            counts["findings"] += 1
            _keep(
                findings / f"{target.name}-{seed}-{number}",
                target,
                content,
                what,
                f"--seed {seed} --only {number}",
            )
    return counts


def _keep(folder: Path, target: Target, content: bytes, what: str, again: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / target.file.name).write_bytes(content)
    command = f"{shlex.quote(sys.executable)} tests/fuzz/fuzz_readers.py {again}"
    (folder / "what.txt").write_text(f"{command}\n\n{what}", encoding="utf-8", errors="backslashreplace")
    print(f"{folder}: {what.strip().splitlines()[-1]}", flush=True)


def main() -> int:
    """Parse the command line, fuzz, and say what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat the execution of this number")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="where inputs are kept")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    numbers = range(args.executions) if args.only is None else range(args.only, args.only + 1)
    memory = Path("/dev/shm")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        counts = fuzz(all_targets(Path(folder)), args.seed, numbers, args.seconds, args.findings)
    rate = counts["executions"] / (time.monotonic() - started)
    for name in sorted(counts):
        print(f"{name:24} {counts[name]}")
    print(f"{'a second':24} {rate:.0f}")
    return 1 if counts["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
