"""Phi-3: fused tensors. Phi-2: one LayerNorm for attention and MLP, partial rotation, a bias of the head."""

from __future__ import annotations

from pathlib import Path

import pytest

from families.oracle import SIZES, check_family, transformers


@pytest.mark.parametrize("window", [5, None])
def test_phi3(tmp_path: Path, window: int | None) -> None:
    config = transformers.Phi3Config(
        **SIZES, num_key_value_heads=2, sliding_window=window, pad_token_id=0, eos_token_id=1, bos_token_id=1
    )
    assert check_family(config, tmp_path / "m").spec.window == (window or 0)


def test_phi(tmp_path: Path) -> None:
    config = transformers.PhiConfig(**SIZES, bos_token_id=1, eos_token_id=1)
    spec = check_family(config, tmp_path / "m").spec
    assert (spec.residual, spec.rotary) == ("shared", 4)
