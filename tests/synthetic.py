"""Small random LLaMA checkpoints, written at test time in every format we read."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

F32 = npt.NDArray[np.float32]
Dtype = Literal["float32", "float16", "bfloat16"]

_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_CHARACTERS = " .,\n" + string.ascii_lowercase + string.ascii_uppercase + string.digits


def stored_bytes(values: F32, dtype: Dtype) -> bytes:
    """Return the little-endian bytes of float32 values in a type; bfloat16 keeps the upper half."""
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"float32": "<f4", "float16": "<f2"}[dtype]).tobytes()


def safetensors_bytes(tensors: Mapping[str, F32], dtype: Dtype = "float32", pad: int = 8) -> bytes:
    """Return a safetensors file, written by hand so that tests can make it lie."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        blob = stored_bytes(values, dtype)
        offsets = [len(data), len(data) + len(blob)]
        header[name] = {"dtype": _CODES[dtype], "shape": list(values.shape), "data_offsets": offsets}
        data += blob
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % pad)
    return len(text).to_bytes(8, "little") + text + data


def llama_config(**overrides: Any) -> dict[str, Any]:
    """Return a config.json as Hugging Face writes it."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 64,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
    }
    return config | overrides


def llama_tensors(config: Mapping[str, Any], seed: int) -> dict[str, F32]:
    """Return random weights under their Hugging Face names."""
    rng = np.random.default_rng(seed)
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]

    def weight(rows: int, columns: int) -> F32:
        return np.asarray(rng.standard_normal((rows, columns)) / np.sqrt(columns), np.float32)

    def gain() -> F32:
        return np.asarray(rng.uniform(0.5, 1.5, hidden), np.float32)

    tensors = {"model.embed_tokens.weight": weight(vocab, hidden) * np.float32(np.sqrt(hidden))}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        linears = {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }
        tensors[f"{at}.input_layernorm.weight"] = gain()
        tensors[f"{at}.post_attention_layernorm.weight"] = gain()
        for name, (rows, columns) in linears.items():
            tensors[f"{at}.{name}.weight"] = weight(rows, columns)
            if config["mlp_bias" if name.startswith("mlp") else "attention_bias"]:
                tensors[f"{at}.{name}.bias"] = rng.standard_normal(rows).astype(np.float32)
    tensors["model.norm.weight"] = gain()
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = weight(vocab, hidden)
    return tensors


def character_tokenizer(vocab: int) -> Tokenizer:
    """Return a tokenizer of single characters with at most `vocab` of them, and <unk>."""
    symbols = ["<unk>", *_CHARACTERS][:vocab]
    ids = {symbol: index for index, symbol in enumerate(symbols)}
    return Tokenizer(models.BPE(vocab=ids, merges=[], unk_token="<unk>"))


def byte_level_tokenizer(merges: list[tuple[str, str]], special: tuple[str, ...] = ()) -> Tokenizer:
    """Return a GPT-2 style tokenizer: 256 bytes, the given merges, special tokens at the end."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def _write_weights(folder: Path, tensors: dict[str, F32], dtype: Dtype, shards: int) -> None:
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, dtype))
        return
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file_name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        (folder / file_name).write_bytes(safetensors_bytes(part, dtype))
        weight_map |= dict.fromkeys(part, file_name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_llama_folder(
    path: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 44,
    vocab: int = 64,
    dtype: Dtype = "float32",
    shards: int = 1,
    tokenizer: bool = True,
    **config_overrides: Any,
) -> Path:
    """Write a random LLaMA in the Hugging Face layout and return its folder.

    The head dimension is hidden / heads unless `head_dim` is among the overrides. Any key of config.json
    can be overridden; biases and an untied head follow from theirs.
    """
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "head_dim": hidden // heads,
    }
    config = llama_config(**(sizes | config_overrides))
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config, indent=1))
    _write_weights(path, llama_tensors(config, seed), dtype, shards)
    if tokenizer:
        character_tokenizer(vocab).save(str(path / "tokenizer.json"))
    return path


def _llama_cpp_rows(rows: F32, heads: int) -> F32:
    # As in llama.cpp's converter: halves of each head become neighbours.
    half = rows.shape[0] // heads // 2
    return np.ascontiguousarray(rows.reshape(heads, 2, half, -1).swapaxes(1, 2)).reshape(rows.shape)


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, part = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{_GGUF_NAMES[part]}.{kind}"
    return f"{_GGUF_NAMES[stem]}.{kind}"


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece vocabulary: scores of the pieces in their order, and the kinds other than 1."""

    scores: dict[str, float]
    kinds: dict[str, int]
    space_prefix: bool = True


def _add_tokenizer(writer: Any, tokenizer: Tokenizer | Pieces, pre: str) -> None:
    if isinstance(tokenizer, Pieces):
        writer.add_tokenizer_model("llama")
        writer.add_token_list(list(tokenizer.scores))
        writer.add_token_scores(list(tokenizer.scores.values()))
        writer.add_token_types([tokenizer.kinds.get(piece, 1) for piece in tokenizer.scores])
        writer.add_unk_token_id(0)
        writer.add_add_space_prefix(tokenizer.space_prefix)
        return
    state = json.loads(tokenizer.to_str())
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    special = {token["content"] for token in state["added_tokens"]}
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    merges = state["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])


def write_llama_gguf(
    path: Path,
    *,
    seed: int = 0,
    kind: str = "F32",
    tokenizer: Tokenizer | Pieces | None = None,
    split: int = 0,
    pre: str = "gpt-2",
    extra: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, F32] | None = None,
    **config_overrides: Any,
) -> Path:
    """Write the model of :func:`llama_tensors` as GGUF with matrices in a number type, and return its path.

    With `split` it becomes parts of so many tensors each. `extra` holds further fields: strings, ints and
    floats; `extra_tensors` go in under their GGUF names.
    """
    import gguf

    config = llama_config(**config_overrides)
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    add_field: dict[type, Any] = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
    for key, value in (extra or {}).items():
        add_field[type(value)](key, value)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer, pre)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, values in llama_tensors(config, seed).items():
        part = name.split(".")[-2]
        stored = _llama_cpp_rows(values, heads[part]) if part in heads else values
        number_type = gguf.GGMLQuantizationType[kind if stored.ndim == 2 else "F32"]
        writer.add_tensor(_gguf_name(name), gguf.quants.quantize(stored, number_type), raw_dtype=number_type)
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
