"""OPT: learned positions from the third row on, ReLU, shifts behind every norm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import omniquant
from families.oracle import SIZES, VOCABULARY, check_family, random_model, transformers
from omniquant.errors import CheckpointError

COMMON = {key: value for key, value in SIZES.items() if key != "intermediate_size"}


def test_opt(tmp_path: Path) -> None:
    config = transformers.OPTConfig(**COMMON, ffn_dim=48, word_embed_proj_dim=32, pad_token_id=VOCABULARY - 1)
    model = check_family(config, tmp_path / "m")
    assert model.spec.norm == "layer"
    assert not model.spec.rope
    # No rotation passes LayerNorm, so "auto" has to do without what runs beside the model.
    windows = np.random.default_rng(0).integers(2, VOCABULARY - 1, (2, 16))
    result = omniquant.calibrate(model, windows, "W4A4", method="auto", epochs=1, progress=False)
    assert (result.method, result.options.rotation) == ("omniquant", "none")


def test_norms_behind_are_refused(tmp_path: Path) -> None:
    config = transformers.OPTConfig(
        **COMMON, ffn_dim=48, word_embed_proj_dim=32, do_layer_norm_before=False, pad_token_id=1
    )
    random_model(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="do_layer_norm_before"):
        omniquant.load_model(tmp_path)
