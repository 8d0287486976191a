"""GGUF of every family llama.cpp has: it computes our logits, and so does what we read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from families.oracle import SIZES, random_model, transformers
from synthetic import byte_level_tokenizer
from third_party import LlamaCpp

import omniquant
from omniquant.checkpoint.fields import Fields
from omniquant.errors import CheckpointError, UnsupportedError
from omniquant.forward import float_logits
from omniquant.models.registry import adapter_for_gguf

pytest.importorskip("gguf")

Json = dict[str, Any]

VOCAB = 258  # bytes, a merge and a special token
PLAIN = {**SIZES, "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 32}
ENDS = {"bos_token_id": 1, "eos_token_id": 1}
PHI3 = {**GROUPED, **ENDS, "pad_token_id": 0}
GPT2 = {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, **ENDS}
GROUPS = {"new_decoder_architecture": True, "num_kv_heads": 2}
FALCON = {k: v for k, v in PLAIN.items() if k != "intermediate_size"} | {"ffn_hidden_size": 96, **ENDS}
GEMMA = {
    **WIDE, "num_hidden_layers": 4, "sliding_window": 5, "query_pre_attn_scalar": 32,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHARED = {**GROUPED, **MOE, "shared_expert_intermediate_size": 160}
CAPS = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip


def bloom(heads: int = 4) -> Json:
    return {"vocab_size": VOCAB, "hidden_size": 16 * heads, "n_layer": 3, "n_head": heads, **ENDS}


def share(rotating: float) -> Json:
    return {"rope_parameters": {**LOCAL, "partial_rotary_factor": rotating}}


# class of the configuration, its fields, whether llama.cpp's GELU is in the way: it rounds to float16
CASES: dict[str, tuple[str, Json, bool]] = {
    "llama": ("LlamaConfig", {**WIDE, "attention_bias": True, "mlp_bias": True}, False),
    "llama, linear": ("LlamaConfig", {**GROUPED, "rope_parameters": LINEAR}, False),
    "llama, 3.1": ("LlamaConfig", {**GROUPED, "rope_parameters": LLAMA3}, False),
    "mistral": ("MistralConfig", {**WIDE, "sliding_window": None}, False),
    "qwen2": ("Qwen2Config", {**GROUPED, "tie_word_embeddings": True}, False),
    "qwen2, linear": ("Qwen2Config", {**GROUPED, "rope_parameters": LINEAR}, False),
    "qwen3": ("Qwen3Config", WIDE, False),
    "phi": ("PhiConfig", {**PLAIN, **ENDS}, True),
    "phi3": ("Phi3Config", {**PHI3, "sliding_window": None}, False),
    "phi3, partly rotated": ("Phi3Config", {**PHI3, "sliding_window": 64, **share(0.5)}, False),
    "gpt2": ("GPT2Config", GPT2, True),
    "gpt2, untied": ("GPT2Config", {**GPT2, "tie_word_embeddings": False}, True),
    "gpt_neox": ("GPTNeoXConfig", {**PLAIN, **ENDS, **share(0.5)}, True),
    "gpt_neox, sequential": (
        "GPTNeoXConfig", {**PLAIN, **ENDS, **share(0.25), "use_parallel_residual": False}, True,
    ),
    "falcon": ("FalconConfig", {**FALCON, "multi_query": True}, True),
    "falcon, grouped": ("FalconConfig", {**FALCON, **GROUPS}, True),
    "bloom": ("BloomConfig", bloom(), True),
    "bloom, 6 heads": ("BloomConfig", bloom(6), True),
    "mixtral": ("MixtralConfig", {**WIDE, **MIXTRAL, "sliding_window": None}, False),
    "qwen2_moe": ("Qwen2MoeConfig", SHARED, False),
    "qwen3_moe": ("Qwen3MoeConfig", {**WIDE, **MOE, "norm_topk_prob": True}, False),
    "gemma2": ("Gemma2Config", {**GEMMA, **CAPS}, True),
    "gemma3": ("Gemma3TextConfig", GEMMA, True),
    "gemma3, linear": (
        "Gemma3TextConfig",
        {
            **GEMMA, "tie_word_embeddings": False, "final_logit_softcapping": 4.0,
            "rope_parameters": {"full_attention": LINEAR | {"rope_theta": 1e6}, "sliding_attention": LOCAL},
        },
        True,
    ),
}  # fmt: skip


def written(folder: Path, kind: str, fields: Json, scheme: str, **options: Any) -> tuple[Any, Path, Any]:
    """Return a random model, the GGUF file of its result and the result."""
    random_model(getattr(transformers, kind)(**fields)).save_pretrained(folder / "m")
    byte_level_tokenizer([("t", "h")], special=("<s>",)).save(str(folder / "m" / "tokenizer.json"))
    model = omniquant.load_model(folder / "m")
    options = {"method": "rtn", "progress": False, **options}
    result = omniquant.calibrate(model, tokens(), scheme, **options)
    return model, result.export(folder / "out", "gguf") / "model.gguf", result


def tokens() -> npt.NDArray[np.int32]:
    return np.random.default_rng(3).integers(0, 250, (1, 40)).astype(np.int32)


def log_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64) - logits.max()
    return np.asarray(wide - np.log(np.exp(wide).sum()))


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_and_what_is_read_back_agree(name: str, tmp_path: Path) -> None:
    kind, fields, rounds = CASES[name]
    model, path, _ = written(tmp_path, kind, fields, "W16A16")
    ours, again = float_logits(model, tokens()), omniquant.load_model(path)
    # Mistral goes by llama's name; six heads are no power of two, so Bloom's embedding is summed otherwise.
    assert again.family == model.family or (again.family, model.family) == ("llama", "mistral")
    np.testing.assert_allclose(float_logits(again, tokens()), ours, atol=1e-5 * np.abs(ours).max())
    server = LlamaCpp(path, exact=True)
    for length in (1, 17, 40):
        expected = log_probabilities(ours[0, length - 1])
        found = server.logp(tokens()[0, :length], VOCAB, then=40)
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert error <= (3e-4 if rounds else 3e-6), f"{length} tokens: {error:.1e}"


@pytest.mark.parametrize("scheme", ["W4A16g32", "W8sA16"])
@pytest.mark.parametrize(
    "name",
    [
        "qwen3",
        "phi",
        "phi3",
        "gpt2",
        "gpt_neox",
        "falcon, grouped",
        "bloom",
        "gemma2",
        "mixtral",
        "qwen2_moe",
    ],
)
def test_packed_weights_find_their_rows(name: str, scheme: str, tmp_path: Path) -> None:
    kind, fields, _ = CASES[name]
    _, path, result = written(tmp_path, kind, fields, scheme, target="gguf")
    again, folded = omniquant.load_model(path), result.fold()
    assert {"W4A16g32": "Q4_1", "W8sA16": "Q8_0"}[scheme] in again.source
    for layer in range(folded.num_layers):
        read = again.block(layer)
        for part, values in folded.block(layer).items():
            np.testing.assert_array_equal(read[part], values, err_msg=part)


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        (
            "OPTConfig",
            {**FALCON, "ffn_dim": 96, "word_embed_proj_dim": 64},
            "opt, an architecture it does not",
        ),
        ("MistralConfig", {**WIDE, "sliding_window": 5}, "a window of 5 tokens"),
        ("Phi3Config", {**PHI3, "sliding_window": 5}, "a window of 5 tokens"),
        (
            "Phi3Config",
            {**PHI3, "sliding_window": None, "head_dim": 32},
            "heads that together are not as wide",
        ),
        ("LlamaConfig", {**GROUPED, "hidden_act": "gelu"}, "gelu as activation"),
        ("GPT2Config", {**GPT2, "activation_function": "relu"}, "relu as activation"),
        ("Qwen2Config", {**GROUPED, "rope_parameters": LLAMA3}, "a scaling of each frequency"),
        ("Qwen3Config", {**WIDE, "attention_bias": True}, "a bias of o"),
        ("MixtralConfig", {**WIDE, **MIXTRAL, "sliding_window": 5}, "a window of 5 tokens"),
        ("Qwen2MoeConfig", {**SHARED, "norm_topk_prob": True}, "experts whose shares sum to 1"),
        ("Qwen2MoeConfig", {**SHARED, "qkv_bias": False}, "q, k and v without biases"),
        ("Qwen3MoeConfig", {**WIDE, **MOE}, "experts whose shares do not sum to 1"),
        ("GPTNeoXConfig", {**PLAIN, **ENDS, "attention_bias": False}, "attention without biases"),
        ("Gemma2Config", {**GEMMA, **CAPS, "attn_logit_softcapping": None}, "scores or logits without a cap"),
        ("Gemma2Config", {**GEMMA, **CAPS, "tie_word_embeddings": False}, "a head beside the embedding"),
        ("Gemma2Config", {**GEMMA, **CAPS, "attention_bias": True}, "biases of q, k, v and o"),
        (
            "Gemma2Config",
            {**GEMMA, **CAPS, "query_pre_attn_scalar": 24},
            "query_pre_attn_scalar other than 32",
        ),
        (
            "Gemma2Config",
            {**GEMMA, **CAPS, "layer_types": ["full_attention", "sliding_attention"] * 2},
            "windows in blocks but all of each few but the last",
        ),
        ("Gemma3TextConfig", {**GEMMA, "attn_logit_softcapping": 3.0}, "capped scores"),
        (
            "Gemma3TextConfig",
            {**GEMMA, "rope_parameters": {"full_attention": LOCAL, "sliding_attention": LINEAR}},
            "scaled positions in windows",
        ),
    ],
)
def test_what_llama_cpp_lacks_is_refused(kind: str, fields: Json, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=f"gguf cannot hold {reason}.*: llama.cpp does not compute"):
        written(tmp_path, kind, fields, "W16A16")
    assert not (tmp_path / "out").exists()


class Described:
    """The tensors of a file, by their shapes alone."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.shapes = {f"{name.replace('__', '.')}.weight": shape for name, shape in shapes.items()}

    def names(self) -> list[str]:
        return sorted(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]


