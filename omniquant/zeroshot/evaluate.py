"""Zero-shot accuracy of a model or a result on tasks, alone or against another model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from omniquant.evaluate import Foldable, folded
from omniquant.forward import Progress
from omniquant.runtime.perplexity import Runtime, check_runtime, engine_of
from omniquant.threads import resolve_threads
from omniquant.zeroshot.data import known_tasks, read_questions
from omniquant.zeroshot.likelihood import (
    Request,
    Score,
    ScoringModel,
    encode_pair,
    log_likelihoods,
    log_likelihoods_on_integers,
)
from omniquant.zeroshot.statistics import Accuracy, Difference, Right, mean_of
from omniquant.zeroshot.tasks import Question, Task


@dataclass(frozen=True)
class TaskResult:
    """What a task says of a model.

    Parameters
    ----------
    task : str
    right : ndarray of bool [questions]
        Whether the likeliest choice is the right one.
    right_norm : ndarray of bool [questions] or None
        The same with log-likelihoods divided by characters; None where lm-eval does not report that.
    """

    task: str
    right: Right
    right_norm: Right | None

    @property
    def metrics(self) -> dict[str, Right]:
        """Right answers by the name of their metric."""
        return {"acc": self.right} | ({} if self.right_norm is None else {"acc_norm": self.right_norm})

    def to_dict(self) -> dict[str, Any]:
        """Return accuracies with errors and intervals, ready for JSON."""
        values: dict[str, Any] = {"questions": len(self.right)}
        for name, right in self.metrics.items():
            values |= Accuracy.of(right).to_dict(name)
        return values


@dataclass(frozen=True)
class ZeroShot:
    """Accuracies of a model, and of the one it was compared with.

    Parameters
    ----------
    results : tuple of TaskResult
    against : tuple of TaskResult or None
        On the same questions.
    seconds : float
    """

    results: tuple[TaskResult, ...]
    against: tuple[TaskResult, ...] | None
    seconds: float

    def __getitem__(self, task: str) -> TaskResult:
        """Return a task's result; KeyError for a task that was not run."""
        for result in self.results:
            if result.task == task:
                return result
        raise KeyError(task)

    @property
    def acc(self) -> float:
        """The plain mean of the tasks' acc."""
        return float(np.mean([result.right.mean() for result in self.results]))

    def differences(self) -> dict[str, dict[str, Difference]]:
        """Return, of each task and metric, this model against the other; empty where there is none."""
        pairs = zip(self.results, self.against or (), strict=False)
        return {
            mine.task: {
                name: Difference.of(right, theirs.metrics[name]) for name, right in mine.metrics.items()
            }
            for mine, theirs in pairs
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single answers, ready for JSON."""
        accuracies = [Accuracy.of(result.right) for result in self.results]
        values: dict[str, Any] = {
            "tasks": {result.task: result.to_dict() for result in self.results},
            "mean_acc": mean_of([a.value for a in accuracies], [a.stderr for a in accuracies]),
            "seconds": self.seconds,
        }
        if self.against is not None:
            found = self.differences()
            of_acc = [task["acc"] for task in found.values()]
            values["against"] = {
                "tasks": {result.task: result.to_dict() for result in self.against},
                "differences": {
                    task: {name: entry.to_dict() for name, entry in metrics.items()}
                    for task, metrics in found.items()
                },
                "mean_acc": mean_of([d.value for d in of_acc], [d.stderr for d in of_acc]),
                "mean_flips": float(np.mean([d.flips for d in of_acc])),
            }
        return values


def zero_shot(
    model: ScoringModel | Foldable,
    tasks: str | Sequence[str],
    data: str | os.PathLike[str] | None = None,
    *,
    limit: int | None = None,
    against: ScoringModel | Foldable | None = None,
    runtime: Runtime = "fake",
    threads: int | None = None,
    progress: Progress | None = None,
) -> ZeroShot:
    """Answer multiple-choice questions by log-likelihood, as lm-eval does, without examples.

    Parameters
    ----------
    model : Model, QuantizedModel or CalibrationResult
    tasks : str or sequence of str
        Names, as lm-eval has them: piqa, arc_easy, arc_challenge, boolq, winogrande.
    data : path, optional
        A folder with ``TASK.jsonl`` of every task; None: the datasets library.
    limit : int, optional
        The first so many questions of each task.
    against : model, optional
        Answers the same questions; differences are then paired. It runs fake-quantized.
    runtime : {"fake", "integer"}
        How a quantized model runs.
    threads : int, optional
        None: all processors this process may use. Results do not depend on it.
    progress : callable, optional
        Called with (done, total) of whatever is counted at the moment.

    Returns
    -------
    ZeroShot

    Raises
    ------
    DataError
        If a task is unknown, its data are missing or damaged, or a text does not fit the model.
    CheckpointError
        If the model brought no tokenizer.
    ConfigError
        If `runtime` is unknown, or "integer" for a model that is not quantized.
    NotFiniteError
        If a model computes NaN or infinity.
    """
    started = time.monotonic()
    chosen = known_tasks(tasks)
    questions = [read_questions(task, data, limit) for task in chosen]
    score = open_scorer(_folded(model), runtime, resolve_threads(threads), progress)
    results = _answer(chosen, questions, score)
    other = None
    if against is not None:
        other = _answer(
            chosen, questions, open_scorer(_folded(against), "fake", resolve_threads(threads), progress)
        )
    return ZeroShot(results, other, time.monotonic() - started)


Scorer = tuple[ScoringModel, Callable[[list[Request]], list[Score]]]


def _folded(model: ScoringModel | Foldable) -> ScoringModel:
    return cast(ScoringModel, folded(model))


def open_scorer(model: ScoringModel, runtime: Runtime, threads: int, progress: Progress | None) -> Scorer:
    """Return a model with what scores requests on it; ConfigError where `runtime` does not fit."""
    if check_runtime(runtime) == "fake":
        return model, lambda requests: log_likelihoods(model, requests, threads=threads, progress=progress)
    engine = engine_of(model)
    return model, lambda requests: log_likelihoods_on_integers(
        engine, requests, model.max_positions, threads=threads, progress=progress
    )


def _answer(tasks: list[Task], questions: list[list[Question]], scorer: Scorer) -> tuple[TaskResult, ...]:
    """Ask the questions of all tasks at once and mark the answers."""
    model, score = scorer
    requests = [
        encode_pair(model, context, continuation)
        for of_task in questions
        for question in of_task
        for context, continuation in zip(question.contexts, question.continuations, strict=True)
    ]
    scores = iter(score(requests))
    results = []
    for task, of_task in zip(tasks, questions, strict=True):
        marks = [_mark(question, [next(scores) for _ in question.contexts]) for question in of_task]
        right, right_norm = (np.array(column) for column in zip(*marks, strict=True))
        results.append(TaskResult(task.name, right, right_norm if task.normalized else None))
    return tuple(results)


def _mark(question: Question, scores: list[Score]) -> tuple[bool, bool]:
    """Tell whether the likeliest choice is right, and the likeliest by characters."""
    found = np.array([score.log_likelihood for score in scores])
    by_length = found / np.array(question.lengths, np.float64)
    return bool(found.argmax() == question.gold), bool(by_length.argmax() == question.gold)
