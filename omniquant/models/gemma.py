"""Gemma 2 (arXiv 2408.00118) and 3 (arXiv 2503.19786): norms on both sides, blocks of two kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import Layout, TensorSource
from omniquant.models.adapter import Architecture, LayerKind
from omniquant.models.family import LLAMA_NAMES, Names, Place, activation_of, refuse_unless
from omniquant.models.gguf_config import GgufMetadata
from omniquant.models.llama import ATTENTION, LlamaAdapter
from omniquant.models.rope import Rope, rope_from_config
from omniquant.models.spec import BlockSpec

_NORMS = ("norm1", "norm2", "post1", "post2", "q_norm", "k_norm", "final_norm")


class Gemma2Adapter(LlamaAdapter):
    """Gemma 2: scores and logits are capped, every second block sees a window."""

    name = "gemma2"
    classes: ClassVar[Mapping[str, str]] = {"gemma2": "Gemma2ForCausalLM"}
    gguf_architectures: tuple[str, ...] = ("gemma2",)
    gguf_activation = "gelu_tanh"
    gguf_rotates_neighbours = False
    gguf_scales_each_frequency = False
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
    most_layers = 46  # of the 27B model
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
        """Return where a part lies: Hugging Face stores gains less 1."""
        return Place(offset=1.0) if part in _NORMS and layout == "safetensors" else Place()

    def config_from_gguf(self, metadata: Fields, source: TensorSource) -> dict[str, object]:
        """Translate GGUF metadata into a config.json; what it may leave out is as llama.cpp takes it."""
        gguf = GgufMetadata(metadata, source)
        layers, hidden = gguf.integer("block_count"), gguf.integer("embedding_length")
        scalar = self._gguf_scalar(layers, hidden, gguf.integer("attention.head_count"), gguf.head_dim())
        every = gguf.integer("attention.sliding_window_pattern", self.every)
        return {
            "model_type": next(iter(self.classes)),
            **gguf.sizes(),
            "rms_norm_eps": gguf.positive("attention.layer_norm_rms_epsilon"),
            "query_pre_attn_scalar": scalar,
            "sliding_window": gguf.integer("attention.sliding_window", 4096),
            "layer_types": [
                "sliding_attention" if layer % every else "full_attention" for layer in range(1, layers + 1)
            ],
            **self.rest_from_gguf(gguf),
        }

    def rest_from_gguf(self, gguf: GgufMetadata) -> dict[str, object]:
        """Return the fields only this generation has."""
        return {
            "attn_logit_softcapping": gguf.positive("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": gguf.positive("final_logit_softcapping", 30.0),
            "rope_parameters": gguf.rope(),
        }

    def _gguf_scalar(self, layers: int, hidden: int, heads: int, head_dim: int) -> int:
        # No field says what queries are divided by: llama.cpp tells the largest model by its layers.
        return hidden // heads if layers == self.most_layers else head_dim

    def gguf_differs(self, architecture: Architecture) -> dict[str, bool]:
        """Return what llama.cpp's graph of the family might lack, and whether the model needs it."""
        spec, layers = architecture.spec, architecture.num_layers
        scalar = self._gguf_scalar(layers, spec.hidden_size, spec.num_heads, spec.head_dim)
        local = architecture.other_layers
        every = gguf_pattern(architecture)
        return {
            "biases of q, k, v and o": "q" in architecture.biases,
            f"query_pre_attn_scalar other than {scalar}": abs(spec.attention_scale**-2 - scalar) > 1e-3,
            "windows in blocks but all of each few but the last": local
            != frozenset(i for i in range(layers) if (i + 1) % every),
            **self.generation_differs(architecture),
        }

    def generation_differs(self, architecture: Architecture) -> dict[str, bool]:
        """Return what llama.cpp might lack of this generation, and whether it does."""
        return {
            "scores or logits without a cap": not (architecture.spec.score_cap and architecture.logit_cap),
            "a head beside the embedding": not architecture.tied_embeddings,
        }


class Gemma3Adapter(Gemma2Adapter):
    """Gemma 3's text models: norms of heads, five of six blocks see a window and rotate by another base."""

    name = "gemma3"
    classes: ClassVar[Mapping[str, str]] = {"gemma3_text": "Gemma3ForCausalLM"}
    gguf_architectures: tuple[str, ...] = ("gemma3",)
    most_layers = 62
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

    def rest_from_gguf(self, gguf: GgufMetadata) -> dict[str, object]:
        """Return the fields only this generation has."""
        local = {"rope_theta": gguf.positive("rope.freq_base_swa", 1e4)}
        cap = "final_logit_softcapping"
        caps = {cap: gguf.positive(cap)} if gguf.has(cap) else {}
        return {"rope_parameters": {"full_attention": gguf.rope(), "sliding_attention": local}, **caps}

    def generation_differs(self, architecture: Architecture) -> dict[str, bool]:
        """Return what llama.cpp might lack of this generation, and whether it does."""
        local = architecture.other.rope if architecture.other else None
        return {
            "capped scores": architecture.spec.score_cap > 0,
            "scaled positions in windows": local is not None and local.scaling is not None,
        }

    def _of_kind(self, config: Fields, kind: str, theta: float) -> Fields:
        # Newer configurations have rope_parameters by kind of block; older ones a base for either kind.
        parameters = config.values.get("rope_parameters")
        kinds = parameters if isinstance(parameters, dict) else {}
        field = "rope_theta" if kind == "full_attention" else "rope_local_base_freq"
        rope = kinds.get(kind) or {"rope_theta": config.positive(field, theta)}
        return Fields({**config.values, "rope_parameters": rope}, config.where)


def gguf_pattern(architecture: Architecture) -> int:
    """Return of how many blocks one sees everything, if it is the last of each so many."""
    whole = [i for i in range(architecture.num_layers) if i not in architecture.other_layers]
    return whole[0] + 1 if whole else architecture.num_layers + 1


def _cap(config: Fields, field: str) -> float:
    return config.positive(field) if config.has(field) else 0.0
