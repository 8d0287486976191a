"""Scales as an export format stores them: what is rounded to, and that nothing is lost on the way out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from small_run import VOCAB, small_tokens
from synthetic import write_llama_folder

from omniquant import _core
from omniquant.calibration import calibrate
from omniquant.config import CalibrationOptions, QuantConfig, core_options
from omniquant.errors import ConfigError
from omniquant.models.load import load_model

F32 = npt.NDArray[np.float32]


def matrices() -> F32:
    """Rows of all magnitudes float16 can scale, and of some it cannot."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 64)) - np.linspace(-4, 4, 400)[:, None]
    x *= 10.0 ** rng.uniform(-8, 4, (400, 1))
    x[0], x[1], x[2] = 0, 1e-12, np.abs(x[2])
    return x.astype(np.float32)


def as_half(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    return values.astype(np.float16).astype(np.float64)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_eleven_bits_are_a_float16(bits, symmetric):
    x = matrices()
    codes, scale, zero = _core.quantize(x, bits=bits, group_size=32, symmetric=symmetric, scale_bits=11)
    _, exact, _ = _core.quantize(x, bits=bits, group_size=32, symmetric=symmetric)
    np.testing.assert_array_equal(as_half(scale), scale)
    normal = exact >= 2.0**-14
    assert (np.abs(scale / exact - 1)[normal] <= 2.0**-11).all()
    assert (np.abs(scale - exact)[~normal & (exact > 2.0**-25)] <= 2.0**-25).all()
    assert scale.min() == 2.0**-24
    x_hat = _core.fake_quantize(x, bits=bits, group_size=32, symmetric=symmetric, scale_bits=11)
    np.testing.assert_array_equal(x_hat, _core.dequantize(codes, scale, zero, group_size=32))


def test_seven_bits_leave_the_zero_point_its_four():
    _, scale, zero = _core.quantize(matrices(), bits=4, group_size=32, scale_bits=7)
    offset = scale.astype(np.float64) * zero
    np.testing.assert_array_equal(as_half(offset), offset)
    assert set(zero.ravel()) == set(range(16))
    significand, _ = np.frexp(scale)
    np.testing.assert_array_equal(significand * 128, np.rint(significand * 128))


def test_a_huge_scale_stays_in_range():
    x = np.full((1, 32), 1e30, np.float32)
    _, scale, _ = _core.quantize(x, bits=4, scale_bits=11)
    assert float(scale[0, 0]) == 65504.0
    _, scale, zero = _core.quantize(-x, bits=4, scale_bits=7)
    assert np.isfinite(as_half(scale * zero)).all()


def test_rounding_is_straight_through():
    rng = np.random.default_rng(1)
    x, dout = rng.standard_normal((2, 4, 32)).astype(np.float32)
    logits = np.full((4, 1), 3.0, np.float32)
    with_logits = {"bits": 4, "max_logit": logits, "min_logit": logits}
    plain = _core.fake_quantize_backward(x, dout, **with_logits)
    rounded = _core.fake_quantize_backward(x, dout, **with_logits, scale_bits=11)
    for a, b in zip(plain[1:], rounded[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=0.2, atol=0.05)


@pytest.mark.parametrize("bad", [-1, 12])
def test_other_numbers_of_bits_are_refused(bad):
    with pytest.raises(ValueError, match="scale_bits"):
        _core.quantize(np.ones((1, 4), np.float32), bits=4, scale_bits=bad)


@pytest.mark.parametrize(
    ("target", "scheme", "expected"),
    [
        ("any", "W4A16", 0),
        ("onnx", "W4A16", 0),
        ("gptq", "W3A16", 11),
        ("awq", "W4A16", 11),
        ("gguf", "W4A16", 7),
        ("gguf", "W4sA16", 11),
    ],
)
def test_targets_choose_the_bits(target, scheme, expected):
    config = QuantConfig.parse(scheme)
    options = CalibrationOptions.for_method("rtn", config, target=target)
    assert core_options(config, options, block=0, rope=True)["scale_bits"] == expected


@pytest.mark.parametrize("method", ["rtn", "omniquant"])
def test_a_calibration_keeps_to_its_target(method, tmp_path):
    sizes = {"hidden": 32, "heads": 4, "kv_heads": 4, "ffn": 64}  # GPTQ packs inputs by 32
    model = load_model(write_llama_folder(tmp_path / "model", **sizes, vocab=VOCAB, seed=7))
    options = {"epochs": 2, "target": "gptq"}
    result = calibrate(model, small_tokens(), "W4A16", method=method, progress=False, **options)
    for index in range(model.num_layers):
        scales = [v for n, v in result.state(index).folded.items() if n.endswith(".scale")]
        assert len(scales) == 7
        for scale in scales:
            np.testing.assert_array_equal(as_half(scale), scale)


def test_options_of_before_there_were_targets_are_read():
    options = CalibrationOptions.for_method("rtn", QuantConfig.parse("W4A16"))
    old = {name: value for name, value in options.to_dict().items() if name != "target"}
    assert CalibrationOptions.from_dict(old) == options
    with pytest.raises(ConfigError, match="target 'pickle' is not one of any, compressed-tensors"):
        CalibrationOptions.for_method("rtn", QuantConfig.parse("W4A16"), target="pickle")
