"""Learned rounding: an offset a weight inside round(), trained by signed descent with everything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from random_blocks import Case, Draw, linear_shapes
from small_run import contents, small_model, small_tokens

import omniquant
from omniquant import CalibrationOptions, QuantConfig, _core
from omniquant.errors import ConfigError

PLAIN = {
    "norm_map": "none", "vo_map": "none", "qk_map": "none", "up_down": False, "input_map": "none",
    "lwc": False, "lac": False,
}  # fmt: skip


def block(seed: int, **forced: Any) -> Case:
    """Return a block whose rounding is all that is learned."""
    settings = {"w_bits": 3, "samples": 3, "tokens": 9, "epochs": 10, "rounding": "learned"}
    return Draw(seed, **{**PLAIN, **settings, "schedule": "cosine", **forced}).case()


def test_weights_go_to_one_of_their_two_codes_and_the_loss_falls() -> None:
    ratios = []
    for seed in range(12):
        case = block(seed)
        learned, nearest = case.calibrate(), block(seed, rounding="nearest").calibrate()
        ratios.append(learned["loss_final"] / learned["loss_rtn"])
        for name in linear_shapes(case.spec):
            moved = learned["folded"][f"{name}.codes"].astype(int) - nearest["folded"][f"{name}.codes"]
            assert np.abs(moved).max() <= 1
            for key in (f"{name}.scale", f"{name}.zero_point"):
                np.testing.assert_array_equal(learned["folded"][key], nearest["folded"][key])
    assert np.median(ratios) < 0.7


def test_offsets_are_kept_within_half_a_step() -> None:
    farthest: list[float] = []
    block(3, lr_rounding=30.0).calibrate(
        on_epoch=lambda _, theta: farthest.append(max(np.abs(v).max() for v in theta.values()))
    )
    assert farthest == [0.5] * 10


def test_a_step_moves_every_offset_by_the_rate_over_the_steps() -> None:
    seen: list[dict[str, Any]] = []
    case = block(5, schedule="constant", epochs=4, samples=2, batch_size=2, lr_rounding=0.8)
    case.calibrate(on_epoch=lambda _, theta: seen.append(theta))
    moved = np.concatenate([np.abs(v).ravel() for v in seen[0].values()])
    assert set(np.unique(moved)) <= {np.float32(0), np.float32(0.2)}
    assert (moved > 0).mean() > 0.5


def test_offsets_that_ruin_the_block_are_not_kept() -> None:
    kept = {block(seed, lr_rounding=100.0, schedule="constant").calibrate()["kept"] for seed in range(12)}
    assert kept & {"initial", "rtn"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a model of two blocks."""
    return small_model(tmp_path_factory.mktemp("model"))


def run(model: Any, **options: Any) -> Any:
    """Calibrate it with its rounding learned."""
    settings = {"epochs": 2, "progress": False, "threads": 1, "rounding": "learned"} | options
    return omniquant.calibrate(model, small_tokens(), "W3A16g8", **settings)


def test_threads_and_resume_change_no_bit(model: Any, tmp_path: Any) -> None:
    run(model, output=tmp_path / "one")
    run(model, output=tmp_path / "three", threads=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    (tmp_path / "three" / "block_00001.safetensors").unlink()
    run(model, output=tmp_path / "three", resume=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_offsets_are_not_stored(model: Any) -> None:
    result = run(model)
    assert not [name for name in result.state(0).learnables if name.endswith(".offset")]
    assert any(name.endswith(".lwc_max") for name in result.state(0).learnables)


def test_a_single_layer_learns_its_rounding_too() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 24))
    x = rng.standard_normal((256, 6)) @ rng.standard_normal((6, 24))  # of white inputs nearest is the best
    losses = [
        omniquant.calibrate_linear(weight, x, "W3A16", rounding=rounding, epochs=20).loss_final
        for rounding in ("nearest", "learned")
    ]
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("method", ["rtn", "smoothquant"])
def test_methods_that_train_nothing_refuse_it(method: str) -> None:
    with pytest.raises(ConfigError, match="rounding 'learned' is trained"):
        CalibrationOptions.for_method(method, QuantConfig.parse("W4A4"), rounding="learned")


def test_results_of_before_are_read_as_nearest() -> None:
    values = CalibrationOptions.for_method("omniquant", QuantConfig.parse("W3A16")).to_dict()
    del values["rounding"], values["lr_rounding"]
    assert CalibrationOptions.from_dict(values).rounding == "nearest"


def test_the_core_rounds_by_the_offsets_it_is_given() -> None:
    case = block(1)
    case.learnables = {name: np.full(v.shape, 0.5, np.float32) for name, v in case.learnables.items()}
    up = case.fold(_core)
    case.learnables = {name: np.full(v.shape, -0.5, np.float32) for name, v in case.learnables.items()}
    down = case.fold(_core)
    for name in linear_shapes(case.spec):
        step = up[f"{name}.codes"].astype(int) - down[f"{name}.codes"]
        inside = (down[f"{name}.codes"] > 0) & (up[f"{name}.codes"] < 7)
        assert set(np.unique(step[inside])) <= {0, 1}
        assert step[inside].mean() > 0.9
