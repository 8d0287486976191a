"""Small files that ask for much: row 1 of the reliability figures, time and memory."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import outcome
from synthetic import write_llama_folder

from omniquant.errors import CheckpointError
from omniquant.models import Model, load_model

MEBIBYTE = 1 << 20


def tiny_tensors(count: int) -> bytes:
    entries = (
        f'"{i:x}":{{"dtype":"F32","shape":[],"data_offsets":[{4 * i},{4 * i + 4}]}}' for i in range(count)
    )
    header = ("{" + ",".join(entries) + "}").encode()
    return struct.pack("<Q", len(header)) + header + bytes(4 * count)


def gguf_bytes(fields: bytes, field_count: int, tensors: bytes = b"", tensor_count: int = 0) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", 3, tensor_count, field_count) + fields + tensors
    return header + bytes(-len(header) % 32)


def gguf_array(kind: int, count: int, item: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, kind, count) + item * count


def many_gguf_tensors(count: int) -> bytes:
    entries = (
        struct.pack("<Q", 8) + b"%08x" % i + struct.pack("<I4QIQ", 4, 1, 1, 1, 1, 0, 32 * i)
        for i in range(count)
    )
    return gguf_bytes(b"", 0, b"".join(entries), count) + bytes(32 * count)


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "many tensors": ("model.safetensors", lambda: tiny_tensors(46_000)),
    "nested header": ("model.safetensors", lambda: struct.pack("<Q", 3_000_000) + b"[" * 3_000_000),
    "deep config": ("config.json", lambda: b"[" * MEBIBYTE),
    "wide config": ("config.json", lambda: b'{"a":[' + b"[]," * 300_000 + b"[]]}"),
    "digits": ("config.json", lambda: b'{"a":' + b"9" * (MEBIBYTE - 10) + b"}"),
    "empty strings": ("m.gguf", lambda: gguf_bytes(gguf_array(8, 2**20, bytes(8)), 1)),
    "bytes": ("m.gguf", lambda: gguf_bytes(gguf_array(0, 2**24, b"x"), 1)),
    "many GGUF tensors": ("m.gguf", lambda: many_gguf_tensors(2**14)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_cost_little_time_and_memory(tmp_path: Path, bomb: str) -> None:
    name, make = BOMBS[bomb]
    folder = write_llama_folder(tmp_path / "m")
    content = make()
    (folder / name).write_bytes(content)
    path = folder / name if name.endswith("gguf") else folder
    if name.endswith("gguf"):
        pytest.importorskip("gguf", reason="the gguf package is not installed")
    assert outcome(path, load_model) is None
    # Once more and untimed: tracing makes Python many times slower.
    tracemalloc.start()
    try:
        outcome_untimed(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(content) + 64 * MEBIBYTE


def outcome_untimed(path: Path) -> Model | None:
    try:
        return load_model(path)
    except CheckpointError:
        return None
