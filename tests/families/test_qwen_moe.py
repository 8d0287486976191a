"""Qwen2-MoE: an MLP all tokens share beside the experts. Qwen3-MoE: norms of heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import omniquant
from families.oracle import SIZES, VOCABULARY, check_family, random_model, transformers
from omniquant.errors import CheckpointError
from omniquant.forward import float_logits
from omniquant.models.rotated import RotatedModel, Rotation

EXPERTS = {"num_key_value_heads": 2, "num_experts": 5, "moe_intermediate_size": 24}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 40}


@pytest.mark.parametrize("normalized", [False, True])
def test_qwen2_moe(tmp_path: Path, normalized: bool) -> None:
    config = transformers.Qwen2MoeConfig(**SIZES, **SHARED, num_experts_per_tok=3, norm_topk_prob=normalized)
    model = check_family(config, tmp_path / "m")
    assert (model.spec.shared_ffn_size, model.spec.ffn_size) == (40, 24)
    assert "q.bias" in model.block(0)
    tokens = np.arange(24).reshape(1, 24) % VOCABULARY
    expected, turned = (float_logits(each, tokens) for each in (model, RotatedModel(model, Rotation())))
    assert np.abs(turned - expected).max() <= 1e-5 * np.abs(expected).max()


def test_qwen3_moe(tmp_path: Path) -> None:
    config = transformers.Qwen3MoeConfig(
        **SIZES, **EXPERTS, num_experts_per_tok=1, head_dim=16, norm_topk_prob=True
    )
    assert check_family(config, tmp_path / "m").spec.head_norms


@pytest.mark.parametrize("field", [{"decoder_sparse_step": 2}, {"mlp_only_layers": [1]}])
def test_blocks_without_experts_are_refused(tmp_path: Path, field: dict[str, Any]) -> None:
    config = transformers.Qwen2MoeConfig(**SIZES, **SHARED, num_experts_per_tok=2, **field)
    random_model(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=next(iter(field))):
        omniquant.load_model(tmp_path)
