"""Perplexity, block by block: the weights of one block at a time, all windows through it.

Protocol: windows that do not overlap, mean cross entropy of the T - 1 targets of each window, exp of the mean
over windows; no beginning-of-sequence token is added.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from omniquant.errors import NotFiniteError
from omniquant.forward import (
    I32,
    ForwardModel,
    Head,
    Progress,
    Steps,
    as_windows,
    chunks,
    passes,
    run_blocks,
)
from omniquant.threads import resolve_threads


@runtime_checkable
class Foldable(Protocol):
    """A calibration result: folded, it is a model."""

    def fold(self) -> ForwardModel:
        """Return the quantized model."""


def folded(model: ForwardModel | Foldable) -> ForwardModel:
    """Return a model, of a calibration result the quantized one."""
    return model.fold() if isinstance(model, Foldable) else model


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
    progress: Progress | None = None,
) -> Evaluation:
    """Measure perplexity; see :func:`perplexity`. `progress` is called with (blocks done, blocks)."""
    started = time.monotonic()
    runnable = folded(model)
    windows = as_windows(tokens, runnable.vocab_size, seqlen)
    parts = passes(runnable, windows)
    workers = resolve_threads(threads)
    steps = Steps(progress, len(parts) * runnable.num_layers)
    losses = np.concatenate([_window_losses(runnable, part, workers, steps) for part in parts])
    return Evaluation.from_losses(runnable.name, losses, windows.shape[1], started)


def _window_losses(model: ForwardModel, windows: I32, threads: int, steps: Steps) -> npt.NDArray[np.float64]:
    """Return the mean cross entropy of each window [N]."""
    x = run_blocks(model, windows, threads=threads, steps=steps)
    head = Head(model)
    losses = np.empty(len(windows))
    for part in chunks(*windows.shape):
        hidden, targets = x[part, :-1], windows[part, 1:]
        nll, _ = head.nll(hidden.reshape(-1, hidden.shape[-1]), targets.ravel(), threads)
        losses[part] = nll.reshape(targets.shape).mean(axis=1)
    return losses
