"""Qwen2: biases of q, k and v. Qwen3: norms of heads."""

from __future__ import annotations

from pathlib import Path

import pytest

import omniquant
from families.oracle import SIZES, check_family, random_model, transformers
from omniquant.errors import CheckpointError


@pytest.mark.parametrize("tied", [False, True])
def test_qwen2(tmp_path: Path, tied: bool) -> None:
    config = transformers.Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=tied)
    assert "q.bias" in check_family(config, tmp_path / "m").block(0)


def test_qwen3(tmp_path: Path) -> None:
    config = transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16)
    assert check_family(config, tmp_path / "m").spec.head_norms


def test_windows_are_refused(tmp_path: Path) -> None:
    config = transformers.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=0)
    random_model(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="use_sliding_window true is not supported"):
        omniquant.load_model(tmp_path)
