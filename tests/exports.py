"""What the tests of exports share: small results, and the logits our own arithmetic gives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import omniquant
from omniquant.forward import run_block
from omniquant.quantized import CalibrationResult

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]


def embedded_result(scheme: str, method: str = "rtn", **options: Any) -> CalibrationResult:
    """Calibrate the embedded model a little."""
    model = omniquant.load_model("omniquant-tiny")
    windows = omniquant.calibration_windows(None, model, samples=4, seqlen=64)
    options = {"epochs": 1, **options} if method != "rtn" else options
    return omniquant.calibrate(model, windows, scheme, method=method, progress=False, **options)


def model_named(name: str, shared: Path | None = None) -> omniquant.Model:
    """Open the embedded model, stories260K or SmolLM2; skips where it is not there."""
    if name == "embedded":
        return omniquant.load_model("omniquant-tiny")
    if name == "stories260K":
        assert shared is not None
        return omniquant.load_model(shared / "data" / "stories260K")
    path = os.environ.get("OMNIQUANT_SMOLLM2")
    if not path:
        pytest.skip("OMNIQUANT_SMOLLM2 names no file")
    return omniquant.load_model(path)


def tokens_of(model: omniquant.Model | CalibrationResult, count: int = 2, length: int = 48) -> I32:
    """Return windows of tokens; of the embedded model from its own text, else drawn."""
    vocab = model.architecture.vocab_size
    return np.random.default_rng(5).integers(3, vocab, (count, length)).astype(np.int32)


def our_logits(
    result: CalibrationResult, tokens: I32, weights_only: bool = False, rounded_again: bool = False
) -> F64:
    """Return the logits [N, T, V] of the fake-quantized model, the last norm and the head in double.

    With `rounded_again` each value between two blocks is one rounding off, up or down.
    """
    model, rng = result.fold(), np.random.default_rng(0)
    x = model.embed(tokens)
    for index in range(model.num_layers):
        if rounded_again:
            x = (x * (1 + 2.0**-24 * rng.choice([-1, 1], x.shape))).astype(np.float32)
        activation = None if weights_only else model.scheme.activation(index)
        x = run_block(model, index, model.block(index), x, activation=activation)
    wide = x.astype(np.float64)
    wide /= np.sqrt((wide**2).mean(axis=-1, keepdims=True) + model.spec.norm_eps)
    return np.asarray((wide * model.ends().final_norm["weight"]) @ model.lm_head().T.astype(np.float64))


def nll(logits: npt.NDArray[np.floating], tokens: I32) -> float:
    """Return the mean negative log-likelihood of tokens [N, T] under logits [N, T, V]."""
    return float(nats(logits, tokens).mean())


def nats(logits: npt.NDArray[np.floating], tokens: I32) -> F64:
    """Return the negative log-likelihoods [N, T - 1] of tokens [N, T] but the first."""
    wide = logits[:, :-1].astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    logp = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return np.asarray(-np.take_along_axis(logp, tokens[:, 1:, None].astype(np.int64), axis=-1)[..., 0])


def greedy_ties(result: CalibrationResult, prompt: I32, written: list[int]) -> list[float]:
    """Return how far ahead our likeliest token was wherever an engine, kept from ending, wrote another."""
    tokens = np.concatenate([prompt, np.array(written, np.int32)])[None]
    logits = our_logits(result, tokens)[0, len(prompt) - 1 : -1]
    logits[:, list(result.fold().text.eos)] = -np.inf
    behind = logits.max(axis=-1) - logits[np.arange(len(written)), written]
    return [float(margin) for margin in behind if margin > 0]
