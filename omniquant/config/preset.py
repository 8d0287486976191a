"""Budgets of training: the papers', or a small one at rates that make the most of it."""

from __future__ import annotations

from typing import Any

from omniquant.config.scheme import QuantConfig

PRESETS = ("default", "fast")
# Windows and tokens in each that quantize takes where nobody says, and that bench therefore projects to.
SAMPLES, SEQLEN = 32, 256


def preset_values(preset: str, scheme: QuantConfig) -> dict[str, Any]:
    """Return the options in which a preset differs from the default for a method that trains.

    fast takes 3 epochs of the papers' 20, or 8 of 40 at 2 bits, at rates a cosine takes down from several
    times theirs: what few steps lack is the way they can go, not precision at its end. Maps and clipping
    alone do not get there; with the rounding learned beside them, which costs no time, they get farther.
    """
    if preset != "fast":
        return {}
    epochs = 8 if scheme.w_bits == 2 else 3
    rates = {"lr_let": 3e-2, "lr_lwc": 6e-2, "lr_rounding": 3.0}
    return {"epochs": epochs, "schedule": "cosine", "rounding": "learned"} | rates
