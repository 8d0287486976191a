"""Falcon: one head of keys and values beside one norm, or groups of them beside two."""

from __future__ import annotations

from pathlib import Path

import pytest

from families.oracle import SIZES, check_family, transformers

COMMON = {key: value for key, value in SIZES.items() if key != "intermediate_size"} | {
    "ffn_hidden_size": 48, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize("grouped", [False, True])
def test_falcon(tmp_path: Path, grouped: bool) -> None:
    kind = {"new_decoder_architecture": True, "num_kv_heads": 2} if grouped else {"multi_query": True}
    spec = check_family(transformers.FalconConfig(**COMMON, **kind), tmp_path / "m", packed=False).spec
    assert (spec.residual, spec.num_kv_heads) == (("parallel", 2) if grouped else ("shared", 1))
