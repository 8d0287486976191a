"""Perplexity on the integer path: every window through the packed model and its cache."""

from __future__ import annotations

import time
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from omniquant.errors import ConfigError
from omniquant.evaluate import Evaluation, evaluate
from omniquant.forward import ForwardModel, Progress, Steps, as_windows
from omniquant.runtime.engine import Engine

Runtime = Literal["integer", "fake"]


def check_runtime(runtime: Runtime) -> Runtime:
    """Return it; ConfigError if it is neither."""
    if runtime not in ("integer", "fake"):
        raise ConfigError(f"runtime is {runtime!r}, expected 'integer' or 'fake'")
    return runtime


def engine_of(model: ForwardModel) -> Engine:
    """Return a model packed; ConfigError if it is not quantized."""
    make = getattr(model, "engine", None)
    if make is None:
        raise ConfigError(f"runtime 'integer': {model.name} is not quantized")
    return cast(Engine, make())


def evaluate_on(
    model: ForwardModel,
    tokens: npt.ArrayLike,
    seqlen: int | None = None,
    *,
    runtime: Runtime = "integer",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure perplexity on packed integers or in float; ConfigError where `runtime` does not fit."""
    if check_runtime(runtime) == "fake":
        return evaluate(model, tokens, seqlen, threads=threads, progress=progress)
    return evaluate_integers(engine_of(model), tokens, seqlen, threads=threads, progress=progress)


def evaluate_integers(
    engine: Engine,
    tokens: npt.ArrayLike,
    seqlen: int | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure perplexity as :func:`omniquant.evaluate.evaluate` does, on packed integers.

    `progress` is called with (windows done, windows).
    """
    started = time.monotonic()
    windows = as_windows(tokens, engine.vocab_size, seqlen)
    count, length = windows.shape
    decoder = engine.decoder(length, threads)
    losses = np.empty(count)
    steps = Steps(progress, count)
    for index, window in enumerate(windows):
        decoder.rewind(0)
        losses[index] = decoder.nll(window).mean()
        steps()
    return Evaluation.from_losses(engine.name, losses, length, started)
