"""Mistral (Jiang et al. 2023, arXiv 2310.06825): LLaMA's block whose tokens see a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from omniquant.checkpoint.fields import Fields
from omniquant.models.llama import LlamaAdapter
from omniquant.models.spec import BlockSpec


class MistralAdapter(LlamaAdapter):
    """Mistral; in GGUF files it goes by llama's name, whose tokens see everything."""

    name = "mistral"
    classes: ClassVar[Mapping[str, str]] = {"mistral": "MistralForCausalLM"}
    gguf_architectures: tuple[str, ...] = ()
    gguf_architecture = "llama"

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return LLaMA's spec with a window, which later Mistral models leave out."""
        window = config.integer("sliding_window", 0, minimum=0)
        return super().spec(config, window=window, **differences)
