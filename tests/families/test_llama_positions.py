"""LLaMA's scalings of rotary positions, against transformers, in the newer and the older configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import omniquant
from families.oracle import SIZES, VOCABULARY, logits_of, random_model, transformers
from omniquant.errors import CheckpointError
from omniquant.forward import float_logits

TINY = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
SCALINGS: dict[str, dict[str, Any]] = {
    "theta": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    # Of 8 frequencies some stay, some are mixed and some are stretched.
    "llama3": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    },
}  # fmt: skip


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("name", SCALINGS)
def test_positions_are_those_of_transformers(name: str, older: bool, tmp_path: Path) -> None:
    module = random_model(transformers.LlamaConfig(**TINY, rope_parameters=SCALINGS[name]))
    module.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    if older:
        scaling = config.pop("rope_parameters")
        config["rope_theta"] = scaling.pop("rope_theta")
        config["rope_scaling"] = None if name == "theta" else scaling
        file.write_text(json.dumps(config))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, 64)).astype(np.int32)
    ours, expected = float_logits(omniquant.load_model(tmp_path), tokens), logits_of(module, tokens)
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()
    plain = random_model(transformers.LlamaConfig(**TINY, rope_parameters=PLAIN))
    assert np.abs(logits_of(plain, tokens) - expected).max() > 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope"])
def test_other_scalings_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    random_model(transformers.LlamaConfig(**TINY, rope_parameters=PLAIN)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"rope_parameters": {**PLAIN, "rope_type": kind, "factor": 2.0}}))
    with pytest.raises(CheckpointError, match=rf"rope_type is '{kind}', supported are default, linear and"):
        omniquant.load_model(tmp_path)
