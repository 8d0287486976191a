"""Random bytes and random changes: any reader, any file, only CheckpointError (row 1 of reliability)."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hostile import GGUF_SIZES, SIZES, outcome, read_everything
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import byte_level_tokenizer, llama_config, write_llama_folder, write_llama_gguf

from omniquant.models import load_model

SETTINGS = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(content=st.binary(max_size=400))
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "model.gguf"):
        with example(tmp_path_factory, name, content) as path:
            outcome(path, lambda where: load_model(where).tokenizer)


@SETTINGS
@given(header=st.binary(max_size=200), data=st.binary(max_size=64))
def test_random_safetensors_headers(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, data: bytes
) -> None:
    with example(
        tmp_path_factory, "model.safetensors", struct.pack("<Q", len(header)) + header + data
    ) as path:
        outcome(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@SETTINGS
@given(changes=st.dictionaries(st.sampled_from([*llama_config(), "rope_scaling", "rope_parameters"]), JSON))
def test_random_configs(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]) -> None:
    content = json.dumps(llama_config(**(SIZES | changes))).encode()
    with example(tmp_path_factory, "config.json", content) as path:
        outcome(path)


@SETTINGS
@given(data=st.data())
def test_spliced_gguf(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    pytest.importorskip("gguf", reason="the gguf package is not installed")
    content = bytearray(valid_gguf(tmp_path_factory))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    with example(tmp_path_factory, "model.gguf", bytes(content)) as path:
        outcome(path, lambda where: (read_everything(where), load_model(where).tokenizer))


def valid_gguf(factory: pytest.TempPathFactory, cache: list[bytes] = []) -> bytes:  # noqa: B006
    if not cache:
        path = factory.mktemp("valid") / "model.gguf"
        write_llama_gguf(
            path, tokenizer=byte_level_tokenizer([("t", "h")]), **(GGUF_SIZES | {"vocab_size": 260})
        )
        cache.append(path.read_bytes())
    return cache[0]


@contextmanager
def example(factory: pytest.TempPathFactory, name: str, content: bytes) -> Iterator[Path]:
    """Yield a model of which one file has the given content; hypothesis makes many in one test."""
    folder = factory.mktemp("example")
    if name.endswith("gguf"):
        (folder / name).write_bytes(content)
        yield folder / name
    else:
        write_llama_folder(folder, layers=1, hidden=8, heads=2, kv_heads=1, ffn=12, vocab=16)
        (folder / name).write_bytes(content)
        yield folder
    shutil.rmtree(folder)
