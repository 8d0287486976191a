"""Hugging Face folders: what all of them share, and the plain one whose weights are dequantized.

The plain folder holds each weight as (q - z) scale in float32 (float16 where that is exact), so every engine
that reads the original model reads this one and computes what the calibration saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from omniquant.checkpoint.atomic import atomic_write_bytes
from omniquant.checkpoint.source import Layout
from omniquant.checkpoint.text_settings import TextSettings
from omniquant.errors import UnsupportedError
from omniquant.export.card import model_card
from omniquant.export.content import Block, Content, Linear
from omniquant.export.folder import Shards, Tensors, compact, write_json
from omniquant.forward import F32
from omniquant.models.tensors import TensorRef, fused_rows, grouped

_LOAD = """\
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")
```"""


def write(content: Content, folder: Path) -> None:
    """Write the plain folder."""
    write_common(content, folder)
    shards = Shards(folder)
    for index in range(content.result.header.num_layers):
        shards.add(folded_tensors(content, index))
    shards.add({name: compact(values) for name, values in content.outer_tensors().items()})
    shards.close()
    card = model_card(content, "a plain Hugging Face folder, weights dequantized", "transformers", _LOAD)
    atomic_write_bytes(folder / "README.md", card.encode())


def write_tensors(content: Content, folder: Path, tensors_of: Callable[[Linear, int], Tensors]) -> None:
    """Write all tensors as safetensors, a block at a time.

    `tensors_of` gives those of one linear, as it is stored, and the index of its block, by what follows its
    name.
    """
    shards = Shards(folder)
    for index in range(content.result.header.num_layers):
        block = content.block(index)
        shards.add(_compact(content.stored(floats_of(block), index, "safetensors")))
        for weight, linear in stored_linears(content, block, index, "safetensors").items():
            stem = weight.removesuffix("weight")
            shards.add({stem + kind: values for kind, values in tensors_of(linear, index).items()})
    shards.add({name: compact(values) for name, values in content.outer_tensors().items()})
    shards.close()


def floats_of(block: Block) -> dict[str, F32]:
    """Return norms, biases and weights that stay in float, by our names."""
    biases = {f"{n}.bias": linear.bias for n, linear in block.linears.items() if linear.bias is not None}
    return block.tensors | biases


def folded_tensors(content: Content, index: int) -> dict[str, npt.NDArray[np.floating]]:
    """Return a block's tensors as Hugging Face stores them, weights dequantized."""
    block = content.block(index)
    weights = {f"{name}.weight": linear.weight() for name, linear in block.linears.items()}
    return _compact(content.stored({**weights, **floats_of(block)}, index, "safetensors"))


def _compact(tensors: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.floating]]:
    return {name: compact(values) for name, values in tensors.items()}


def stored_linears(content: Content, block: Block, index: int, layout: Layout) -> dict[str, Linear]:
    """Return the quantized linears of a block as a layout stores them, by the name of their weight.

    Raises
    ------
    UnsupportedError
        If they are stored transposed: groups and scales go along the inputs.
    """
    refs = content.refs(index, layout)
    weights = {f"{name}.weight": linear for name, linear in block.linears.items()}
    return {
        key: _fused([refs[name] for name in names], [weights[name] for name in names], index)
        for key, names in grouped(refs, weights).items()
    }


def _fused(refs: list[TensorRef], linears: list[Linear], index: int) -> Linear:
    first, linear = refs[0], linears[0]
    if first.transposed:
        raise UnsupportedError(
            f"block {index}: {first.key} is stored transposed, so packed weights have no place there; "
            "nearest: huggingface"
        )
    if first.view is None:
        return linear

    return replace(
        linear,
        name=" ".join(each.name for each in linears),
        codes=fused_rows(refs, [each.codes for each in linears]),
        scale=fused_rows(refs, [each.scale for each in linears]),
        zero_point=fused_rows(refs, [each.zero_point for each in linears]),
        bias=None,
    )


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
    config.setdefault("architectures", [content.class_name])
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values()):
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
