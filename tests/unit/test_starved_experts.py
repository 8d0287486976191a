"""Experts that see too few tokens: clipped by their weights alone, never trained, and the result says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import quantizer_reference as reference
from random_blocks import Case, Draw
from small_run import contents
from tiny_mixtral import EXPERTS, LAYERS, model_of, random_tensors, tokens_of

import omniquant
from omniquant import _core
from omniquant.cli import main
from omniquant.errors import CheckpointError
from omniquant.progress import Callback, describe
from omniquant.report import LEAST_TOKENS, BlockReport

CALL: dict[str, Any] = {"method": "omniquant", "epochs": 2, "progress": False, "threads": 1}
BLOCK = {
    "up_down": False, "input_map": "none", "rotate_down": False, "post_norms": False,
    "residual": "sequential", "num_experts": 4, "experts_per_token": 1, "samples": 2, "tokens": 60,
    "aug": False, "mlp": "gated",
    "w_bits": 3, "lwc": True, "norm_map": "none", "biases": "all", "group_size": 0, "rounding": "nearest",
}  # fmt: skip


def starving(seed: int, **forced: Any) -> Case:
    """Return a block of 4 experts, the first of which sees a few of its 120 tokens."""
    case = Draw(seed, quirks=True, **{**BLOCK, **forced}).case()
    for bias in np.arange(0, -8, -0.25):
        case.weights["router.bias"] = np.array([bias, 0, 0, 0], np.float32)
        seen = case.calibrate()["expert_tokens"]
        assert seen.sum() == 120
        if 0 < seen[0] < LEAST_TOKENS:
            case.targets = case.forward(_core, case.weights, case.x_fp)
            return case
    raise AssertionError("no bias starves the first expert")


def shares(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return what clipping logits [rows, 1] leave of each row's range."""
    kept: npt.NDArray[np.float64] = 1 / (1 + np.exp(-logits[:, 0].astype(np.float64)))
    return kept


def least_error(w: npt.NDArray[np.float64], quantizer: reference.Quantizer) -> npt.NDArray[np.float64]:
    """Return the share of each row's range, of a grid, that loses least."""
    grid = 1 - 0.05 * np.arange(10)
    errors = []
    for share in grid:
        logit = np.full((len(w), 1), 40.0 if share == 1 else np.log(share / (1 - share)))
        errors.append(((reference.forward(quantizer, w, logit, logit) - w) ** 2).sum(1))
    best: npt.NDArray[np.float64] = grid[np.argmin(errors, axis=0)]
    return best


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_clipping_is_the_one_that_loses_least_of_the_weights_and_stays(seed: int) -> None:
    case = starving(seed)
    result = case.calibrate()
    assert result["kept"] != "rtn"
    seen, learned = result["expert_tokens"], result["learnables"]
    quantizer = reference.Quantizer(3, symmetric=case.options["w_symmetric"])
    for name, rows in (("gate", case.spec["ffn_size"]), ("down", case.spec["hidden_size"])):
        w = case.weights[f"{name}.weight"].astype(np.float64)
        for expert in range(4):
            here = slice(expert * rows, (expert + 1) * rows)
            expected = least_error(w[here], quantizer)
            for side in ("max", "min"):
                kept = shares(learned[f"{name}.lwc_{side}"][here])
                assert (np.abs(kept - expected).max() <= 1e-6) == (seen[expert] < LEAST_TOKENS), (
                    name,
                    expert,
                )


def test_rounding_of_a_starved_expert_is_not_learned() -> None:
    case = starving(4, rounding="learned")
    result = case.calibrate()
    assert result["kept"] != "rtn"
    F = case.spec["ffn_size"]
    offsets = result["learnables"]["up.offset"].reshape(4, F, -1)
    for expert, seen in enumerate(result["expert_tokens"]):
        assert np.any(offsets[expert]) == (seen >= LEAST_TOKENS), expert


def skewed(bias: float) -> omniquant.Model:
    """Return a model whose embedding pushes tokens away from the last expert."""
    tensors = random_tensors()
    tensors["model.embed_tokens.weight"][:, 0] = 8
    for layer in range(LAYERS):
        tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"][:, 0] = [0, 0, 0, bias]
    return model_of(tensors)


def test_the_report_and_the_log_say_so() -> None:
    result = omniquant.calibrate(skewed(-6), tokens_of(1, 4, 64), "W3A16", **CALL)
    report = result.blocks[0]
    assert sum(report.expert_tokens) == 2 * 4 * 64
    assert report.starved == (EXPERTS - 1,)
    assert f"experts {EXPERTS - 1} data-free (fewer than {LEAST_TOKENS} tokens)" in describe(report, LAYERS)
    fed = omniquant.calibrate(skewed(0), tokens_of(1, 4, 64), "W3A16", **CALL)
    assert fed.blocks[0].starved == ()
    assert "data-free" not in describe(fed.blocks[0], LAYERS)


def test_info_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = {**CALL, "method": "rtn", "epochs": 0, "output": tmp_path / "out"}
    omniquant.calibrate(skewed(-6), tokens_of(1, 4, 64), "W4A16", **call)
    assert main(["info", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "gated silu MLP (2 of 4 experts a token)" in out
    assert "1 of them too few to learn from" in out


class Stop(Callback):
    """Ends a calibration once its first block is kept."""

    def on_block(self, report: BlockReport) -> None:
        """Stop."""
        raise KeyboardInterrupt


def test_a_resumed_calibration_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    model, tokens = skewed(-6), tokens_of(1, 4, 64)
    whole = omniquant.calibrate(model, tokens, "W4A4", output=tmp_path / "whole", **CALL)
    with pytest.raises(KeyboardInterrupt):
        omniquant.calibrate(model, tokens, "W4A4", output=tmp_path / "two", callbacks=[Stop()], **CALL)
    two = omniquant.calibrate(model, tokens, "W4A4", output=tmp_path / "two", resume=True, **CALL)
    assert contents(tmp_path / "whole") == contents(tmp_path / "two")
    assert [r.expert_tokens for r in whole.blocks] == [r.expert_tokens for r in two.blocks]
    assert omniquant.CalibrationResult.load(tmp_path / "two").blocks[0].starved == (EXPERTS - 1,)
    np.testing.assert_array_equal(whole.fold().logits(tokens[:1]), two.fold().logits(tokens[:1]))


def test_a_report_of_odd_counts_is_refused() -> None:
    values = BlockReport(0, 1.0, 1.0, 1.0, expert_tokens=(3, 4)).durable()
    assert BlockReport.from_dict(values, "m").expert_tokens == (3, 4)
    assert "expert_tokens" not in BlockReport(0, 1.0, 1.0, 1.0).durable()
    for counts in ([1.5], "none"):
        with pytest.raises(CheckpointError, match="expert_tokens"):
            BlockReport.from_dict({**values, "expert_tokens": counts}, "m")
