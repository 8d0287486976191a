"""GPT-NeoX: attention and MLP side by side, q, k and v of each head in one tensor."""

from __future__ import annotations

from pathlib import Path

import pytest

from families.oracle import SIZES, check_family, transformers


@pytest.mark.parametrize("parallel", [True, False])
def test_gpt_neox(tmp_path: Path, parallel: bool) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    config = transformers.GPTNeoXConfig(
        **SIZES, use_parallel_residual=parallel, rope_parameters=rope, bos_token_id=1, eos_token_id=1
    )
    spec = check_family(config, tmp_path / "m").spec
    assert (spec.residual, spec.rotary) == ("parallel" if parallel else "sequential", 4)
