"""Gemma 2 and 3: norms on both sides, gains stored less 1, caps, blocks of two kinds."""

from __future__ import annotations

from pathlib import Path

from families.oracle import SIZES, check_family, transformers

COMMON = {**SIZES, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 5}
KINDS = ["sliding_attention", "full_attention"]


def test_gemma2(tmp_path: Path) -> None:
    config = transformers.Gemma2Config(
        **COMMON, query_pre_attn_scalar=24, attn_logit_softcapping=3.0, final_logit_softcapping=4.0
    )
    spec = check_family(config, tmp_path / "m", packed=False).spec
    assert (spec.post_norms, spec.score_cap, spec.window) == (True, 3.0, 0)


def test_gemma3(tmp_path: Path) -> None:
    config = transformers.Gemma3TextConfig(**COMMON, query_pre_attn_scalar=24, layer_types=KINDS)
    model = check_family(config, tmp_path / "m", packed=False)
    assert [model.spec_of(layer).window for layer in (0, 1)] == [5, 0]
    assert model.spec.head_norms
