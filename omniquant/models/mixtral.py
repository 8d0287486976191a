"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral's block with experts for its MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from omniquant.checkpoint.fields import Fields
from omniquant.models.experts import GGUF_EXPERTS
from omniquant.models.family import GGUF_NAMES, LLAMA_NAMES
from omniquant.models.mistral import MistralAdapter
from omniquant.models.spec import BlockSpec

_EXPERTS = {
    "router": "block_sparse_moe.gate",
    "gate": "block_sparse_moe.experts.{e}.w1",
    "up": "block_sparse_moe.experts.{e}.w3",
    "down": "block_sparse_moe.experts.{e}.w2",
}


class MixtralAdapter(MistralAdapter):
    """Mixtral: the probabilities of the experts a token takes sum to 1."""

    name = "mixtral"
    classes: ClassVar[Mapping[str, str]] = {"mixtral": "MixtralForCausalLM"}
    gguf_architectures: tuple[str, ...] = ()
    gguf_names = replace(GGUF_NAMES, parts={**GGUF_NAMES.parts, **GGUF_EXPERTS})
    hf_names = replace(LLAMA_NAMES, parts={**LLAMA_NAMES.parts, **_EXPERTS})

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return Mistral's spec with experts."""
        return super().spec(
            config,
            num_experts=config.integer("num_local_experts", 8),
            experts_per_token=config.integer("num_experts_per_tok", 2),
            normalized_experts=True,
            **differences,
        )
