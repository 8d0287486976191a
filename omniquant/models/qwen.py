"""Qwen2 (Yang et al. 2024, arXiv 2407.10671) and Qwen3 (2025, arXiv 2505.09388): near LLaMA's block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.fields import Fields
from omniquant.models.adapter import Architecture
from omniquant.models.llama import ATTENTION, LlamaAdapter
from omniquant.models.spec import BlockSpec


class Qwen2Adapter(LlamaAdapter):
    """Qwen2 and Qwen2.5: q, k and v carry biases."""

    name = "qwen2"
    classes: ClassVar[Mapping[str, str]] = {"qwen2": "Qwen2ForCausalLM"}
    gguf_architectures: tuple[str, ...] = ("qwen2",)
    gguf_rotates_neighbours = False
    gguf_scales_each_frequency = False

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return LLaMA's spec; windows, which no published model of the family uses, are refused."""
        if config.boolean("use_sliding_window", False):
            raise UnsupportedCheckpointError(f"{config.where}: use_sliding_window true is not supported")
        return super().spec(config, **differences)

    def biases(self, config: Fields) -> frozenset[str]:
        """Return the parts that carry biases."""
        return frozenset(("q", "k", "v"))


class Qwen3Adapter(Qwen2Adapter):
    """Qwen3: a norm of every head of q and k, and no biases."""

    name = "qwen3"
    classes: ClassVar[Mapping[str, str]] = {"qwen3": "Qwen3ForCausalLM"}
    gguf_architectures: tuple[str, ...] = ("qwen3",)

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return LLaMA's spec with norms of heads, 128 wide where the configuration does not say."""
        width = config.integer("head_dim", 128)
        return super().spec(config, head_norms=True, head_dim=width, **differences)

    def biases(self, config: Fields) -> frozenset[str]:
        """Return the parts that carry biases."""
        return frozenset(ATTENTION if config.boolean("attention_bias", False) else ())

    def gguf_differs(self, architecture: Architecture) -> dict[str, bool]:
        """Return what llama.cpp's graph of the family might lack, and whether the model needs it."""
        return {"a bias of o": "o" in architecture.biases}
