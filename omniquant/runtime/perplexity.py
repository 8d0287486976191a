"""Perplexity on the integer path: every window through the packed model and its cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from omniquant.errors import ConfigError
from omniquant.evaluate import Evaluation, evaluate
from omniquant.forward import ForwardModel, as_windows
from omniquant.runtime.engine import Engine

Runtime = Literal["integer", "fake"]


class Evaluable(ForwardModel, Protocol):
    """A quantized model: both ways of running it."""

    def engine(self) -> Engine:
        """Return it packed."""


def evaluate_on(
    model: Evaluable,
    tokens: npt.ArrayLike,
    seqlen: int | None = None,
    *,
    runtime: Runtime = "integer",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure perplexity on packed integers or fake-quantized; ConfigError for any other `runtime`."""
    if runtime == "fake":
        return evaluate(model, tokens, seqlen, threads=threads, progress=progress)
    if runtime != "integer":
        raise ConfigError(f"runtime is {runtime!r}, expected 'integer' or 'fake'")
    return evaluate_integers(model.engine(), tokens, seqlen, threads=threads, progress=progress)


def evaluate_integers(
    engine: Engine,
    tokens: npt.ArrayLike,
    seqlen: int | None = None,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure perplexity as :func:`omniquant.evaluate.evaluate` does, on packed integers.

    `progress` is called with (windows done, windows).
    """
    started = time.monotonic()
    windows = as_windows(tokens, engine.vocab_size, seqlen)
    count, length = windows.shape
    decoder = engine.decoder(length, threads)
    losses = np.empty(count)
    for index, window in enumerate(windows):
        decoder.rewind(0)
        losses[index] = decoder.nll(window).mean()
        if progress is not None:
            progress(index + 1, count)
    return Evaluation.from_losses(engine.name, losses, length, started)
