"""Perplexity on integers against the fake-quantized one, on every model at hand.

With activations at 16 bits and more the two agree to 1e-4: keys and values are kept as halves, 16 bits are
fixed point, the rest is exact. (Of what was calibrated: where rounding to nearest leaves a perplexity of
hundreds, at 2 bits, the halves alone can cost as much.) With rounded activations no two orders of summation
agree that well: a last bit carries values across rounding boundaries, which moves everything behind them.
What one bit in the embedding does to the fake-quantized path itself is the measure.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

import omniquant
from omniquant.models.load import load_model

FLOAT_ACTIVATIONS = ["W4A16g128", "W3A16", "W2A16g64", "W4A32"]
ROUNDED_ACTIVATIONS = ["W8A8", "W4A8", "W4A4"]
SEQLEN, TOKENS = 256, 8192


def models(shared):
    yield "omniquant-tiny", None
    yield shared / "data" / "stories260K", shared / "data" / "text" / "tinystories_eval.txt"


def quantized(name, text, scheme, method="rtn"):
    model = load_model(name)
    calibration = omniquant.calibration_windows(text, model, 8, 128)
    preset = "default" if method == "rtn" else "fast"
    result = omniquant.calibrate(model, calibration, scheme, method=method, preset=preset, progress=False)
    return result.fold(), omniquant.evaluation_windows(text, model, SEQLEN, TOKENS)


def after_one_bit(model, windows, seed):
    """Return the fake-quantized perplexity after the embedding changed in its last bits."""
    rng, embed = np.random.default_rng(seed), model.embed

    def moved(tokens):
        x = embed(tokens)
        return (x * (1 + 1e-7 * rng.standard_normal(x.shape))).astype(np.float32)

    model.embed = moved
    try:
        return model.perplexity(windows, runtime="fake")
    finally:
        del model.embed


def check_rounded(model, windows):
    fake = model.perplexity(windows, runtime="fake")
    moved = [after_one_bit(model, windows, seed) for seed in range(3)]
    spread = max(abs(math.log(p / fake)) for p in moved)
    assert abs(math.log(model.perplexity(windows) / fake)) <= max(1e-4, 3 * spread)


@pytest.mark.parametrize("scheme", FLOAT_ACTIVATIONS)
def test_float_activations_agree(scheme, shared):
    for name, text in models(shared):
        model, windows = quantized(name, text, scheme, "omniquant")
        fake = model.perplexity(windows, runtime="fake")
        assert model.perplexity(windows) == pytest.approx(fake, rel=1e-6 if scheme.endswith("32") else 1e-4)


@pytest.mark.parametrize("scheme", ROUNDED_ACTIVATIONS)
def test_rounded_activations_agree_as_well_as_one_bit_allows(scheme, shared):
    for name, text in models(shared):
        check_rounded(*quantized(name, text, scheme))


@pytest.fixture(scope="module")
def smollm2():
    path = os.environ.get("OMNIQUANT_SMOLLM2")
    if not path:
        pytest.skip("OMNIQUANT_SMOLLM2 does not name SmolLM2's .gguf")
    return Path(path)


# Rounded to 2 bits SmolLM2 is broken (perplexity 280,000): its logits are noise, and 3e-3 apart.
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["W4A16g128", "W3A16"])
def test_float_activations_agree_on_smollm2(scheme, smollm2, shared):
    text = shared / "data" / "text" / "wikitext2_valid.txt"
    model, windows = quantized(smollm2, text, scheme)
    fake = model.perplexity(windows[:4], runtime="fake")
    assert model.perplexity(windows[:4]) == pytest.approx(fake, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ROUNDED_ACTIVATIONS)
def test_rounded_activations_agree_on_smollm2(scheme, smollm2, shared):
    model, windows = quantized(smollm2, shared / "data" / "text" / "wikitext2_valid.txt", scheme)
    check_rounded(model, windows[:4])
