"""Hugging Face folders: what all of them share, and the plain one whose weights are dequantized.

The plain folder holds each weight as (q - z) scale in float32 (float16 where that is exact), so every engine
that reads the original model reads this one and computes what the calibration saw.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from omniquant.checkpoint.atomic import atomic_write_bytes
from omniquant.checkpoint.text_settings import TextSettings
from omniquant.export.card import model_card
from omniquant.export.content import Block, Content, Linear
from omniquant.export.folder import Shards, Tensors, compact, write_json

_ARCHITECTURES = {"llama": "LlamaForCausalLM"}
_LOAD = """\
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")
```"""


def write(content: Content, folder: Path) -> None:
    """Write the plain folder."""
    write_common(content, folder)
    write_tensors(content, folder, lambda linear, _: {"weight": compact(linear.weight())})
    card = model_card(content, "a plain Hugging Face folder, weights dequantized", "transformers", _LOAD)
    atomic_write_bytes(folder / "README.md", card.encode())


def write_tensors(content: Content, folder: Path, tensors_of: Callable[[Linear, int], Tensors]) -> None:
    """Write all tensors as safetensors, a block at a time.

    `tensors_of` gives those of one linear and the index of its block, by what follows the linear's name.
    """
    shards = Shards(folder)
    for index in range(content.result.header.num_layers):
        block = content.block(index)
        shards.add(
            named(content, index, {**linear_tensors(block, index, tensors_of), **float_tensors(block)})
        )
    shards.add({name: compact(values) for name, values in content.outer_tensors().items()})
    shards.close()


def linear_tensors(block: Block, index: int, tensors_of: Callable[[Linear, int], Tensors]) -> Tensors:
    """Return what `tensors_of` gives for each linear of a block, by our names."""
    return {
        f"{name}.{kind}": values
        for name, linear in block.linears.items()
        for kind, values in tensors_of(linear, index).items()
    }


def float_tensors(block: Block) -> Tensors:
    """Return norms, biases and weights that stay in float, by our names."""
    biases = {f"{n}.bias": linear.bias for n, linear in block.linears.items() if linear.bias is not None}
    return {name: compact(values) for name, values in (block.tensors | biases).items()}


def named(content: Content, index: int, tensors: Tensors) -> Tensors:
    """Return tensors of a block under their Hugging Face names.

    "q.scales" becomes the name of "q.weight" with its last part replaced.

    Raises
    ------
    UnsupportedError
        If the architecture has no slot for a bias.
    """
    names = content.block_names(index)
    out = {}
    for name, values in tensors.items():
        part, _, kind = name.partition(".")
        weight = names[f"{part}.weight"]
        if kind == "bias":
            content.slot({known: (key, None) for known, key in names.items()}, name, index)
        out[weight.removesuffix("weight") + kind] = values
    return out


def folded_tensors(content: Content, index: int) -> Tensors:
    """Return a block's tensors under their Hugging Face names, weights dequantized."""
    block = content.block(index)
    weights = linear_tensors(block, index, lambda linear, _: {"weight": linear.weight()})
    return named(content, index, {**weights, **float_tensors(block)})


def write_common(content: Content, folder: Path, quantization: dict[str, Any] | None = None) -> None:
    """Write config.json, generation_config.json and the tokenizer's files."""
    config = model_config(content)
    if quantization is not None:
        config["quantization_config"] = quantization
    settings = content.text_settings()
    for name, token in (("bos_token_id", settings.bos), ("eos_token_id", settings.eos[:1])):
        if token not in (None, ()):
            config.setdefault(name, token if isinstance(token, int) else token[0])
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", _generation(settings))
    tokenizer = content.tokenizer_json()
    if tokenizer is None:
        return
    atomic_write_bytes(folder / "tokenizer.json", tokenizer.encode())
    told = _tokenizer_config(config, settings, content.result.fold().tokenizer)
    write_json(folder / "tokenizer_config.json", told)


def model_config(content: Content) -> dict[str, Any]:
    """Return config.json without quantization: the original's, complete and in float32."""
    config: dict[str, Any] = dict(content.result.fold().config)
    config.pop("torch_dtype", None)
    config |= {"dtype": "float32", "torch_dtype": "float32"}  # new and old readers
    config.setdefault("architectures", [_ARCHITECTURES[str(config["model_type"])]])
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        rope = {"rope_type": "default"} | rope
        config["rope_parameters"] = rope
        config.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        if rope["rope_type"] != "default":  # where readers of before rope_parameters look
            config.setdefault("rope_scaling", {k: v for k, v in rope.items() if k != "rope_theta"})
    return config


def _generation(settings: TextSettings) -> dict[str, Any]:
    values: dict[str, Any] = {"_from_model_config": True}
    if settings.bos is not None:
        values["bos_token_id"] = settings.bos
    if settings.eos:
        values["eos_token_id"] = settings.eos[0] if len(settings.eos) == 1 else list(settings.eos)
    return values


def _tokenizer_config(config: dict[str, Any], settings: TextSettings, tokenizer: Tokenizer) -> dict[str, Any]:
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.get("max_position_embeddings", 2048),
        "clean_up_tokenization_spaces": False,
        "add_bos_token": settings.add_bos,
    }
    if settings.bos is not None:
        values["bos_token"] = tokenizer.id_to_token(settings.bos)
    if settings.eos:
        values["eos_token"] = tokenizer.id_to_token(settings.eos[0])
    if settings.chat_template is not None:
        values["chat_template"] = settings.chat_template
    return values
