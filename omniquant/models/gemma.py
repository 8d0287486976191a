"""Gemma 2 (arXiv 2408.00118) and 3 (arXiv 2503.19786): norms on both sides, blocks of two kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import Layout
from omniquant.models.adapter import Architecture, LayerKind
from omniquant.models.family import LLAMA_NAMES, Names, Place, activation_of, refuse_unless
from omniquant.models.llama import ATTENTION, LlamaAdapter
from omniquant.models.rope import Rope, rope_from_config
from omniquant.models.spec import BlockSpec

_NORMS = ("norm1", "norm2", "post1", "post2", "q_norm", "k_norm", "final_norm")


class Gemma2Adapter(LlamaAdapter):
    """Gemma 2: scores and logits are capped, every second block sees a window."""

    name = "gemma2"
    classes: ClassVar[Mapping[str, str]] = {"gemma2": "Gemma2ForCausalLM"}
    gguf_architectures: tuple[str, ...] = ()
    tied_by_default = True
    hf_names = Names(
        LLAMA_NAMES.block,
        {
            **LLAMA_NAMES.parts,
            "post1": "post_attention_layernorm",
            "norm2": "pre_feedforward_layernorm",
            "post2": "post_feedforward_layernorm",
        },
        LLAMA_NAMES.outer,
    )
    every = 2  # of so many blocks the last sees everything, where the configuration has no list

    def architecture(self, config: Fields) -> Architecture:
        """Read a config.json."""
        refuse_unless(config, "use_bidirectional_attention", False)
        base = super().architecture(config)
        return replace(
            base,
            embedding_scale=base.spec.hidden_size**0.5,
            logit_cap=_cap(config, "final_logit_softcapping"),
            other_layers=self._local(config, base.num_layers),
            other=self._local_kind(config, base),
        )

    def _local_kind(self, config: Fields, base: Architecture) -> LayerKind:
        window = config.integer("sliding_window", 4096)
        return LayerKind(replace(base.spec, window=window), self.local_rope(config, base))

    def local_rope(self, config: Fields, base: Architecture) -> Rope | None:
        """Return the rotary positions of blocks that see a window."""
        return base.rope

    def _local(self, config: Fields, layers: int) -> frozenset[int]:
        kinds = config.values.get("layer_types")
        if isinstance(kinds, list):
            return frozenset(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
        return frozenset(i for i in range(layers) if (i + 1) % self.every)

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return the spec of blocks that see everything."""
        return super().spec(
            config,
            head_dim=config.integer("head_dim", 256),
            activation=activation_of(config, "hidden_activation", "gelu_pytorch_tanh"),
            post_norms=True,
            attention_scale=config.positive("query_pre_attn_scalar", 256.0) ** -0.5,
            score_cap=_cap(config, "attn_logit_softcapping"),
            **differences,
        )

    def biases(self, config: Fields) -> frozenset[str]:
        """Return the parts that carry biases."""
        return frozenset(ATTENTION if config.boolean("attention_bias", False) else ())

    def place(self, architecture: Architecture, part: str, layout: Layout) -> Place:
        """Return where a part lies: gains are stored less 1."""
        return Place(offset=1.0) if part in _NORMS else Place()


class Gemma3Adapter(Gemma2Adapter):
    """Gemma 3's text models: norms of heads, five of six blocks see a window and rotate by another base."""

    name = "gemma3"
    classes: ClassVar[Mapping[str, str]] = {"gemma3_text": "Gemma3ForCausalLM"}
    every = 6

    def architecture(self, config: Fields) -> Architecture:
        """Read a config.json."""
        base, full = super().architecture(config), self._of_kind(config, "full_attention", 1e6)
        return replace(base, rope=rope_from_config(full, base.max_positions, base.spec.rotary))

    def local_rope(self, config: Fields, base: Architecture) -> Rope | None:
        """Return the rotary positions of blocks that see a window."""
        local = self._of_kind(config, "sliding_attention", 1e4)
        return rope_from_config(local, base.max_positions, base.spec.rotary)

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return the spec of blocks that see everything."""
        return super().spec(config, head_norms=True, **differences)

    def _of_kind(self, config: Fields, kind: str, theta: float) -> Fields:
        # Newer configurations have rope_parameters by kind of block; older ones a base for either kind.
        parameters = config.values.get("rope_parameters")
        kinds = parameters if isinstance(parameters, dict) else {}
        field = "rope_theta" if kind == "full_attention" else "rope_local_base_freq"
        rope = kinds.get(kind) or {"rope_theta": config.positive(field, theta)}
        return Fields({**config.values, "rope_parameters": rope}, config.where)


def _cap(config: Fields, field: str) -> float:
    return config.positive(field) if config.has(field) else 0.0
