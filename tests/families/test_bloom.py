"""BLOOM: ALiBi and a norm of the embedding."""

from __future__ import annotations

from pathlib import Path

from families.oracle import VOCABULARY, check_family, transformers


def test_bloom(tmp_path: Path) -> None:
    config = transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )
    model = check_family(config, tmp_path / "m", packed=False)
    assert model.spec.alibi
