"""Arguments that are refused: what the message says, function by function of the core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from random_blocks import Draw

from omniquant import _core
from omniquant.errors import NotFiniteError, UnsupportedError
from omniquant.kernels import Linear

X = np.ones((3, 8), np.float32)
CODES = np.ones((4, 8), np.uint8)
SCALES = np.ones((4, 1), np.float32)


def packed(**changes: Any) -> object:
    arguments: dict[str, Any] = {
        "codes": CODES, "bits": 4, "group_size": 0, "scales": SCALES, "zero_points": None, "bias": None,
        "activation_bits": 8, "symmetric": False, "full_range": False, "kernel": None,
    }  # fmt: skip
    return _core.linear_pack(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"bits": 9}, ValueError, r"bits must be 2\.\.8, got 9"),
        ({"activation_bits": 1}, ValueError, r"activation bits must be 2\.\.8, or 16 for float, got 1"),
        ({"group_size": 9}, ValueError, "group_size 9 does not fit 8 inputs"),
        ({"group_size": -1}, ValueError, "group_size: expected at least 0, got -1"),
        ({"codes": 16 * CODES}, ValueError, "code 16 at row 0 column 0 does not fit in 4 bits"),
        (
            {"codes": CODES[:, :0], "scales": SCALES[:, :0]},
            ValueError,
            "4 outputs and 0 inputs cannot be",
        ),
        ({"bias": np.array([0, 0, np.nan, 0])}, NotFiniteError, "bias of row 2: nan is not finite"),
        ({"bias": np.zeros(3)}, ValueError, r"bias: expected shape \(4,\), got \(3,\)"),
        ({"scales": np.ones((4, 2))}, ValueError, r"scales: expected shape \(4, 1\), got \(4, 2\)"),
        ({"kernel": "abacus"}, UnsupportedError, "abacus"),
        ({"kernel": 3}, TypeError, "kernel must be a string"),
        ({"bits": "4"}, TypeError, "bits must be an integer"),
        ({"bits": 2**40}, TypeError, "bits must be a 32-bit integer"),
        ({"group_size": 2**70}, TypeError, "group_size must be a 64-bit integer"),
        ({"group_size": None}, TypeError, "group_size must be an integer"),
    ],
)
def test_packing_a_linear(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        packed(**changes)


def test_running_a_packed_linear() -> None:
    linear = packed()
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 8\), got \(3, 7\)"):
        _core.linear_run(linear, X[:, :7])
    with pytest.raises(NotFiniteError, match=r"x row 1 column 2: 3e\+38 is not finite or too large"):
        _core.linear_run(linear, np.where(np.arange(24).reshape(3, 8) == 10, 3e38, 1))
    for other in (None, 3, "linear"):
        with pytest.raises((TypeError, ValueError), match="PyCapsule_GetPointer"):
            _core.linear_run(other, X)


def test_what_a_packed_linear_says_of_itself() -> None:
    linear = Linear(CODES, SCALES, bits=4)
    name, size = _core.linear_info(linear._packed)
    assert name in _core.kernel_names()
    assert (linear.kernel, linear.nbytes) == (name, size)
    assert size >= CODES.size // 2 + SCALES.nbytes


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: _core.fake_quantize(X), TypeError, r"fake_quantize\(\) needs bits"),
        (lambda: _core.fake_quantize(X, 4), TypeError, "positional"),
        (lambda: _core.fake_quantize(X, bits=4, more=1), TypeError, "more"),
        (lambda: _core.fake_quantize(), TypeError, "x"),
        (lambda: _core.project_dominant(np.eye(2), "x"), TypeError, "tau must be a number"),
        (lambda: _core.project_dominant(np.eye(2), 1), ValueError, r"tau: expected a number in \(0, 1\)"),
        (lambda: _core.affine_forward(np.eye(2), stability=np.inf), ValueError, "expected a finite"),
        (lambda: _core.affine_forward(np.eye(2), parametrization="a"), ValueError, "relative, absolute"),
        (lambda: _core.affine_forward(np.eye(2), parametrization=1), TypeError, "must be a string"),
        (lambda: _core.affine_forward(np.eye(2), parametrization="\ud800"), UnicodeError, "surrogates"),
        (lambda: _core.varah_bound(np.zeros((2, 3))), ValueError, r"a: expected shape \(\.\.\., 2, 2\),"),
        (lambda: _core.let_forward(X, X, X[0], None, X[0]), ValueError, r"bias: expected shape \(3,\),"),
        (lambda: _core.pack(300 * np.ones(3), 4), TypeError, "codes: cannot convert an array"),
    ],
)  # fmt: skip
def test_arguments(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize(
    ("key", "value", "kind", "message"),
    [
        ("epochs", 1.5, TypeError, r'options\["epochs"\] must be an integer'),
        ("epochs", -1, ValueError, r'options\["epochs"\]: expected at least 0, got -1'),
        ("alpha", "half", TypeError, r'options\["alpha"\] must be a number'),
        ("w_bits", 9, ValueError, r'options\["w_bits"\]: expected 2\.\.8, or 16 for none, got 9'),
        ("loss", "l1", ValueError, r'options\["loss"\]: expected one of mse, token, relative; got "l1"'),
        ("loss", 3, TypeError, r'options\["loss"\] must be a string'),
        ("up_down", 2, ValueError, r'options\["up_down"\]: expected a number in \[0, 1\], got 2'),
        ("activation", 4, TypeError, "activation must be a dict"),
        ("activation", {}, ValueError, 'activation lacks "bits"'),
    ],
)
def test_options(key: str, value: object, kind: type[Exception], message: str) -> None:
    case = Draw(1).case()
    case.options[key] = value
    with pytest.raises(kind, match=message):
        case.loss(_core)


def test_what_should_be_dicts() -> None:
    case = Draw(1).case()
    for index, name in ((0, "spec"), (1, "weights"), (8, "options")):
        arguments = list(case.data())
        arguments[index] = [1]
        with pytest.raises(TypeError, match=f"{name} must be a dict"):
            _core.block_loss(*arguments, case.learnables)
    with pytest.raises(TypeError, match="learnables must be a dict"):
        _core.block_loss(*case.data(), 3)  # type: ignore[arg-type]
    rotary = Draw(1, rope=True, head_dim=4, tokens=5).case()
    rotary.cos = rotary.cos[:3]
    with pytest.raises(ValueError, match="cos: expected at least 5 rows, one a position, got 3"):
        rotary.loss(_core)


def test_maps_that_a_block_cannot_have() -> None:
    plain = Draw(1, mlp="plain").case()
    plain.options["up_down"] = True
    with pytest.raises(UnsupportedError, match="only gated MLPs are linear between up and down"):
        plain.loss(_core, {"up_down.map": np.ones((1, plain.spec["ffn_size"]))} | plain.learnables)
    odd = Draw(1, rope=False, head_dim=3).case()
    odd.options["qk_map"] = "rotation"
    with pytest.raises(ValueError, match="paired maps are for q and k with an even head_dim"):
        odd.calibrate()
