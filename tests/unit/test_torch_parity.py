"""The core's loss and gradients against torch autograd on the same block, written plainly in torch_block.

full_range activations are left out: their negative extreme sits at -(2^n - 1) / 2, halfway between two
codes, so the last bit of a product decides where it goes.  Blocks with a tie for an extreme are left out
for the same reason; what happens at an exact tie is checked on the quantizer alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from autograd_parity import comparable, count_agreeing
from random_blocks import Case, Draw, double_core, same_decisions

from omniquant import _core

torch = pytest.importorskip("torch", reason="torch, a test-only extra, is not installed")


@pytest.fixture(scope="module")
def double() -> Any:
    return double_core()


def test_double_core_equals_autograd(double: Any) -> None:
    cases = (Draw(seed, full_range=False).case() for seed in range(5000, 5120))
    assert count_agreeing(double, comparable(double, cases), 1e-10, 1e-8) >= 80


def test_float_core_equals_autograd_to_rounding(double: Any) -> None:
    cases = (
        Draw(
            seed, full_range=False, epoch=3, w_bits=(2, 3, 4, 8)[seed % 4], tokens=2 + seed % 7, lwc=True
        ).case()
        for seed in range(6000, 6060)
    )
    alike = (case for case in cases if same_decisions(case, double))
    assert count_agreeing(_core, comparable(double, alike), 1e-4, 1e-3) >= 36


def test_sinks_in_float_equal_autograd(double: Any) -> None:
    def with_sinks(seed: int) -> Case:
        case = Draw(seed, full_range=False, k_bits=2 + seed % 3, v_bits=3, tokens=5).case()
        case.options["activation"]["sink_tokens"] = 1 + seed % 4
        return case

    cases = comparable(double, map(with_sinks, range(5000, 5040)))
    assert count_agreeing(double, cases, 1e-10, 1e-8) >= 20


@pytest.mark.parametrize("symmetric", [False, True])
def test_ties_share_the_gradient_as_autograd_does(double: Any, symmetric: bool) -> None:
    from torch_block import fake_quantize

    rng = np.random.default_rng(0)
    x = rng.choice([-2.5, -1.0, 0.0, 0.4, 1.75, 3.0], size=(50, 12))
    dout = rng.standard_normal(x.shape)
    logits = rng.uniform(0, 4, (2, 50, 3))
    inputs = [torch.from_numpy(a).requires_grad_() for a in (x, *logits)]
    out = fake_quantize(inputs[0], 3, symmetric, group=5, clip=(inputs[1], inputs[2]))
    out.backward(torch.from_numpy(dout))
    settings = {"bits": 3, "group_size": 5, "symmetric": symmetric}
    clip = {"max_logit": logits[0], "min_logit": logits[1]}
    np.testing.assert_array_equal(double.fake_quantize(x, **settings, **clip), out.detach().numpy())
    gradients = double.fake_quantize_backward(x, dout, **settings, **clip)
    for ours, theirs in zip(gradients, inputs, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-12, atol=1e-12)
