"""calibrate_block's promises: never worse than its start, errors that name the place, exact folds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from random_blocks import Array, Arrays, Case, Draw, dequantized, learnable_shapes, linear_shapes

from omniquant import _core
from omniquant.errors import NotDominantError, NotFiniteError

STEP = tuple[int, int, float, float]


def trained(case: Case, **keywords: Any) -> tuple[dict[str, Any], list[STEP]]:
    """Return calibrate_block's result and what its hook was told."""
    steps: list[STEP] = []
    result = case.calibrate(on_step=lambda *step: steps.append(step), **keywords)
    return result, steps


def quantized(seed: int, **forced: Any) -> Case:
    """Return a block with quantized weights and a few windows."""
    bits = (2, 3, 4, 8)[seed % 4]
    return Draw(seed, **{"w_bits": bits, "samples": 3, "tokens": 6, "epochs": 3, **forced}).case()


def hostile(seed: int, **forced: Any) -> Case:
    """Return a block whose affine maps lose dominance unless someone looks after them."""
    harsh = {
        "parametrization": "absolute",
        "stability": 1.0,
        "lr_let": 0.3,
        "epochs": 6,
        "schedule": "constant",
    }
    maps = {"vo_map": "affine", "qk_map": "full", "norm_map": "online"}
    return quantized(seed, **{**harsh, **maps, "head_dim": 8, **forced})


# ---- results ----------------------------------------------------------------


@pytest.mark.parametrize("best_iterate", [True, False])
def test_the_result_is_never_worse_than_its_start_or_rounding(best_iterate: bool) -> None:
    kept = set()
    for seed in range(60):
        # Every third run is torn apart by its learning rates.
        wild = {"lr_lwc": 5.0, "lr_let": 2.0, "lr_rounding": 50.0} if seed % 3 == 0 else {}
        result = quantized(seed, best_iterate=best_iterate, dominance="project", **wild).calibrate()
        assert result["loss_final"] <= result["loss_initial"]
        assert result["loss_final"] <= result["loss_rtn"]
        kept.add(result["kept"])
    assert kept >= {"final", "initial", "rtn"} | ({"best"} if best_iterate else set())


