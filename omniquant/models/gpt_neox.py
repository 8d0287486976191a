"""GPT-NeoX and Pythia (Black et al. 2022, arXiv 2204.06745; Biderman et al. 2023, arXiv 2304.01373)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import Layout, TensorSource
from omniquant.models.adapter import Architecture
from omniquant.models.family import (
    FUSED_GGUF_NAMES,
    Names,
    Place,
    activation_of,
    block_spec,
    head_dim_of,
    stacked_heads,
)
from omniquant.models.gguf_config import GgufMetadata
from omniquant.models.llama import LlamaAdapter
from omniquant.models.rope import rotary_dim_of
from omniquant.models.spec import BlockSpec
from omniquant.models.tensors import Array


class GptNeoxAdapter(LlamaAdapter):
    """LayerNorm, attention and MLP side by side, a quarter of each head rotates, biases everywhere."""

    name = "gpt_neox"
    classes: ClassVar[Mapping[str, str]] = {"gpt_neox": "GPTNeoXForCausalLM"}
    gguf_architectures: tuple[str, ...] = ("gptneox",)
    gguf_activation = "gelu"  # which llama.cpp computes by its tanh form
    gguf_scales_each_frequency = False
    gguf_names = FUSED_GGUF_NAMES
    hf_names = Names(
        "gpt_neox.layers.{i}.",
        {
            "norm1": "input_layernorm",
            "norm2": "post_attention_layernorm",
            **dict.fromkeys(("q", "k", "v"), "attention.query_key_value"),
            "o": "attention.dense",
            "up": "mlp.dense_h_to_4h",
            "down": "mlp.dense_4h_to_h",
        },
        {"embedding": "gpt_neox.embed_in", "final_norm": "gpt_neox.final_layer_norm", "lm_head": "embed_out"},
    )

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return the spec of a config.json."""
        heads = config.integer("num_attention_heads")
        width = head_dim_of(config, "hidden_size", "num_attention_heads")
        return block_spec(
            config,
            hidden_size=config.integer("hidden_size"),
            ffn_size=config.integer("intermediate_size"),
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=width,
            norm="layer",
            norm_eps=config.positive("layer_norm_eps", 1e-5),
            mlp="plain",
            activation=activation_of(config, "hidden_act", "gelu"),
            rotary_dim=rotary_dim_of(config, width, 0.25),
            residual="parallel" if config.boolean("use_parallel_residual", True) else "sequential",
        )

    def biases(self, config: Fields) -> frozenset[str]:
        """Return every linear and norm; the head has none."""
        attention = ("q", "k", "v", "o") if config.boolean("attention_bias", True) else ()
        return frozenset(("norm1", "norm2", "up", "down", "final_norm", *attention))

    def place(self, architecture: Architecture, part: str, layout: Layout) -> Place:
        """Return where q, k and v lie: a head's three parts behind each other, head after head.

        In GGUF all of q, all of k, all of v.
        """
        return place_head_by_head(architecture.spec, part, layout)

    def config_from_gguf(self, metadata: Fields, source: TensorSource) -> dict[str, object]:
        """Translate GGUF metadata into a config.json."""
        gguf = GgufMetadata(metadata, source)
        return {
            "model_type": "gpt_neox",
            **gguf.sizes(),
            "layer_norm_eps": gguf.positive("attention.layer_norm_epsilon"),
            "use_parallel_residual": metadata.boolean(f"{gguf.prefix}.use_parallel_residual", True),
            "rope_parameters": gguf.rope() | gguf.partial_rotation(),
        }

    def gguf_differs(self, architecture: Architecture) -> dict[str, bool]:
        """Return what llama.cpp's graph of the family might lack, and whether the model needs it."""
        return {"attention without biases": "q" not in architecture.biases}


def place_head_by_head(spec: BlockSpec, part: str, layout: Layout) -> Place:
    """Return where q, k or v lies in a tensor that holds the three of each head behind each other."""
    if layout == "gguf":
        return stacked_heads(spec, part) or Place()
    which = {"q": 0, "k": 1, "v": 2}.get(part)
    if which is None:
        return Place()

    def third(stored: Array) -> Array:
        return stored.reshape(spec.num_heads, 3, -1, *stored.shape[1:])[:, which]  # [heads, 3, d, ...]

    return Place(3 * spec.num_heads * spec.head_dim, third)
