"""Tiny random models of a family's own class in transformers, and what it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import omniquant
from omniquant.forward import float_logits
from omniquant.models import ADAPTERS
from omniquant.models.conformance import check_model_adapter

torch = pytest.importorskip("torch", reason="torch, of the extra `transformers`, is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

VOCABULARY = 61
# What most configurations call their sizes.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}

I32 = npt.NDArray[np.int32]


def random_model(config: Any, seed: int = 0) -> Any:
    """Return a model whose every gain, bias and weight is drawn, so that no quirk of the family hides."""
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.normal_(0, 1.3 / parameter.shape[-1] ** 0.5)
    return model


def logits_of(model: Any, tokens: I32) -> npt.NDArray[np.float32]:
    """Return what transformers computes [N, T, V]."""
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy())


def check_family(config: Any, folder: Path, **options: Any) -> Any:
    """Run the conformance suite on a tiny model of a configuration, and compare exports; return the model."""
    model = random_model(config)
    model.save_pretrained(folder)
    (adapter,) = (each for each in ADAPTERS if config.model_type in each.classes)
    assert adapter.classes[config.model_type] == type(model).__name__
    check_model_adapter(adapter, folder, reference=lambda tokens: logits_of(model, tokens))
    ours = omniquant.load_model(folder)
    check_exports(ours, folder.parent, **options)
    return ours


def check_exports(ours: omniquant.Model, folder: Path, *, packed: bool = True) -> None:
    """Compare folders read by transformers with the folded model, plain and in compressed-tensors."""
    tokens = np.random.default_rng(3).integers(0, VOCABULARY, (2, 24)).astype(np.int32)
    result = omniquant.calibrate(ours, tokens, "W4sA16", method="rtn", progress=False)
    expected = float_logits(result.fold(), tokens)
    formats = ["huggingface", "compressed-tensors"] if packed else ["huggingface"]
    for name in formats:
        if name == "compressed-tensors":
            pytest.importorskip("compressed_tensors")
        path = result.export(folder / name, name)
        loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not any(info.values()), info
        found = logits_of(loaded.eval(), tokens)
        assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max()), name
