"""A single linear layer: never worse than rounding, the result is what was measured, gradients, messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import omniquant as oq

F64 = npt.NDArray[np.float64]
METHODS = ("rtn", "smoothquant", "omniquant", "affinequant")


def layer(seed: int = 0, rows: int = 300, K: int = 24, M: int = 16) -> tuple[F64, F64, F64]:
    """Return weight [M, K], x [rows, K] with outlier channels and offsets, bias [M]."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, K)) * np.exp(rng.standard_normal(K)) + rng.standard_normal(K)
    x[:, 3] *= 20
    return rng.standard_normal((M, K)), x, rng.standard_normal(M)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", ["W4A4", "W3A16", "W2A16g16", "W4sA8sf", "W3A8g7", "W16A4"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_result_is_what_was_measured(scheme: str, method: str, with_bias: bool) -> None:
    weight, x, bias = layer()
    result = oq.calibrate_linear(weight, x, scheme, method=method, bias=bias if with_bias else None, epochs=5)
    target = x @ weight.T + (bias if with_bias else 0)
    measured = ((result(x) - target) ** 2).mean()
    np.testing.assert_allclose(measured, result.loss_final, rtol=1e-3)
    assert result.loss_final <= result.loss_initial
    assert result.loss_final <= result.loss_rtn
    if result.codes is not None:
        assert result.scale is not None
        assert result.zero_point is not None
        group_size = result.config.group_size or 0
        np.testing.assert_array_equal(
            oq.dequantize(result.codes, result.scale, result.zero_point, group_size=group_size), result.weight
        )
        assert result.codes.max() < 2**result.config.w_bits


@pytest.mark.parametrize("scheme", ["W4A4", "W3A16", "W2A16g16", "W3A8"])
def test_the_order_of_the_methods(scheme: str) -> None:
    weight, x, _ = layer()
    losses = {}
    for method in METHODS:
        longer: Any = {"epochs": 40} if method in ("omniquant", "affinequant") else {}
        result = oq.calibrate_linear(weight, x, scheme, method=method, batch_size=16, **longer)
        losses[method] = result.loss_final
    assert losses["affinequant"] < 0.9 * losses["omniquant"]
    assert losses["omniquant"] < 0.95 * losses["rtn"]
    assert losses["affinequant"] < losses["smoothquant"] <= losses["rtn"]


@pytest.mark.parametrize("scheme", ["W4A4", "W3A16g5"])
def test_rtn_is_round_to_nearest(scheme: str) -> None:
    weight, x, _ = layer()
    config = oq.QuantConfig.parse(scheme)
    result = oq.calibrate_linear(weight, x, config, method="rtn")
    plain = oq.fake_quantize(weight, bits=config.w_bits, group_size=config.group_size or 0)
    np.testing.assert_array_equal(result.weight, plain)
    seen = oq.fake_quantize(x, bits=4) if config.a_bits == 4 else x
    np.testing.assert_allclose(((seen @ plain.T - x @ weight.T) ** 2).mean(), result.loss_rtn, rtol=1e-4)
    assert result.loss_rtn == result.loss_initial == result.loss_final
    assert result.map is result.shift is result.margins is None


@pytest.mark.parametrize("input_map", ["diagonal", "affine"])
def test_without_quantization_the_map_is_an_equivalence(input_map: Any) -> None:
    weight, x, bias = layer()
    result = oq.calibrate_linear(
        weight, x, "W16A8", method="affinequant", input_map=input_map, bias=bias, shift=True, epochs=3
    )
    assert result.map is not None
    assert result.map_inverse is not None
    assert result.shift is not None
    moved = x - result.shift
    moved = moved * result.map_inverse if input_map == "diagonal" else moved @ result.map_inverse
    target = x @ weight.T + bias
    assert np.abs(moved @ result.weight.T + result.bias - target).max() <= 1e-5 * np.abs(target).max()


def test_the_trace_and_the_callback_tell_the_same() -> None:
    weight, x, _ = layer()
    seen: list[tuple[int, int, float, float]] = []
    result = oq.calibrate_linear(
        weight, x, "W3A16", epochs=4, batch_size=64, on_step=lambda *told: seen.append(told)
    )
    assert [step for _, step, _, _ in seen] == list(range(20))
    assert result.steps == 20
    losses = np.array([loss for _, _, loss, _ in seen]).reshape(4, 5)
    np.testing.assert_allclose(losses.mean(axis=1), result.trace, rtol=1e-12)
    assert np.isnan([margin for *_, margin in seen]).all()


def test_a_callback_may_stop_it() -> None:
    class StopError(Exception):
        pass

    def stop(*told: object) -> None:
        raise StopError

    with pytest.raises(StopError):
        oq.calibrate_linear(*layer()[:2], "W3A16", on_step=stop)


def test_the_same_bits_again_and_at_any_number_of_threads() -> None:
    weight, x, bias = layer(rows=700, K=40, M=70)
    one, again, two = (
        oq.calibrate_linear(
            weight, x, "W3A4g16", method="affinequant", bias=bias, epochs=3, threads=threads, seed=5
        )
        for threads in (1, 1, 2)
    )
    other = oq.calibrate_linear(weight, x, "W3A4g16", method="affinequant", bias=bias, epochs=3, seed=6)
    assert not np.array_equal(one.weight, other.weight)
    for name, value in vars(one).items():
        for twin in (again, two):
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, getattr(twin, name), err_msg=name)
            elif name != "learnables":
                assert value == getattr(twin, name), name


def test_rows_may_come_as_windows() -> None:
    weight, x, _ = layer(rows=60)
    flat = oq.calibrate_linear(weight, x, "W3A16", epochs=2)
    windows = oq.calibrate_linear(weight, x.reshape(3, 20, -1), "W3A16", epochs=2)
    np.testing.assert_array_equal(flat.weight, windows.weight)
    assert windows(x.reshape(3, 20, -1)).shape == (3, 20, 16)


def test_a_step_too_long_falls_back_to_the_best_start() -> None:
    result = oq.calibrate_linear(*layer()[:2], "W4A4", lr_lwc=1e3, lr_let=1e3, epochs=2)
    assert result.kept in ("initial", "rtn")
    assert result.loss_final == min(result.loss_initial, result.loss_rtn)


def test_shapes_and_choices_are_checked() -> None:
    weight, x, bias = layer()
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 24\), got \(300, 23\)"):
        oq.calibrate_linear(weight, x[:, :23], "W4A4")
    with pytest.raises(ValueError, match="bias: expected shape"):
        oq.calibrate_linear(weight, x, "W4A4", bias=bias[:3])
    with pytest.raises(oq.ConfigError, match="input_map 'full'"):
        oq.calibrate_linear(weight, x, "W4A4", input_map="full")  # type: ignore[arg-type]
    with pytest.raises(oq.ConfigError, match="affine map"):
        oq.calibrate_linear(weight, x, "W4A4", method="omniquant", input_map="affine")
    with pytest.raises(oq.ConfigError, match="unknown option 'epoch'"):
        oq.calibrate_linear(weight, x, "W4A4", epoch=3)
    with pytest.raises(oq.ConfigError, match="scheme 'W1A4'"):
        oq.calibrate_linear(weight, x, "W1A4")
