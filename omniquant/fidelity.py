"""How close a quantized model stays to the model it was made from: divergence of their next tokens.

Perplexity asks how well a text is told, which a model that changed may do by luck; this asks whether every
prediction stayed what it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant import _core
from omniquant.errors import ConfigError, NotFiniteError
from omniquant.evaluate import Evaluation, Foldable, folded
from omniquant.forward import F32, I32, ForwardModel, Progress, Steps, as_windows, passes, run_blocks
from omniquant.runtime.perplexity import Runtime, check_runtime, engine_of
from omniquant.threads import resolve_threads

# Logits held at a time, of each model.
_LOGIT_BYTES = 1 << 25


@dataclass(frozen=True)
class Divergence:
    """A model's next tokens against those of a reference, over all predictions of some windows.

    Parameters
    ----------
    evaluation : Evaluation
        The model's perplexity on the same windows.
    reference_perplexity : float
    kl : float
        Mean of sum_v P_v log(P_v / Q_v) a prediction, nats; P is the reference (Kullback and Leibler, 1951).
    kl_stderr : float
        Of that mean, from the means of the windows; NaN of one window.
    kl_99 : float
        Its 99th percentile over predictions.
    same_top : float
        Share of predictions whose likeliest token is the reference's.
    """

    evaluation: Evaluation
    reference_perplexity: float
    kl: float
    kl_stderr: float
    kl_99: float
    same_top: float

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, those of the evaluation among them, ready for JSON."""
        values = asdict(self)
        return {**values.pop("evaluation"), **values}


def divergence(
    model: ForwardModel | Foldable,
    reference: ForwardModel | Foldable,
    tokens: npt.ArrayLike,
    seqlen: int | None = None,
    *,
    runtime: Runtime = "fake",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """Compare a model's next-token distributions with those of a reference.

    Parameters
    ----------
    model : Model, QuantizedModel or CalibrationResult
    reference : Model, QuantizedModel or CalibrationResult
        Usually the model in full precision.
    tokens : array_like of int
        1-D: a stream, cut into windows of `seqlen` that do not overlap; 2-D [N, T]: windows as they are.
    seqlen : int, optional
        Length of a window; needed for a stream.
    runtime : {"fake", "integer"}
        How `model` is run: fake-quantized in float32, or on packed integers.
    threads : int, optional
        None: all processors this process may use. The result does not depend on it.
    progress : callable, optional
        Called with (steps done, steps): blocks of both models, windows on integers.

    Returns
    -------
    Divergence

    Raises
    ------
    ConfigError
        If the vocabularies differ, or "integer" is asked of a model that is not quantized.
    DataError
        If the tokens do not make a window or lie outside the vocabulary.
    NotFiniteError
        If a model computes NaN or infinity.
    """
    started = time.monotonic()
    first, second = folded(model), folded(reference)
    if first.vocab_size != second.vocab_size:
        raise ConfigError(
            f"{first.name} has {first.vocab_size} tokens, {second.name} {second.vocab_size}: "
            "their predictions cannot be compared"
        )
    windows = as_windows(tokens, first.vocab_size, seqlen)
    workers = resolve_threads(threads)
    sides = [_Side(second, windows, "fake", workers), _Side(first, windows, check_runtime(runtime), workers)]
    steps = Steps(progress, sum(side.steps for side in sides))
    found = np.empty((4, len(windows), windows.shape[1] - 1))  # kl, nats of the reference, nats, same
    for (index, part, theirs), (_, _, ours) in zip(*(side.logits(steps) for side in sides), strict=True):
        targets = windows[index, part.start + 1 : part.stop + 1]
        found[:, index, part] = _core.divergence(theirs, ours, targets, threads=workers)
    return _summary(found, f"{first.name} against {second.name}", started)


@dataclass(frozen=True)
class _Side:
    """One of the two models on the windows [N, T]."""

    model: ForwardModel
    windows: I32
    runtime: Runtime
    threads: int

    @property
    def steps(self) -> int:
        """Blocks times passes through them, or windows on integers."""
        if self.runtime == "integer":
            return len(self.windows)
        return self.model.num_layers * len(passes(self.model, self.windows))

    def logits(self, steps: Steps) -> Iterator[tuple[int, slice, F32]]:
        """Yield window, positions and logits [n, V] of all predictions, a few at a time and in order."""
        length = self.windows.shape[1] - 1
        most = max(1, _LOGIT_BYTES // (4 * self.model.vocab_size))
        parts = [slice(start, min(start + most, length)) for start in range(0, length, most)]
        return self._on_integers(parts, steps) if self.runtime == "integer" else self._in_float(parts, steps)

    def _in_float(self, parts: list[slice], steps: Steps) -> Iterator[tuple[int, slice, F32]]:
        ends, head = self.model.ends(), self.model.lm_head()
        index = 0
        for windows in passes(self.model, self.windows):
            for states in run_blocks(self.model, windows, threads=self.threads, steps=steps):
                for part in parts:
                    yield index, part, ends.logits(states[part], head, threads=self.threads)
                index += 1

    def _on_integers(self, parts: list[slice], steps: Steps) -> Iterator[tuple[int, slice, F32]]:
        decoder = engine_of(self.model).decoder(self.windows.shape[1], self.threads)
        for index, window in enumerate(self.windows):
            decoder.rewind(0)
            for part in parts:
                yield index, part, decoder.logits(window[part])
            steps()


def _summary(found: npt.NDArray[np.float64], name: str, started: float) -> Divergence:
    """Sum up [4, N, T - 1]; NotFiniteError names the models."""
    kl, reference_nll, nll, same = found
    evaluation, of_reference = (
        Evaluation.from_losses(name, losses.mean(axis=1), kl.shape[1] + 1, started)
        for losses in (nll, reference_nll)
    )
    if not np.isfinite(found).all():
        raise NotFiniteError(f"{name}: the mean divergence of {kl.size} predictions is {kl.mean()}")
    means = kl.mean(axis=1)
    return Divergence(
        evaluation=evaluation,
        reference_perplexity=of_reference.perplexity,
        kl=float(means.mean()),
        kl_stderr=float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan,
        kl_99=float(np.percentile(kl, 99)),
        same_top=float(same.mean()),
    )
