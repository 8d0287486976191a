"""Rows 1, 2 and 5 of the reliability figures, for what we read: damaged, truncated and lying files.

Whatever the bytes, a reader ends within a second, either with a model or with a CheckpointError of one
line that names the file.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import GGUF_SIZES, SIZES, outcome, read_everything, same
from synthetic import llama_config, llama_tensors, safetensors_bytes, write_llama_folder, write_llama_gguf

from omniquant.checkpoint import check_finite
from omniquant.checkpoint.gguf_header import read_header
from omniquant.errors import CheckpointError, NotFiniteError
from omniquant.models import load_model

MEBIBYTE = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_llama_folder(
        tmp_path / "model", layers=1, hidden=8, heads=2, kv_heads=1, ffn=12, vocab=16, dtype="bfloat16"
    )


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    pytest.importorskip("gguf", reason="the gguf package is not installed")
    return write_llama_gguf(tmp_path / "model.gguf", kind="Q8_0", **GGUF_SIZES)


def header_end(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


# --- truncation


def cuts(header: int, size: int) -> Iterator[int]:
    """Every byte of the header and 1,000 places in the data."""
    yield from range(header)
    yield from sorted(set(np.linspace(header, size - 1, 1000).astype(int).tolist()))


def test_truncated_safetensors(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for size in cuts(header_end(content), len(content)):
        weights.write_bytes(content[:size])
        assert outcome(folder, load_model, "model.safetensors") is None


def test_truncated_shard(tmp_path: Path) -> None:
    folder = write_llama_folder(tmp_path / "m", layers=1, shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    for size in range(0, len(content), 97):
        shard.write_bytes(content[:size])
        assert outcome(folder, load_model, shard.name) is None


def test_truncated_gguf(gguf_file: Path) -> None:
    content = gguf_file.read_bytes()
    header = read_header(memoryview(content), "x")
    # The last 31 bytes may be padding, which other writers leave out.
    for size in cuts(header.data_start, len(content) - 31):
        gguf_file.write_bytes(content[:size])
        assert outcome(gguf_file, load_model) is None


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_truncated_json(tmp_path: Path, name: str) -> None:
    folder = write_llama_folder(tmp_path / "m", layers=1, shards=2)
    content = (folder / name).read_bytes().rstrip()
    for size in range(0, len(content), 1 + len(content) // 500):
        (folder / name).write_bytes(content[:size])
        assert outcome(folder, lambda path: load_model(path).tokenizer, name) is None


# --- flipped bits


def flipped(content: bytes, start: int, stop: int, stride: int = 1) -> Iterator[bytes]:
    for bit in range(8 * start, 8 * stop, stride):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_flipped_header_bits_of_safetensors_are_refused_or_change_nothing(folder: Path, stride: int) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    expected = read_everything(folder)
    refused = 0
    for changed in flipped(content, 0, header_end(content), stride):
        weights.write_bytes(changed)
        found = outcome(folder)
        assert found is None or same(found, expected)
        refused += found is None
    # What changes nothing is the metadata and the padding.
    assert refused > 0.9 * 8 * header_end(content) / stride


@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_flipped_header_bits_of_gguf(gguf_file: Path, stride: int) -> None:
    # Its metadata carry no checksum: another rope base is another model, but never another exception.
    content = gguf_file.read_bytes()
    for changed in flipped(content, 0, 2500, stride):
        gguf_file.write_bytes(changed)
        outcome(gguf_file)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_flipped_bits_of_json(tmp_path: Path, name: str) -> None:
    folder = write_llama_folder(tmp_path / "m", layers=1, shards=2)
    content = (folder / name).read_bytes()
    for changed in flipped(content, 0, len(content), 3):
        (folder / name).write_bytes(changed)
        outcome(folder)


def test_flipped_bits_of_a_tokenizer(folder: Path) -> None:
    content = (folder / "tokenizer.json").read_bytes()
    for changed in flipped(content, 0, len(content), 5):
        (folder / "tokenizer.json").write_bytes(changed)
        outcome(folder, lambda path: load_model(path).tokenizer, "tokenizer.json")


# --- lies


LIES: list[Any] = [
    0,
    -1,
    1.5,
    2.0,
    1e300,
    2**31,
    10**30,
    "8",
    "",
    None,
    True,
    [],
    [8],
    {},
    {"a": 1},
    "\ud800\n",
]
SIZE_FIELDS = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]


@pytest.mark.parametrize("field", SIZE_FIELDS)
def test_sizes_that_are_none(folder: Path, field: str) -> None:
    for lie in LIES:
        write_config(folder, {field: lie})
        assert outcome(folder, load_model, f"config.json: {field} is") is None


WRONG_SIZES = [
    (field, min(SIZES[field] + change, 2**31 - 1))
    for field in (*SIZE_FIELDS, "num_key_value_heads", "head_dim")
    for change in (-1, 1, 7, 1000, 2**31 - 1)
]


@pytest.mark.parametrize(("field", "lie"), WRONG_SIZES)
def test_sizes_that_do_not_match_the_tensors(folder: Path, field: str, lie: int) -> None:
    write_config(folder, {field: lie})
    assert outcome(folder, load_model, str(folder)) is None


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"hidden_size": 10}, "tensor model.embed_tokens.weight is [16, 8], the configuration says [16, 10]"),
        ({"vocab_size": 17}, "tensor model.embed_tokens.weight is [16, 8], the configuration says [17, 8]"),
        ({"intermediate_size": 13}, "mlp.gate_proj.weight is [12, 8], the configuration says [13, 8]"),
        ({"num_key_value_heads": 2}, "self_attn.k_proj.weight is [4, 8], the configuration says [8, 8]"),
        ({"head_dim": 6}, "self_attn.q_proj.weight is [8, 8], the configuration says [12, 8]"),
        ({"head_dim": 5}, "head_dim is 5, rotary positions need an even one"),
        (
            {"num_attention_heads": 3, "num_key_value_heads": 2},
            "num_heads is 3, no multiple of num_kv_heads 2",
        ),
        (
            {"num_attention_heads": 3, "head_dim": None},
            "hidden_size 8 is no multiple of num_attention_heads 3",
        ),
        ({"num_hidden_layers": 2}, "tensor 'model.layers.1.input_layernorm.weight' is missing"),
        ({"tie_word_embeddings": False}, "tensor 'lm_head.weight' is missing"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', expected true or false"),
        ({"attention_bias": True}, "tensor 'model.layers.0.self_attn.q_proj.bias' is missing"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    ],
)
def test_lies_are_named(folder: Path, lie: dict[str, Any], reason: str) -> None:
    write_config(folder, lie)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert reason in str(caught.value)
    assert str(folder) in str(caught.value)


def test_more_layers_than_the_config_admits(tmp_path: Path) -> None:
    folder = write_llama_folder(tmp_path / "m", layers=3)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(CheckpointError, match=r"tensor 'model\.layers\.2\..*the configuration says 2 layers"):
        load_model(folder)


def write_config(folder: Path, change: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(llama_config(**(SIZES | change))))


GARBAGE = [
    b"",
    b"null",
    b"[]",
    b"3",
    b'"text"',
    b"{",
    b"{}",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"hidden_size": 8, "hidden_size": 8}',
    b'{"a": ' + b"9" * 5000 + b"}",
    b"\xef\xbb\xbf{}",
    json.dumps(llama_config(**SIZES)).encode() + b" " * MEBIBYTE,
    b"\0" * 100,
]


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_for_a_config(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert outcome(folder, load_model, "config.json") is None


def test_a_padded_config_of_the_largest_size(folder: Path) -> None:
    content = json.dumps(llama_config(**SIZES)).encode()
    (folder / "config.json").write_bytes(content.ljust(MEBIBYTE))
    assert outcome(folder, load_model) is not None


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_for_a_tokenizer(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    assert outcome(folder, lambda path: load_model(path).tokenizer, "tokenizer.json") is None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert outcome(folder, load_model, name) is None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_folders_in_the_place_of_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    assert outcome(folder, lambda path: load_model(path).tokenizer, name) is None


def test_an_empty_folder(tmp_path: Path) -> None:
    assert outcome(tmp_path, load_model, "config.json: cannot read: No such file") is None


def test_tokenizer_of_another_model(folder: Path, tmp_path: Path) -> None:
    other = write_llama_folder(tmp_path / "other", vocab=60)
    shutil.copy(other / "tokenizer.json", folder / "tokenizer.json")
    assert (
        outcome(folder, lambda path: load_model(path).tokenizer, "60 tokens but the model's vocab_size")
        is None
    )


# --- values that are no numbers


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_that_are_not_finite_load_and_are_named(tmp_path: Path, bad: float, dtype: Any) -> None:
    folder = write_llama_folder(tmp_path / "m", dtype=dtype)
    tensors = llama_tensors(llama_config(), 0)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = bad
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, dtype))
    block = load_model(folder).block(1)
    check_finite("up.weight", block["gate.weight"])
    with pytest.raises(NotFiniteError, match=f"up.weight: row 3 column 5 is {bad}"):
        check_finite("up.weight", block["up.weight"])


def test_scales_of_gguf_that_are_not_finite(gguf_file: Path) -> None:
    content = bytearray(gguf_file.read_bytes())
    header = read_header(memoryview(bytes(content)), "x")
    place = header.data_start + header.tensors["blk.0.ffn_up.weight"].offset
    content[place : place + 2] = struct.pack("<H", 0x7E00)  # the scale of the first 32 values
    gguf_file.write_bytes(content)
    with pytest.raises(NotFiniteError, match=r"up\.weight: row 0 column 0 is nan"):
        check_finite("up.weight", load_model(gguf_file).block(0)["up.weight"])
