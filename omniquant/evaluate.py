"""Perplexity, block by block: the weights of one block at a time, all windows through it.

Protocol: windows that do not overlap, mean cross entropy of the T - 1 targets of each window, exp of the mean
over windows; no beginning-of-sequence token is added.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from omniquant.errors import NotFiniteError
from omniquant.forward import (
    HIDDEN_BYTES,
    I32,
    ForwardModel,
    Head,
    as_windows,
    chunks,
    run_blocks,
)
from omniquant.threads import resolve_threads


@runtime_checkable
class Foldable(Protocol):
    """A calibration result: folded, it is a model."""

    def fold(self) -> ForwardModel:
        """Return the quantized model."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    perplexity: float
    nll: float  # mean negative log-likelihood a token, nats
    tokens: int  # in all windows; each window predicts all but its first
    windows: int
    seqlen: int
    seconds: float

    @classmethod
    def from_losses(
        cls, name: str, losses: npt.NDArray[np.float64], seqlen: int, started: float
    ) -> Evaluation:
        """Sum up the mean cross entropy of each window [N]; NotFiniteError names the model.

        `started` is when the evaluation began, by ``time.monotonic()``.
        """
        nll = float(losses.mean())
        if not math.isfinite(nll):
            raise NotFiniteError(f"{name}: the mean cross entropy of {len(losses)} windows is {nll}")
        perplexity = math.exp(nll) if nll < 700 else math.inf
        seconds = time.monotonic() - started
        return cls(perplexity, nll, len(losses) * seqlen, len(losses), seqlen, seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return asdict(self)


def perplexity(
    model: ForwardModel | Foldable,
    tokens: npt.ArrayLike,
    seqlen: int | None = None,
    *,
    threads: int | None = None,
) -> float:
    """Return the perplexity of a model or a calibration result on tokens.

    Parameters
    ----------
    model : Model, QuantizedModel or CalibrationResult
    tokens : array_like of int
        1-D: a stream, cut into windows of `seqlen` that do not overlap; 2-D [N, T]: windows as they are.
    seqlen : int, optional
        Length of a window; needed for a stream.
    threads : int, optional
        None: all processors this process may use. The result does not depend on it.

    Returns
    -------
    float
        exp of the mean over windows of the mean cross entropy of their T - 1 targets.

    Raises
    ------
    DataError
        If the tokens do not make a window or lie outside the vocabulary.
    NotFiniteError
        If the model computes NaN or infinity.
    """
    return evaluate(model, tokens, seqlen, threads=threads).perplexity


def evaluate(
    model: ForwardModel | Foldable,
    tokens: npt.ArrayLike,
    seqlen: int | None = None,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure perplexity; see :func:`perplexity`. `progress` is called with (blocks done, blocks)."""
    started = time.monotonic()
    runnable: ForwardModel = model.fold() if isinstance(model, Foldable) else model
    windows = as_windows(tokens, runnable.vocab_size, seqlen)
    count, length = windows.shape
    hidden_bytes = 4 * length * runnable.spec.hidden_size
    step = max(1, HIDDEN_BYTES // hidden_bytes)
    parts = [windows[start : start + step] for start in range(0, count, step)]
    worker = resolve_threads(threads)
    total = len(parts) * runnable.num_layers
    losses: list[npt.NDArray[np.float64]] = []
    for number, part in enumerate(parts):
        done = number * runnable.num_layers
        losses.append(_window_losses(runnable, part, worker, partial(_advance, progress, done, total)))
    return Evaluation.from_losses(runnable.name, np.concatenate(losses), length, started)


def _advance(progress: Callable[[int, int], None] | None, before: int, total: int, blocks: int) -> None:
    if progress is not None:
        progress(before + blocks, total)


def _window_losses(
    model: ForwardModel, windows: I32, threads: int, progress: Callable[[int], None]
) -> npt.NDArray[np.float64]:
    """Return the mean cross entropy of each window [N]."""
    x = run_blocks(model, windows, threads=threads, progress=progress)
    head = Head(model)
    losses = np.empty(len(windows))
    for part in chunks(*windows.shape):
        hidden, targets = x[part, :-1], windows[part, 1:]
        nll, _ = head.nll(hidden.reshape(-1, hidden.shape[-1]), targets.ravel(), threads)
        losses[part] = nll.reshape(targets.shape).mean(axis=1)
    return losses
