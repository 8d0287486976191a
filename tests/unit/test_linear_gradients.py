"""Gradients of every learnable of a single linear layer, against differences of its frozen surrogate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from random_blocks import Array, Arrays, Draw, double_core
from surrogate import Surrogate, check_direction, check_gradients

from omniquant import _core


@pytest.fixture
def double() -> Iterator[Any]:
    core = double_core()
    yield core
    core._tape(0)


@dataclass
class Layer:
    """The arguments of linear_loss."""

    weight: Array
    x: Array
    bias: Array | None
    options: dict[str, Any]
    epoch: int
    learnables: Arrays = field(default_factory=dict)

    def loss(self, core: Any, learnables: Arrays | None = None) -> tuple[float, Arrays]:
        """Return linear_loss at some learnables, the layer's own unless given."""
        theta = self.learnables if learnables is None else learnables
        loss, gradients = core.linear_loss(
            self.weight, self.x, self.bias, self.options, theta, epoch=self.epoch
        )
        return float(loss), gradients


def learnables(draw: Draw, layer: Layer) -> Arrays:
    """Return random learnables, away from where they start."""
    (out, width), options = layer.weight.shape, layer.options
    kind, theta = options["norm_map"], {}
    if options["lwc"] and options["w_bits"] < 16:
        groups = -(-width // options["group_size"]) if options["group_size"] else 1
        for side in ("max", "min"):
            theta[f"weight.lwc_{side}"] = draw.rng.uniform(0.5, 4, (out, groups)).astype(np.float32)
    if kind == "diagonal":
        theta["input.map"] = draw.diagonal(1, width)
    elif kind == "online":
        theta["input.map"] = draw.dominant(layer, 1, width)  # type: ignore[arg-type] # reads the options alone
    if options["shift"] and kind != "none":
        theta["input.shift"] = 0.3 * draw.normal(1, width)
    if options["rounding"] == "learned" and options["w_bits"] < 16:
        theta["weight.offset"] = draw.rng.uniform(-0.5, 0.5, (out, width)).astype(np.float32)
    return theta


def layer(seed: int, **forced: Any) -> Layer:
    """Draw a layer; one without anything to learn is drawn again."""
    draw = Draw(seed, **forced)
    options = draw.options({"head_dim": 2, "mlp": "plain"})
    learns = options["lwc"] or options["rounding"] == "learned"
    if options["norm_map"] == "none" and not (learns and options["w_bits"] < 16):
        return layer(seed + 100_000, **forced)
    rows, width, out = (int(n) for n in draw.rng.integers([1, 2, 1], [40, 25, 17]))
    x = draw.normal(rows, width)
    x[:, 0] *= 4  # an outlier channel
    weight = draw.normal(out, width) / np.float32(np.sqrt(width))
    bias = draw.normal(out) if draw.pick("bias", True, False) else None
    drawn = Layer(weight, x, bias, options, draw.pick("epoch", 0, 1, 2, 3))
    drawn.learnables = learnables(draw, drawn)
    return drawn


def many_bits(seed: int) -> Layer:
    """Return the seed's layer with its quantizers at 8 bits: ties are rare."""
    drawn = layer(seed)
    for options, key in ((drawn.options, "w_bits"), (drawn.options["activation"], "bits")):
        options[key] = max(options[key], 8)
    return drawn


def check_layers(core: Any, seeds: range) -> None:
    """Check random layers; the few with a kink at the base point are checked again without it."""
    kinks = [seed for seed in seeds if not check_gradients(core, layer(seed), np.random.default_rng(seed))]
    stubborn = [s for s in kinks if not check_gradients(core, many_bits(s), np.random.default_rng(s))]
    assert len(kinks) <= 0.1 * len(seeds), kinks
    assert len(stubborn) <= 0.03 * len(seeds), stubborn


def test_gradients_equal_differences_of_the_frozen_surrogate(double: Any) -> None:
    check_layers(double, range(300))


def test_the_random_layers_cover_every_kind() -> None:
    layers = [layer(seed) for seed in range(300)]
    names = {name for each in layers for name in each.learnables}
    assert names == {"weight.lwc_max", "weight.lwc_min", "input.map", "input.shift", "weight.offset"}
    for key, kinds in {
        "norm_map": {"none", "diagonal", "online"},
        "parametrization": {"relative", "absolute"},
        "w_bits": {2, 3, 4, 8, 16},
        "w_symmetric": {True, False},
        "group_size": {0, 3, 4, 7},
    }.items():
        assert {each.options[key] for each in layers} == kinds, key
    assert {each.options["activation"]["bits"] for each in layers} == {2, 3, 4, 6, 8, 16}
    assert {each.epoch for each in layers} == {0, 1, 2, 3}
    assert {each.bias is None for each in layers} == {True, False}


def test_a_wrong_gradient_would_be_seen(double: Any) -> None:
    drawn = layer(5, w_bits=4, lwc=True, norm_map="online", shift=True)
    surrogate = Surrogate(double, drawn)
    for name in drawn.learnables:
        surrogate.gradients[name] *= 1 + 1e-4
        with pytest.raises(pytest.fail.Exception, match=name):
            check_direction(surrogate, name, np.ones(drawn.learnables[name].shape))


@pytest.mark.parametrize("rows", [300, 700])
def test_the_loss_is_the_trainings(rows: int) -> None:
    """At the kept learnables it is what calibrate_linear reports, though that takes the rows in chunks."""
    drawn = layer(5, w_bits=4, lwc=True, norm_map="online", shift=True, batch_size=7, bits=4)
    drawn.x = Draw(1).normal(rows, drawn.weight.shape[1])
    result = _core.calibrate_linear(drawn.weight, drawn.x, drawn.bias, drawn.options)
    drawn.epoch = drawn.options["epochs"] - 1
    assert drawn.loss(_core, result["learnables"])[0] == pytest.approx(result["loss_final"], rel=1e-5)
