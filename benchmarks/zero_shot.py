"""Zero-shot accuracy of several models on the same questions, each paired with the first.

    python -m benchmarks.zero_shot MODEL RESULT "AutoRound=FOLDER" --task-data FOLDER --limit 1000

A model is whatever `omniquant evaluate` takes, NAME=MODEL where the table should call it otherwise. A row a
model, in Markdown, printed as soon as it is known: acc of every task, their mean, its difference to the first
model with the 95 % interval of paired answers, and flips, the share of answers that turned right or wrong.
With --answers the answers are kept, a file a model, and not asked for again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from omniquant.cli.common import open_any
from omniquant.zeroshot.evaluate import TaskResult, ZeroShot, zero_shot

TASKS = ("piqa", "arc_easy", "boolq", "winogrande")


class Setting(NamedTuple):
    """What all rows of a table have in common."""

    tasks: Sequence[str]
    data: str | None
    limit: int | None = None
    answers: Path | None = None
    threads: int = 1


def named(model: str) -> tuple[str, str]:
    """Return the name and the place of a model."""
    name, equals, place = model.partition("=")
    return (name, place) if equals else (Path(model).name, model)


def ask(setting: Setting, name: str, place: str) -> tuple[TaskResult, ...]:
    """Return a model's answers (which were right, by acc), those kept before where there are some."""
    kept = None if setting.answers is None else setting.answers / f"{name}.npz"
    if kept is not None and kept.exists():
        with np.load(kept) as file:
            return tuple(TaskResult(task, file[task], None) for task in setting.tasks)
    found = zero_shot(
        open_any(place), setting.tasks, setting.data, limit=setting.limit, threads=setting.threads
    )
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, **{result.task: result.right for result in found.results})
    return tuple(TaskResult(result.task, result.right, None) for result in found.results)


def row(name: str, found: ZeroShot) -> str:
    """Return a row of the table."""
    values = found.to_dict()
    mean = values["mean_acc"]
    shares = "".join(f" {100 * result.right.mean():.1f} |" for result in found.results)
    line = f"| {name} |{shares} {100 * mean['value']:.1f} ± {100 * mean['stderr']:.1f} |"
    if found.against is None:
        return f"{line} | |"
    paired, flips = values["against"]["mean_acc"], values["against"]["mean_flips"]
    low, high = (100 * end for end in paired["interval"])
    return f"{line} {100 * paired['value']:+.1f} ({low:+.1f} to {high:+.1f}) | {100 * flips:.1f} |"


def table(setting: Setting, models: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the table."""
    first = None
    for number, model in enumerate(models):
        name, place = named(model)
        results = ask(setting, name, place)
        if number == 0:
            heads = "".join(f" {result.task} ({len(result.right)}) |" for result in results)
            yield f"| acc |{heads} mean | difference, 95 % | flips |"
            yield "|---" * (len(results) + 4) + "|"
        yield row(name, ZeroShot(results, first, 0.0))
        first = first or results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zero_shot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("models", nargs="+", metavar="[NAME=]MODEL")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--task-data", help="a folder with TASK.jsonl of each; else the datasets library")
    parser.add_argument("--limit", type=int, help="the first N questions of each task")
    parser.add_argument("--answers", type=Path, help="a folder that keeps answers")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    setting = Setting(
        arguments.tasks, arguments.task_data, arguments.limit, arguments.answers, arguments.threads
    )
    for line in table(setting, arguments.models):
        print(line, flush=True)


if __name__ == "__main__":
    main()
