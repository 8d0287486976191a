"""Mistral: a window."""

from __future__ import annotations

from pathlib import Path

import pytest

from families.oracle import SIZES, check_family, transformers


@pytest.mark.parametrize("window", [5, None])
def test_mistral(tmp_path: Path, window: int | None) -> None:
    config = transformers.MistralConfig(**SIZES, num_key_value_heads=2, head_dim=16, sliding_window=window)
    assert check_family(config, tmp_path / "m").spec.window == (window or 0)
