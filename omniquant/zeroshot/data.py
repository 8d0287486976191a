"""Where a task's questions come from: a folder of .jsonl files, or the datasets library."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.json_file import parse_json_object
from omniquant.checkpoint.text import one_line
from omniquant.errors import CheckpointError, DataError
from omniquant.zeroshot.tasks import TASKS, Question, Task


def known_tasks(names: str | Sequence[str]) -> list[Task]:
    """Return tasks by their names, a sequence or one text with commas.

    Raises
    ------
    DataError
        If there is none, one is unknown, or one is named twice.
    """
    wanted = names.split(",") if isinstance(names, str) else list(names)
    wanted = [name.strip() for name in wanted if name.strip()]
    if not wanted:
        raise DataError(f"no task is named; known: {', '.join(TASKS)}")
    for name in wanted:
        if name not in TASKS:
            raise DataError(f"task {name!r} is unknown; known: {', '.join(TASKS)}")
    if len(set(wanted)) != len(wanted):
        raise DataError(f"a task is named twice in {', '.join(wanted)}")
    return [TASKS[name] for name in wanted]


def read_questions(
    task: Task, folder: str | os.PathLike[str] | None = None, limit: int | None = None
) -> list[Question]:
    """Read the questions of a task.

    Parameters
    ----------
    task : Task
    folder : path, optional
        Holds ``TASK.jsonl``, a JSON object a line; None: the datasets library, which downloads.
    limit : int, optional
        The first so many alone.

    Returns
    -------
    list of Question
        At least one.

    Raises
    ------
    DataError
        If folder, file or library is missing or a row is not what it has to be; names file and line.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}, expected at least 1")
    rows = _from_library(task) if folder is None else _from_file(Path(folder), task)
    try:
        questions = [task.question(row) for row in islice(rows, limit)]
    except CheckpointError as error:  # of the fields
        raise DataError(str(error)) from error
    if not questions:
        raise DataError(f"{task.name}: there are no questions")
    return questions


def _from_file(folder: Path, task: Task) -> Iterator[Fields]:
    path = folder / f"{task.name}.jsonl"
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of tasks")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}: line {number}"
                if line.strip():
                    yield Fields(parse_json_object(line, where), where)
    except OSError as error:
        raise DataError(f"{path}: cannot read: {one_line(error)}") from error


def _from_library(task: Task) -> Iterable[Fields]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"{task.name}: give a folder with {task.name}.jsonl, or install the datasets library"
        ) from error
    path, configuration, split = task.source
    try:
        rows: Iterable[dict[str, Any]] = load_dataset(path, configuration, split=split)
    except Exception as error:  # the library's own, or those of its network stack
        raise DataError(f"{task.name}: the datasets library has no {path}: {one_line(error)}") from error
    return (Fields(row, f"{path} row {index}") for index, row in enumerate(rows))
