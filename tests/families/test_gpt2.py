"""GPT-2: matrices stored [in, out], q, k and v in one of them."""

from __future__ import annotations

from pathlib import Path

from families.oracle import VOCABULARY, check_family, transformers


def test_gpt2(tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1
    )
    assert check_family(config, tmp_path / "m", packed=False).spec.ffn_size == 128
