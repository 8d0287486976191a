"""What a packed linear refuses, and that it says what, where and which value."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from omniquant import _core
from omniquant.errors import ConfigError, NotFiniteError, UnsupportedError
from omniquant.kernels import Linear, available

N, K, GROUP = 6, 20, 8
CODES = np.random.default_rng(0).integers(0, 16, (N, K)).astype(np.uint8)
SCALES = np.ones((N, 3), np.float32)
ZEROS = np.full((N, 3), 7, np.uint8)
X = np.random.default_rng(1).standard_normal((4, K)).astype(np.float32)


def make(**changes):
    arguments = {"codes": CODES, "scales": SCALES, "zero_points": ZEROS, "bits": 4, "group_size": GROUP}
    arguments |= changes
    return Linear(arguments.pop("codes"), arguments.pop("scales"), arguments.pop("zero_points"), **arguments)


def with_value(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": CODES[0]}, "codes"),
        (
            {"codes": CODES[:, :0], "scales": SCALES[:, :0], "zero_points": None},
            "group_size 8 does not fit 0",
        ),
        (
            {"codes": CODES[:, :0], "group_size": None, "scales": SCALES[:, :0], "zero_points": None},
            "6 outputs and 0 inputs cannot be packed",
        ),
        ({"codes": with_value(CODES, (3, 5), 16)}, "code 16 at row 3 column 5 does not fit in 4 bits"),
        ({"codes": CODES.astype(np.int32) - 1}, "codes"),
        ({"scales": SCALES[:, :2]}, "scales"),
        ({"scales": SCALES[:5]}, "scales"),
        ({"scales": SCALES[0]}, "scales"),
        ({"zero_points": ZEROS[:, :1]}, "zero_points"),
        (
            {"zero_points": with_value(ZEROS, (2, 1), 16)},
            "zero point 16 of row 2 group 1 does not fit in 4 bits",
        ),
        ({"zero_points": ZEROS.astype(int) + 250}, "zero_points"),
        ({"bias": np.zeros(5)}, "bias"),
        ({"group_size": 21}, "group_size 21 does not fit 20 inputs"),
        ({"group_size": 0}, "group_size 0"),
        ({"group_size": 2**40}, "group_size 1099511627776"),
        ({"group_size": 10}, "scales"),
        ({"group_size": 2.0}, "group_size 2.0"),
        ({"bits": 1}, "bits 1"),
        ({"bits": 9}, "bits 9"),
        ({"bits": True}, "bits True"),
        ({"bits": 3}, "does not fit in 3 bits"),
        ({"activations": "int1"}, "activations 'int1'"),
        ({"full_range_activations": True}, "only symmetric activations have a full-range step"),
        ({"threads": 0}, "threads 0"),
    ],
)
def test_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scales_and_biases_must_be_finite(value):
    with pytest.raises(NotFiniteError, match=r"scale of row 4 group 2: -?(nan|inf) is not finite"):
        make(scales=with_value(SCALES, (4, 2), value))
    with pytest.raises(NotFiniteError, match=r"bias of row 1: -?(nan|inf) is not finite"):
        make(bias=with_value(np.zeros(N, np.float32), 1, value))


@pytest.mark.parametrize("activations", ["int8", "int4", "int16", "float"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_x_must_be_finite(value, activations):
    layer = make(activations=activations)
    with pytest.raises(NotFiniteError, match=r"x row 2 column 19: .* is not finite or too large to quantize"):
        layer(with_value(X, (2, 19), value))
    many = np.zeros((700, K), np.float32)
    many[651, 3] = many[690, 0] = value
    with pytest.raises(NotFiniteError, match="x row 651 column 3"):
        layer(many)
    assert np.isfinite(layer(X)).all()


@pytest.mark.parametrize("x", [X[:, :19], X[0, :0], np.float32(1), np.zeros((2, 3, 21))])
def test_x_of_another_width(x):
    with pytest.raises(ValueError, match="x"):
        make()(x)


def test_x_of_other_types_and_layouts():
    layer = make()
    expected = layer(X)
    half = X.astype(np.float16)
    for x in (np.asfortranarray(X), X[::-1][::-1], X.astype(np.float64), X.astype(">f4"), X.tolist()):
        np.testing.assert_array_equal(layer(x), expected)
    np.testing.assert_array_equal(layer(half), layer(half.astype(np.float32)))
    np.testing.assert_array_equal(layer(X.reshape(2, 2, K)), expected.reshape(2, 2, N))
    np.testing.assert_array_equal(layer(X[0]), expected[0])
    assert layer(X[:0]).shape == (0, N)
    for x in (X + 1j, np.array(["a"] * K), np.array([None] * K)):
        with pytest.raises((TypeError, ValueError), match=r"x|could not convert|must be"):
            layer(x)


def test_arguments_are_left_alone():
    arrays = {"codes": CODES, "scales": SCALES, "zero_points": ZEROS, "bias": np.zeros(N, np.float32)}
    read_only = {name: array.copy() for name, array in arrays.items()}
    for array in read_only.values():
        array.flags.writeable = False
    x = X.copy()
    x.flags.writeable = False
    np.testing.assert_array_equal(make(**read_only)(x), make(**arrays)(X))


def test_kernels_by_name():
    assert available()[0] == make().kernel
    assert "reference" in available()
    with pytest.raises(UnsupportedError, match='kernel "neon": there is none'):
        make(kernel="neon")


def test_the_environment_names_a_kernel():
    code = (
        "import numpy as np; from omniquant.kernels import Linear;"
        "print(Linear(np.zeros((1, 4), np.uint8), np.ones((1, 1)), bits=4).kernel)"
    )

    def run(kernel):
        environment = {**os.environ, "OMNIQUANT_KERNEL": kernel}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    assert run("reference").stdout.strip() == "reference"
    assert 'UnsupportedError: kernel "mmx"' in run("mmx").stderr


def test_only_what_was_packed_is_run():
    for other in (None, object(), 3, "layer"):
        with pytest.raises((TypeError, ValueError)):
            _core.linear_run(other, X)


def test_config_errors_are_of_the_package():
    with pytest.raises(ConfigError):
        make(bits=1)


def test_the_result_is_written_where_it_is_wanted():
    layer, out = make(), np.full((4, N), np.nan, np.float32)
    assert layer(X, out) is out
    assert np.array_equal(out, layer(X))


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.empty((4, N)), TypeError, "out: expected a writable, C-contiguous array of float32"),
        (np.empty((N, 4), np.float32).T, TypeError, "out: expected a writable"),
        (np.broadcast_to(np.float32(0), (4, N)), TypeError, "out: expected a writable"),
        ([[0.0] * N] * 4, TypeError, "out: expected a writable"),
        (np.empty((3, N), np.float32), ValueError, r"out: expected shape \(4, 6\), got \(3, 6\)"),
    ],
)
def test_an_out_that_is_no_place_for_the_result(out, error, message):
    with pytest.raises(error, match=message):
        make()(X, out)


def test_an_out_that_lies_on_the_input():
    room = np.zeros(4 * K, np.float32)
    with pytest.raises(ValueError, match="out: shares memory with x"):
        make()(room.reshape(4, K), room[: 4 * N].reshape(4, N))