def metadata(architecture: str, **fields: object) -> Fields:
    sizes: Json = {
        "embedding_length": 64, "feed_forward_length": 96, "block_count": 13, "context_length": 64,
        "attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-6,
    }  # fmt: skip
    named = {f"{architecture}.{name}": value for name, value in {**sizes, **fields}.items()}
    return Fields({"general.architecture": architecture, **named}, "m.gguf")


def test_what_files_of_gemma_leave_out_is_as_llama_cpp_takes_it() -> None:
    for name, every in (("gemma2", 2), ("gemma3", 6)):
        adapter = adapter_for_gguf(name, "m.gguf")
        config: Json = adapter.config_from_gguf(metadata(name), Described(token_embd=(VOCAB, 64)))  # type: ignore[arg-type]
        whole = [layer for layer, kind in enumerate(config["layer_types"]) if kind == "full_attention"]
        assert whole == list(range(every - 1, 13, every))
        architecture = adapter.architecture(Fields(config, "m.gguf"))
        assert architecture.spec.attention_scale == 0.25
        assert architecture.logit_cap == (30.0 if name == "gemma2" else 0.0)
        assert architecture.other is not None
        assert architecture.other.spec.window == 4096
    assert architecture.other.rope is not None
    assert architecture.other.rope.theta == 1e4


def test_the_largest_gemmas_scale_queries_by_another_width() -> None:
    adapter = adapter_for_gguf("gemma2", "m.gguf")
    fields = metadata("gemma2", block_count=46, **{"attention.key_length": 32})
    config = adapter.config_from_gguf(fields, Described(token_embd=(VOCAB, 64)))  # type: ignore[arg-type]
    assert config["query_pre_attn_scalar"] == 16


def test_experts_of_an_architecture_without_them_are_refused() -> None:
    fields = metadata("qwen3", expert_count=4)
    with pytest.raises(CheckpointError, match=r"m\.gguf: qwen3\.expert_count 4 is not supported"):
        adapter_for_gguf("qwen3", "m.gguf").config_from_gguf(fields, Described(token_embd=(VOCAB, 64)))  # type: ignore[arg-type]


def test_long_factors_of_phi3_are_refused() -> None:
    adapter = adapter_for_gguf("phi3", "m.gguf")
    source = Described(token_embd=(VOCAB, 64), rope_factors_long=(8,))
    with pytest.raises(CheckpointError, match=r"m\.gguf: tensor rope_factors_long\.weight is not supported"):
        adapter.config_from_gguf(metadata("phi3"), source)  # type: ignore[arg-type]
