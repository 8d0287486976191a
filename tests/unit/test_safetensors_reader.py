"""Reading safetensors: values, views, shards; each refused file by its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import Dtype, safetensors_bytes, stored_bytes, write_llama_folder

from omniquant.checkpoint import SafetensorsFolder, UnsupportedCheckpointError, check_finite
from omniquant.errors import CheckpointError, NotFiniteError, UnsupportedError

MATRIX = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
SPECIAL = np.array([0.0, -0.0, 1e-40, np.inf, -np.inf, np.nan, 65504.0, 1e-7], np.float32)


def folder_of(path: Path, content: bytes) -> SafetensorsFolder:
    (path / "model.safetensors").write_bytes(content)
    return SafetensorsFolder(path)


def raw(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_float32_is_a_view_of_the_file(tmp_path: Path) -> None:
    loaded = folder_of(tmp_path, safetensors_bytes({"w": MATRIX})).load("w")
    np.testing.assert_array_equal(loaded, MATRIX)
    assert loaded.dtype == np.float32
    assert not loaded.flags.writeable
    assert not loaded.flags.owndata
    assert loaded.flags.c_contiguous
    assert loaded.flags.aligned


def test_unaligned_float32_is_copied(tmp_path: Path) -> None:
    content = safetensors_bytes({"w": MATRIX}, pad=1)
    while int.from_bytes(content[:8], "little") % 4 == 0:
        content = safetensors_bytes({"w" * (len(content) % 7 + 2): MATRIX}, pad=1)
    folder = folder_of(tmp_path, content)
    loaded = folder.load(folder.names()[0])
    assert loaded.flags.aligned
    np.testing.assert_array_equal(loaded, MATRIX)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("values", [MATRIX, SPECIAL, np.zeros((0, 5), np.float32), np.array(2.5, np.float32)])
def test_widening_is_exact(tmp_path: Path, dtype: Dtype, values: Any) -> None:
    with np.errstate(over="ignore"):
        loaded = folder_of(tmp_path, safetensors_bytes({"w": values}, dtype)).load("w")
        bits = np.frombuffer(stored_bytes(values, dtype), "<f2" if dtype == "float16" else "<u2")
    expected = values
    if dtype == "float16":
        expected = bits.astype(np.float32).reshape(values.shape)
    if dtype == "bfloat16":
        # Independent of the reader: truncating the lower half of the float32.
        expected = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    assert loaded.dtype == np.float32
    assert loaded.shape == values.shape
    assert loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_equal_the_rows_of_the_whole(tmp_path: Path, dtype: Dtype) -> None:
    folder = folder_of(tmp_path, safetensors_bytes({"w": MATRIX}, dtype))
    np.testing.assert_array_equal(folder.load_rows("w", [2, 0, 2]), folder.load("w")[[2, 0, 2]])
    assert folder.load_rows("w", np.zeros(0, np.int64)).shape == (0, 4)


def test_inventory(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, safetensors_bytes({"b": MATRIX, "a": SPECIAL}, "float16"))
    assert folder.names() == ["a", "b"]
    assert folder.shape("b") == (3, 4)
    assert folder.dtype("b") == "F16"
    assert folder.files() == [tmp_path / "model.safetensors"]
    assert folder.file_of("a") == tmp_path / "model.safetensors"
    assert folder.description == "safetensors float16"
    assert SafetensorsFolder(tmp_path / "model.safetensors").names() == ["a", "b"]


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_shards_equal_one_file(tmp_path: Path, shards: int) -> None:
    one = SafetensorsFolder(write_llama_folder(tmp_path / "one"))
    many = SafetensorsFolder(write_llama_folder(tmp_path / "many", shards=shards))
    assert len(many.files()) == shards
    assert many.names() == one.names()
    for name in one.names():
        np.testing.assert_array_equal(many.load(name), one.load(name))


def test_other_types_are_refused_by_name_when_asked_for(tmp_path: Path) -> None:
    header = {"ids": entry("I64", [2], 0, 16), "w": entry("F32", [1], 16, 20)}
    folder = folder_of(tmp_path, raw(header, bytes(20)))
    assert folder.load("w").tolist() == [0.0]
    for error in (UnsupportedCheckpointError, CheckpointError, UnsupportedError):
        with pytest.raises(
            error, match=r"model\.safetensors: tensor 'ids' is 'I64', F32, F16, BF16 are read"
        ):
            folder.load("ids")


def test_missing_tensor(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, safetensors_bytes({"w": MATRIX}))
    for access in (folder.load, folder.shape, folder.dtype, folder.file_of):
        with pytest.raises(CheckpointError, match=r"tensor 'nope' is missing"):
            access("nope")


REFUSED: list[tuple[str, bytes, str]] = [
    ("empty file", b"", "not a valid safetensors file"),
    ("no header", b"\x10" + bytes(7), "not a valid safetensors file"),
    ("absurd header length", b"\xff" * 8, "header length 18446744073709551615 exceeds"),
    ("header just too long", (3 * 2**20 + 1).to_bytes(8, "little") + b"{}", "header length 3145729 exceeds"),
    ("not JSON", raw(b"{nope}"), "not a valid safetensors file"),
    ("not UTF-8", raw(b'{"\xff":1}'), "UTF-8"),
    ("an array", raw(b"[]"), "not a valid safetensors file"),
    ("entry is no object", raw(b'{"w":3}'), "not a valid safetensors file"),
    ("gap before", raw({"w": entry("F32", [1], 4, 8)}, bytes(8)), "not a valid safetensors file"),
    ("bytes after the last tensor", raw({"w": entry("F32", [1], 0, 4)}, bytes(5)), "not fully covered"),
    ("data cut off", raw({"w": entry("F32", [2], 0, 8)}, bytes(7)), "not a valid safetensors file"),
    ("shape larger than data", raw({"w": entry("F32", [3], 0, 8)}, bytes(8)), "not a valid safetensors file"),
    ("shape overflows", raw({"w": entry("F32", [2**63, 4], 0, 8)}, bytes(8)), "overflow"),
    ("negative size", raw({"w": entry("F32", [-1], 0, 8)}, bytes(8)), "not a valid safetensors file"),
    ("stop before start", raw({"w": entry("F32", [1], 4, 0)}, bytes(4)), "not a valid safetensors file"),
    ("unknown type", raw({"w": entry("F33", [1], 0, 4)}, bytes(4)), "not a valid safetensors file"),
    (
        "overlap",
        raw({"v": entry("F32", [1], 0, 4), "w": entry("F32", [1], 0, 4)}, bytes(4)),
        "not a valid safetensors file",
    ),
    (
        "a tensor twice",
        raw(b'{"w":%b,"w":%b}' % ((json.dumps(entry("F32", [1], 0, 4)).encode(),) * 2), bytes(4)),
        "key 'w' occurs twice",
    ),
]


@pytest.mark.parametrize(
    ("content", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused_files(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        folder_of(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "model.safetensors"))
    assert reason in message
    assert "\n" not in message


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="only safetensors weights are read"):
        SafetensorsFolder(tmp_path)
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        SafetensorsFolder(tmp_path / "nowhere")


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


SHARD = "model-00001-of-00002.safetensors"
NORM = "model.norm.weight"
INDEX_LIES: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    (
        "parent",
        lambda m: m.update({NORM: "../x.safetensors"}),
        "lies in '../x.safetensors', no name of a safetensors file",
    ),
    (
        "absolute",
        lambda m: m.update({NORM: "/etc/passwd"}),
        "lies in '/etc/passwd', no name of a safetensors file",
    ),
    ("nul", lambda m: m.update({NORM: "a\0b"}), "no name of a safetensors file"),
    ("dot dot", lambda m: m.update({NORM: ".."}), "no name of a safetensors file"),
    ("empty", lambda m: m.update({NORM: ""}), "no name of a safetensors file"),
    ("surrogate", lambda m: m.update({NORM: "\ud800.safetensors"}), "no name of a safetensors file"),
    ("pickle", lambda m: m.update({NORM: "pytorch_model.bin"}), "no name of a safetensors file"),
    ("number", lambda m: m.update({NORM: 3}), "lies in 3, no name of a safetensors file"),
    (
        "absent shard",
        lambda m: m.update({NORM: "z.safetensors"}),
        "z.safetensors: shard is missing, listed in",
    ),
    ("absent tensor", lambda m: m.update({"ghost": SHARD}), f"{SHARD}: tensor 'ghost' is missing"),
    ("unlisted tensor", lambda m: m.pop(NORM), f"tensor '{NORM}' is not listed"),
]


@pytest.mark.parametrize(
    ("change", "reason"), [case[1:] for case in INDEX_LIES], ids=[c[0] for c in INDEX_LIES]
)
def test_lying_index(tmp_path: Path, change: Callable[[dict[str, Any]], None], reason: str) -> None:
    folder = write_llama_folder(tmp_path / "model", shards=2)
    edit_index(folder, change)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFolder(folder)
    assert reason in str(caught.value)
    assert str(folder) in str(caught.value)


def test_missing_shard(tmp_path: Path) -> None:
    folder = write_llama_folder(tmp_path / "model", shards=2)
    (folder / SHARD).unlink()
    with pytest.raises(CheckpointError, match=f"{SHARD}: shard is missing"):
        SafetensorsFolder(folder)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    twice = safetensors_bytes({"w": MATRIX})
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(twice)
    weight_map = {"w": "a.safetensors", "v": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"b\.safetensors: tensor 'w' lies in a\.safetensors too"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "nope"])
def test_garbled_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        SafetensorsFolder(tmp_path)


def test_file_cut_after_it_was_opened(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, safetensors_bytes({"w": MATRIX}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'w'"):
        folder.load("w")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_check_finite_names_the_first_bad_value(bad: float) -> None:
    values = MATRIX.copy()
    check_finite("w", values)
    values[2, 3] = np.nan
    values[1, 2] = bad
    with pytest.raises(NotFiniteError, match=f"^w: row 1 column 2 is {bad}$"):
        check_finite("w", values)
    with pytest.raises(NotFiniteError, match=r"^w: row 1 column 2 is"):
        check_finite("w", np.asfortranarray(values))
    with pytest.raises(NotFiniteError, match=r"^b: element 2 is"):
        check_finite("b", values[1])
    with pytest.raises(NotFiniteError, match=r"^w: row 8 column 2 is"):
        check_finite("w", values, first_row=7)
    check_finite("empty", np.zeros((0, 3), np.float32))
