"""Outlier channels before Mixtral's experts: learned maps take them out of the way, clipping does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_mixtral import model_of, plant_outliers, random_tensors, tokens_of

import omniquant
from omniquant.forward import float_logits
from omniquant.models.rotated import RotatedModel, Rotation

PLAIN = random_tensors()
PLANTED = plant_outliers(PLAIN, (3, 17, 29), norms=("post_attention_layernorm",))
HELD_OUT = tokens_of(9, 4, 64)


def error(scheme: str, method: str, **options: Any) -> float:
    """Return the relative error of the logits of held-out tokens."""
    model = model_of(PLANTED)
    result = omniquant.calibrate(
        model, tokens_of(1, 16, 64), scheme, method=method, progress=False, threads=1, **options
    )
    expected = float_logits(model, HELD_OUT)
    return float(np.linalg.norm(float_logits(result.fold(), HELD_OUT) - expected) / np.linalg.norm(expected))


def test_planting_changes_nothing() -> None:
    before, after = (float_logits(model_of(tensors), HELD_OUT) for tensors in (PLAIN, PLANTED))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("scheme", ["W4A4", "W6A6"])
def test_learned_maps_help_experts(scheme: str) -> None:
    plain = error(scheme, "rtn")
    assert error(scheme, "omniquant", epochs=3) < 0.6 * plain
    assert error(scheme, "affinequant", epochs=3) < 0.6 * plain
    assert error(scheme, "omniquant", epochs=3, norm_map="none") > 0.8 * plain


def test_a_rotated_basis_spreads_the_outliers_and_keeps_the_function() -> None:
    model = model_of(PLANTED)
    expected, found = (float_logits(each, HELD_OUT) for each in (model, RotatedModel(model, Rotation())))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert error("W6A6", "rtn", rotation="folded") < 0.6 * error("W6A6", "rtn")


@pytest.mark.parametrize("scheme", ["W3A16", "W4A4"])
def test_auto_chooses_what_experts_can(scheme: str) -> None:
    result = omniquant.calibrate(
        model_of(PLANTED), tokens_of(1, 4, 32), scheme, method="auto", epochs=1, progress=False, threads=1
    )
    assert (result.options.start, result.options.rotation, result.options.input_map) == (
        "paper",
        "none",
        "none",
    )
    assert all(block.loss_final < block.loss_rtn for block in result.blocks)
