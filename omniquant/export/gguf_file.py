"""GGUF for llama.cpp: Q4_1, Q4_0 or Q8_0 blocks of 32 inputs, and every key llama.cpp asks for.

    Q4_1   float16 d, float16 m, 16 bytes    d q + m          asymmetric 4 bits: d = h, m = -z h
    Q4_0   float16 d, 16 bytes               d (q - 8)        symmetric 4 bits
    Q8_0   float16 d, 32 int8                d q              symmetric 8 bits

Byte j of a 4-bit block holds values j (low half) and j + 16. Groups are multiples of a block and repeat their
scale in each. Calibrated with ``target="gguf"``, h and z h are float16 already and nothing is rounded here.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant.checkpoint.atomic import atomic_write_bytes
from omniquant.config.scheme import FLOAT_BITS
from omniquant.export.bits import halves
from omniquant.export.card import model_card
from omniquant.export.content import Content, Linear
from omniquant.export.gguf_fields import add_architecture
from omniquant.export.gguf_tokenizer import add_tokenizer
from omniquant.export.huggingface import floats_of, stored_linears, write_common
from omniquant.forward import F32
from omniquant.models.spec import quantized_shapes
from omniquant.models.tensors import stored_tensors
from omniquant.runtime.matrix import BFLOAT, BYTES, FLOAT, HALF, NIBBLES, Matrix

BLOCK = 32
FILE_NAME = "model.gguf"

Bytes = npt.NDArray[np.uint8]

_LOAD = """\
    llama-cli --model model.gguf --prompt TEXT"""
_KINDS = {FLOAT: "F32", HALF: "F16", BFLOAT: "BF16", BYTES: "Q8_0", NIBBLES: "Q4_0"}


def write(content: Content, folder: Path) -> None:
    """Write the folder."""
    library = importlib.import_module("gguf")
    write_common(content, folder)
    writer = library.GGUFWriter(folder / FILE_NAME, content.gguf_architecture)
    kinds = _types(content)
    writer.add_quantization_version(library.GGML_QUANT_VERSION)
    most = "ALL_F32" if kinds[0] == "F32" else f"MOSTLY_{kinds[0]}"
    writer.add_file_type(library.LlamaFileType[most])
    writer.add_name(content.result.header.model["name"])
    add_architecture(writer, library, content.result.architecture)
    add_tokenizer(writer, content)
    _add_tensors(writer, library, content)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    card = model_card(content, f"GGUF {', '.join(kinds)}", "gguf", _LOAD, "gguf")
    atomic_write_bytes(folder / "README.md", card.encode())


def number_type(bits: int, symmetric: bool) -> str:
    """Return the type of linears."""
    if bits >= FLOAT_BITS:
        return "F32"
    if bits == 8:
        return "Q8_0"
    return "Q4_0" if symmetric else "Q4_1"


def blocks_of(linear: Linear, kind: str) -> Bytes:
    """Return the rows of a linear as bytes of a number type: uint8 [N, K / 32 * bytes a block].

    Raises
    ------
    UnsupportedError
        If a scale is too large for a float16.
    """
    rows, columns = linear.codes.shape
    repeat = linear.group // BLOCK
    scale = np.repeat(linear.scale, repeat, axis=1)  # [N, K / 32]
    zero = np.repeat(linear.zero_point, repeat, axis=1)
    codes = linear.codes.reshape(rows, columns // BLOCK, BLOCK)
    parts: list[npt.NDArray[Any]] = [_half(scale, linear)]
    if kind == "Q8_0":
        parts.append(
            np.bitwise_xor(codes, np.uint8(128), dtype=np.uint8)
        )  # code - 128 as the byte of an int8
    else:
        if kind == "Q4_1":
            parts.append(_half(-(scale.astype(np.float64) * zero), linear))
        low, high = codes[..., : BLOCK // 2], codes[..., BLOCK // 2 :]
        parts.append(np.bitwise_or(low, np.left_shift(high, np.uint8(4))))
    return np.concatenate(parts, axis=2).reshape(rows, -1)


def _types(content: Content) -> list[str]:
    """Return the types of all linears, that of most weights first."""
    weights: dict[str, int] = {}
    architecture = content.result.architecture
    for index in range(architecture.num_layers):
        linears = content.scheme.block(index)
        for name, (rows, columns) in quantized_shapes(architecture.spec).items():
            kind = number_type(linears[name].bits, linears[name].symmetric)
            weights[kind] = weights.get(kind, 0) + rows * columns
    return sorted(weights, key=lambda kind: -weights[kind])


def _half(values: npt.NDArray[np.floating], linear: Linear) -> Bytes:
    half = halves(values, f"gguf cannot hold {linear.name}", "gguf").astype("<f2", copy=False)
    return half[..., None].view(np.uint8)


def _add_tensors(writer: Any, library: Any, content: Content) -> None:
    embedding, head = content.result.fold().matrices()
    refs = content.outer_refs("gguf")
    _add_matrix(writer, library, refs["embedding.weight"].key, embedding)
    if "lm_head.weight" in refs:
        _add_matrix(writer, library, refs["lm_head.weight"].key, head)
    for key, values in stored_tensors(refs, content.small_outer()).items():
        writer.add_tensor(key, values)
    for index in range(content.result.header.num_layers):
        block = content.block(index, "gguf")
        shapes = {ref.key: ref.shape for ref in content.refs(index, "gguf").values()}
        for key, linear in stored_linears(content, block, index, "gguf").items():
            kind = number_type(linear.bits, linear.symmetric)
            data = blocks_of(linear, kind).reshape(*shapes[key][:-1], -1)
            writer.add_tensor(key, data, raw_dtype=library.GGMLQuantizationType[kind])
        for key, values in content.stored(floats_of(block), index, "gguf").items():
            writer.add_tensor(key, values.astype(np.float32))


def _add_matrix(writer: Any, library: Any, name: str, matrix: Matrix) -> None:
    """Add embedding or head in the smallest type that holds every value exactly."""
    kind = _KINDS[matrix.kind]
    values: npt.NDArray[Any] = matrix.values
    grouped = matrix.kind == NIBBLES or (matrix.kind == BYTES and not values.shape[1] % BLOCK)
    if grouped and matrix.scales is not None:
        codes = values.view(np.uint8).reshape(*matrix.scales.shape, -1)
        scales = matrix.scales.astype("<f2")[..., None].view(np.uint8)
        values = np.concatenate([scales, codes], axis=2).reshape(len(values), -1)
    elif matrix.kind in (BYTES, BFLOAT):
        kind, values = "F32", _float32(matrix)
    writer.add_tensor(name, values, raw_dtype=library.GGMLQuantizationType[kind])


def _float32(matrix: Matrix) -> F32:
    return np.ascontiguousarray(matrix.rows(), np.float32)