def test_losses_are_those_of_few_windows_evenly_where_there_are_more() -> None:
    case = quantized(0, samples=40, epochs=1, lr_lwc=0.0, lr_let=0.0, lr_rounding=0.0)
    result = case.calibrate()
    judges = [i * 40 // 32 for i in range(32)]
    assert _core.judges(40, case.x_fp.shape[1]) == judges
    few = replace(case, x_fp=case.x_fp[judges], x_q=case.x_q[judges], targets=case.targets[judges])
    if case.aug_targets is not None:
        few = replace(few, aug_targets=case.aug_targets[judges])
    loss, _ = few.loss(_core, result["learnables"])
    assert result["loss_final"] == pytest.approx(loss, rel=1e-6)
    assert result["trace"][0] == pytest.approx(case.loss(_core, result["learnables"])[0], rel=1e-6)


@pytest.mark.parametrize(
    ("samples", "tokens", "expected"),
    [(128, 256, 32), (128, 300, 28), (64, 512, 16), (64, 2048, 8), (5, 2048, 5), (3, 16, 3), (64, 1, 32)],
)
def test_as_many_windows_as_make_8192_tokens_judge(samples: int, tokens: int, expected: int) -> None:
    assert len(_core.judges(samples, tokens)) == expected


def test_targets_are_given_as_they_are_computed() -> None:
    case = quantized(1)
    there = case.calibrate()
    given: list[int] = []
    late = replace(case, targets=np.zeros_like(case.targets))

    def put(window: int, y: Array) -> None:
        given.append(window)
        late.targets[window] = y

    result = late.calibrate(on_target=put)
    assert given == [0, 1, 2]
    np.testing.assert_array_equal(late.targets, case.forward(_core, case.weights, case.x_fp))
    assert result["loss_rtn"] == pytest.approx(there["loss_rtn"], rel=1e-5)
    with pytest.raises(ZeroDivisionError):
        late.calibrate(on_target=lambda window, y: 1 // 0)


def test_training_lowers_the_loss() -> None:
    ratios = []
    for seed in range(20):
        result, _ = trained(quantized(seed, epochs=12, lwc=True, norm_map="diagonal", w_bits=3))
        ratios.append(result["loss_final"] / result["loss_initial"])
    assert np.median(ratios) < 0.9


def test_steps_epochs_and_trace_are_reported() -> None:
    case = quantized(1, samples=3, epochs=4, batch_size=2)
    result, steps = trained(case)
    assert result["steps"] == 8  # two micro-batches of three windows
    assert [step[:2] for step in steps] == [(i // 2, i) for i in range(8)]
    losses = np.array([step[2] for step in steps]).reshape(4, 2)
    np.testing.assert_allclose(result["trace"], losses.mean(axis=1), rtol=1e-12)
    assert set(result["learnables"]) == set(learnable_shapes(case))


def test_no_epochs_train_nothing() -> None:
    for seed in range(12):
        result, steps = trained(quantized(seed, epochs=0, dominance="project"))
        better = "initial" if result["loss_initial"] <= result["loss_rtn"] else "rtn"
        assert steps == []
        assert result["steps"] == 0
        assert result["trace"].shape == (0,)
        assert result["loss_final"] == min(result["loss_initial"], result["loss_rtn"])
        assert result["kept"] in ("final", better)


def test_rounding_without_learnables_is_the_plain_quantizer() -> None:
    off: dict[str, Any] = {
        "norm_map": "none",
        "vo_map": "none",
        "qk_map": "none",
        "up_down": False,
        "lwc": False,
        "rounding": "nearest",
    }
    case = quantized(4, epochs=0, **off)
    result = case.calibrate()
    assert result["learnables"] == {}
    assert result["loss_rtn"] == result["loss_initial"] == result["loss_final"]
    options = {"group_size": case.options["group_size"], "symmetric": case.options["w_symmetric"]}
    for name in linear_shapes(case.spec):
        plain = _core.fake_quantize(case.weights[f"{name}.weight"], bits=case.options["w_bits"], **options)
        np.testing.assert_array_equal(
            dequantized(_core, result["folded"], case.options)[f"{name}.weight"], plain
        )


def test_inputs_are_not_modified() -> None:
    case = quantized(2)
    arrays = {**case.weights, "x_fp": case.x_fp, "x_q": case.x_q, "targets": case.targets}
    before = {key: value.copy() for key, value in arrays.items()}
    case.calibrate()
    assert all(np.array_equal(before[key], arrays[key]) for key in arrays)


# ---- folding ----------------------------------------------------------------


def test_folding_the_learnables_gives_the_folded_block() -> None:
    for seed in range(30):
        case = quantized(seed, dominance="project", w_bits=(2, 4, 16)[seed % 3])
        result = case.calibrate()
        folded = case.fold(_core, result["learnables"])
        assert folded.keys() == result["folded"].keys()
        for key, value in folded.items():
            np.testing.assert_array_equal(value, result["folded"][key], err_msg=key)


def loss_of_folded(case: Case, folded: Arrays) -> float:
    """Return the training loss of what a user of the folded block would run, written out in NumPy."""
    weights = dequantized(_core, folded, case.options)
    y = case.forward(_core, weights, case.x_q, activation=case.options["activation"]).astype(np.float64)
    energy = np.ones(y.shape[:2])
    if case.options["loss"] == "token":
        energy = ((case.targets.astype(np.float64) - case.x_fp) ** 2).mean(axis=2)
    if case.options["loss"] == "relative":
        energy = (case.targets.astype(np.float64) ** 2).mean(axis=2)
    targets = [case.targets] if case.aug_targets is None else [case.targets, case.aug_targets]
    return float(sum((((y - target) ** 2).mean(axis=2) / energy).mean() for target in targets))


def test_the_folded_block_has_the_loss_that_was_reported() -> None:
    for seed in range(60):
        case = quantized(seed, dominance="project")
        result = case.calibrate()
        assert loss_of_folded(case, result["folded"]) == pytest.approx(result["loss_final"], rel=1e-10), seed


def test_codes_and_zero_points_stay_in_range() -> None:
    for seed in range(8):
        case = quantized(seed)
        folded = case.calibrate()["folded"]
        for name in linear_shapes(case.spec):
            assert (
                max(folded[f"{name}.codes"].max(), folded[f"{name}.zero_point"].max())
                < 2 ** case.options["w_bits"]
            )
            assert np.all(folded[f"{name}.scale"] > 0)


# ---- dominance ----------------------------------------------------------------


@pytest.mark.parametrize("policy", ["project", "reject"])
def test_no_accepted_step_loses_dominance(policy: str) -> None:
    interventions = 0
    for seed in range(12):
        result, steps = trained(hostile(seed, dominance=policy))
        assert steps
        assert all(step[3] > 0 for step in steps)
        assert 0 < result["min_margin"] <= min(step[3] for step in steps)
        assert result["max_condition"] >= 1
        assert result["worst_row"].split(" map head ")[0] in ("norm1", "norm2", "vo", "qk")
        interventions += result["rows_projected"] + result["steps_rejected"]
        assert result["rows_projected" if policy == "reject" else "steps_rejected"] == 0
    assert interventions > 12


def test_projected_rows_keep_the_target_margin() -> None:
    case = hostile(3, dominance="project", norm_map="diagonal")
    result = case.calibrate()
    assert result["rows_projected"] > 0
    for name in ("vo.map", "qk.map"):
        for block in result["learnables"][name].astype(np.float64):
            others = np.abs(block).sum(axis=1) - np.abs(np.diag(block))
            assert np.all(others <= (1 - 0.05 + 1e-6) * np.abs(np.diag(block)))


def test_varah_bounds_the_inverse_of_the_online_maps() -> None:
    for seed in range(8):
        result = hostile(seed, dominance="project").calibrate()
        for name in ("norm1", "norm2"):
            norm = np.abs(result["folded"][f"{name}.inverse"].astype(np.float64)).sum(axis=1).max()
            assert norm <= result["varah_bound"] * (1 + 1e-6)


def test_raise_names_block_site_head_and_row() -> None:
    message = r"^block 3 (norm1|norm2|vo|qk) map head \d+ row \d+: \|diagonal\| \S+ <= off-diagonal sum \S+"
    with pytest.raises(NotDominantError, match=message):
        hostile(1, dominance="raise").calibrate()


def test_monitor_reports_lost_dominance_and_goes_on() -> None:
    case = hostile(1, dominance="monitor")
    result, steps = trained(case)
    assert result["min_margin"] < 0
    assert min(step[3] for step in steps) == result["min_margin"]
    assert len(steps) == result["steps"] == 18
    assert result["rows_projected"] == result["steps_rejected"] == 0


def test_without_affine_maps_there_is_no_margin() -> None:
    case = quantized(1, norm_map="diagonal", vo_map="diagonal", qk_map="scale")
    result, steps = trained(case)
    assert all(np.isnan(step[3]) for step in steps)
    assert result["min_margin"] is result["max_condition"] is result["varah_bound"] is None
    assert result["worst_row"] == ""


# ---- bad input ----------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["q.weight", "down.weight", "o.bias", "norm2.weight", "norm1.bias"])
def test_weights_that_are_not_finite_are_named(key: str, value: float) -> None:
    case = quantized(1, biases="all")
    case.weights[key] = case.weights[key].copy()
    case.weights[key][1 if case.weights[key].ndim == 1 else (2, 1)] = value
    name, row = key.split(".")[0], 0 if case.weights[key].ndim == 1 else 2
    with pytest.raises(NotFiniteError, match=rf"^block 3 {name}\b.* row {row} column 1: -?(nan|inf)"):
        case.calibrate()


@pytest.mark.parametrize("stream", ["x_fp", "x_q", "targets", "aug_targets"])
def test_streams_that_are_not_finite_are_named(stream: str) -> None:
    case = quantized(1, aug=True)
    values = getattr(case, stream).copy()
    values[1, 2, 3] = np.nan
    setattr(case, stream, values)
    with pytest.raises(NotFiniteError, match=rf"{stream} row 8 column 3"):
        case.calibrate()


@pytest.mark.parametrize("key", ["q.weight", "k.weight", "o.weight", "down.weight", "norm1.weight", "v.bias"])
def test_shapes_that_do_not_fit_name_the_key(key: str) -> None:
    case = quantized(1, biases="all")
    case.weights[key] = np.zeros(tuple(n + 1 for n in case.weights[key].shape), np.float32)
    with pytest.raises(ValueError, match=rf"^{key}: expected shape \(.*\), got \("):
        case.calibrate()
    case.weights[key] = np.zeros((1, 1, 1), np.float32)
    with pytest.raises(ValueError, match=rf"^{key}: expected \d dimension"):
        case.calibrate()


@pytest.mark.parametrize("stream", ["x_fp", "x_q", "targets", "aug_targets"])
def test_streams_that_do_not_fit_are_named(stream: str) -> None:
    case = quantized(1, aug=True)
    setattr(case, stream, np.zeros((3, 6, case.spec["hidden_size"] + 1), np.float32))
    with pytest.raises(ValueError, match=rf"^{stream}: expected shape"):
        case.calibrate()


def test_a_missing_weight_or_option_is_named() -> None:
    case = quantized(1)
    weights = case.weights
    case.weights = {key: value for key, value in weights.items() if key != "up.weight"}
    with pytest.raises(ValueError, match=r'weights lack "up\.weight"'):
        case.calibrate()
    case.weights = weights
    for key in set(case.options) - {"activation"}:
        options = {name: value for name, value in case.options.items() if name != key}
        with pytest.raises(ValueError, match=f'options lacks "{key}"'):
            _core.fold_block(case.spec, case.weights, options, case.learnables)


@pytest.mark.parametrize(
    ("key", "value"),
    [("w_bits", 9), ("w_bits", 1), ("group_size", -1), ("epochs", -1), ("batch_size", 0), ("margin", 1.0),
     ("patience", -1),
     ("stability", 0.0), ("alpha", 1.5), ("lr_let", np.nan), ("lr_rounding", -1.0),
     ("rounding", "up"), ("dominance", "hope"), ("qk_map", "dense")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(key: str, value: Any) -> None:
    case = quantized(1)
    case.options[key] = value
    with pytest.raises(ValueError, match=rf"{key.split('_')[0]}|learning rates|weights"):
        case.calibrate()


@pytest.mark.parametrize(
    "break_spec",
    [lambda spec: spec.update(num_heads=spec["num_kv_heads"] + 1, num_kv_heads=2 * spec["num_kv_heads"]),
     lambda spec: spec.update(hidden_size=0), lambda spec: spec.update(rope=True, head_dim=3),
     lambda spec: spec.update(norm_eps=-1.0), lambda spec: spec.update(activation="tanh")],
)  # fmt: skip
def test_specs_that_make_no_sense_are_refused(break_spec: Callable[[dict[str, Any]], None]) -> None:
    case = quantized(1)
    break_spec(case.spec)
    with pytest.raises(ValueError, match="spec"):
        case.calibrate()


def test_learnables_that_do_not_fit_are_named() -> None:
    case = quantized(1, lwc=True)
    with pytest.raises(ValueError, match=r'learnables lack "q\.lwc_max"'):
        case.fold(_core, {})
    learnables = {**case.learnables, "q.lwc_max": np.zeros((1, 1), np.float32)}
    with pytest.raises(ValueError, match=r"^q\.lwc_max: expected shape"):
        case.fold(_core, learnables)
