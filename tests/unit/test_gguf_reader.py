"""Reading GGUF: agreement with the gguf library, row order, tokenizer; each refused file by its reason."""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import byte_level_tokenizer, llama_config, llama_tensors, write_llama_folder, write_llama_gguf
from tokenizers import Tokenizer

from omniquant.checkpoint import GgufFile, UnsupportedCheckpointError
from omniquant.checkpoint.gguf_header import StringArray, read_header
from omniquant.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from omniquant.cli import main
from omniquant.errors import CheckpointError
from omniquant.models import load_model

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")

SMOLLM2 = os.environ.get("OMNIQUANT_SMOLLM2", "")
needs_smollm2 = pytest.mark.skipif(not SMOLLM2, reason="OMNIQUANT_SMOLLM2 does not name SmolLM2's .gguf")

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "vocab_size": 300}
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("1", "2"), ("Ġ", "Ġ"), ("e", "r")]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return byte_level_tokenizer(MERGES, ("<|end|>",))


def test_header_agrees_with_the_library(tmp_path: Path, tokenizer: Tokenizer) -> None:
    extra = {"general.name": "tïny", "x.count": 7, "x.ratio": 0.25}
    path = write_llama_gguf(tmp_path / "m.gguf", tokenizer=tokenizer, kind="Q8_0", extra=extra, **SIZES)
    assert_header_agrees(path)


@needs_smollm2
def test_header_of_smollm2_agrees_with_the_library() -> None:
    assert_header_agrees(Path(SMOLLM2))


def assert_header_agrees(path: Path) -> None:
    ours = read_header(memoryview(path.read_bytes()), str(path))
    theirs = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.fields.keys() == fields.keys()
    for name, value in fields.items():
        found = ours.fields[name]
        assert (list(found) if isinstance(found, StringArray | np.ndarray) else found) == value
    assert ours.data_start == theirs.data_offset
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        entry = ours.tensors[tensor.name]
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))
        assert entry.type_code == tensor.tensor_type
        assert ours.data_start + entry.offset == tensor.data_offset


@pytest.mark.parametrize(
    ("kind", "error"), [("F32", 0.0), ("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2), ("Q4_1", 0.12)]
)
def test_values_and_row_order_of_a_folder(tmp_path: Path, kind: str, error: float) -> None:
    folder = load_model(write_llama_folder(tmp_path / "hf", hidden=64, ffn=96, vocab=300, tokenizer=False))
    file = load_model(write_llama_gguf(tmp_path / "m.gguf", kind=kind, **SIZES))
    for layer in range(2):
        expected, found = folder.block(layer), file.block(layer)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name].flags.c_contiguous
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], values, atol=error * np.abs(values).max(), rtol=0)
    np.testing.assert_allclose(file.lm_head(), folder.lm_head(), atol=error * 6, rtol=0)
    np.testing.assert_array_equal(file.ends().final_norm["weight"], folder.ends().final_norm["weight"])
    tokens = np.array([[5, 299, 0], [5, 5, 7]])
    np.testing.assert_array_equal(file.embed(tokens), file.lm_head()[tokens])
    # GGUF keeps the constant of the norm as a float32.
    assert replace(file.spec, norm_eps=1e-5) == folder.spec
    assert file.spec.norm_eps == np.float32(1e-5)
    assert file.num_layers == 2


def test_untied_heads_and_biases(tmp_path: Path) -> None:
    options: dict[str, Any] = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}
    path = write_llama_folder(tmp_path / "hf", hidden=64, ffn=96, vocab=300, tokenizer=False, **options)
    folder, file = load_model(path), load_model(write_llama_gguf(tmp_path / "m.gguf", **SIZES, **options))
    np.testing.assert_array_equal(file.lm_head(), folder.lm_head())
    assert "q.bias" in file.block(1)
    for name, values in folder.block(1).items():
        np.testing.assert_array_equal(file.block(1)[name], values)


def test_description_and_inventory(tmp_path: Path) -> None:
    path = write_llama_gguf(tmp_path / "m.gguf", kind="Q8_0", **SIZES)
    file = GgufFile(path)
    assert file.description == "GGUF, dequantized (linears Q8_0, embedding Q8_0)"
    assert len(file.names()) == len(llama_tensors(llama_config(**SIZES), 0))
    assert file.shape("token_embd.weight") == (300, 64)
    assert file.dtype("token_embd.weight") == "Q8_0"
    assert (file.files(), file.file_of("token_embd.weight")) == ([path], path)
    rows = file.load_rows("token_embd.weight", [7, 7, 0])
    np.testing.assert_array_equal(rows, file.load("token_embd.weight")[[7, 7, 0]])
    with pytest.raises(CheckpointError, match=r"m\.gguf: tensor 'nope' is missing"):
        file.load("nope")


def test_linear_rope_scaling(tmp_path: Path) -> None:
    extra = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    scaled = load_model(write_llama_gguf(tmp_path / "s.gguf", extra=extra, **SIZES)).rope_tables(9)
    plain = load_model(write_llama_gguf(tmp_path / "p.gguf", **SIZES)).rope_tables(9)
    np.testing.assert_allclose(scaled[0][8], plain[0][2], atol=1e-6)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type 'yarn' is not supported"),
        ({"llama.attention.value_length": 8}, "llama.attention.value_length is 8, heads have 16"),
    ],
)
def test_unsupported_by_name(tmp_path: Path, extra: dict[str, Any], reason: str) -> None:
    path = write_llama_gguf(tmp_path / "m.gguf", extra=extra, **SIZES)
    with pytest.raises(UnsupportedCheckpointError) as caught:
        load_model(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"llama.expert_count": 8}, "llama.expert_used_count is missing"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 9}, "experts_per_token is 9"),
        ({"llama.expert_count": 1 << 30, "llama.expert_used_count": 2}, "num_experts is 1073741824"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 2}, "'blk.0.ffn_gate_exps.weight' is missing"),
    ],
)
def test_experts_that_are_not_there(tmp_path: Path, extra: dict[str, Any], reason: str) -> None:
    path = write_llama_gguf(tmp_path / "m.gguf", extra=extra, **SIZES)
    with pytest.raises(CheckpointError, match=f"m.gguf.*{reason}"):
        load_model(path)


def test_other_architecture(tmp_path: Path) -> None:
    path = write_llama_gguf(tmp_path / "m.gguf", **SIZES)
    path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0llamb"))
    with pytest.raises(
        UnsupportedCheckpointError, match=r"general\.architecture is 'llamb', supported are llama"
    ):
        load_model(path)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_llama_gguf(tmp_path / "m.gguf", **SIZES)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match="pip install"):
        load_model(path)


def test_a_type_the_library_cannot_dequantize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = GgufFile(write_llama_gguf(tmp_path / "m.gguf", kind="Q8_0", **SIZES))

    def refuse(*_: Any) -> None:
        raise NotImplementedError("not\nyet")

    monkeypatch.setattr(gguf.quants, "dequantize", refuse)
    with pytest.raises(UnsupportedCheckpointError, match=r"cannot dequantize Q8_0: not yet"):
        file.load("token_embd.weight")


# --- the tokenizer


TEXT = "in the house, the  12 the\n\n  Thé 1234 <|end|> 漢字 🙂 don't I'LL"


def test_tokenizer_equals_its_original(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_llama_gguf(tmp_path / "m.gguf", tokenizer=tokenizer, **SIZES)
    found = load_model(path).tokenizer
    assert found.get_vocab() == tokenizer.get_vocab()
    assert found.encode(TEXT).ids == tokenizer.encode(TEXT).ids
    assert found.decode(found.encode(TEXT).ids, skip_special_tokens=False) == TEXT


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["don", "'t", " I", "'", "LL", " x", "123456", " a", "++", "\n\n", " b"]),
        ("smollm", ["don", "'t", " I", "'", "LL", " x", *"123456", " a", "++", "\n\n", " b"]),
        ("llama-bpe", ["don", "'t", " I", "'LL", " x", "123", "456", " a", "++\n\n", " b"]),
        ("qwen2", ["don", "'t", " I", "'LL", " x", *"123456", " a", "++\n\n", " b"]),
        ("default", ["don", "'", "t", " I", "'", "LL", " x", "123", "456", " a", "++", "\n\n", " b"]),
    ],
)
def test_words_of_each_pre_tokenizer(
    tmp_path: Path, tokenizer: Tokenizer, pre: str, words: list[str]
) -> None:
    path = write_llama_gguf(tmp_path / "m.gguf", tokenizer=tokenizer, pre=pre, **SIZES)
    cut = load_model(path).tokenizer.pre_tokenizer.pre_tokenize_str("don't I'LL x123456 a++\n\n b")
    assert [word.replace("Ġ", " ").replace("Ċ", "\n") for word, _ in cut] == words


def tokenizer_of(tmp_path: Path, old: bytes, new: bytes) -> Tokenizer:
    assert len(old) == len(new)
    path = write_llama_gguf(
        tmp_path / "m.gguf", tokenizer=byte_level_tokenizer(MERGES, ("<|end|>",)), **SIZES
    )
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    return load_model(path).tokenizer


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz", "tokenizer.ggml.tokens is missing"),
        (b"tokenizer.ggml.merges", b"tokenizer.ggml.mergez", "tokenizer.ggml.merges is missing"),
        (b"tokenizer.ggml.model", b"tokenizer.ggml.modez", "tokenizer.ggml.model is missing"),
        (
            b"\x04\0\0\0\0\0\0\0gpt2",
            b"\x04\0\0\0\0\0\0\0gpt9",
            "tokenizer.ggml.model is 'gpt9', gpt2 and",
        ),
        (b"\x05\0\0\0\0\0\0\0gpt-2", b"\x05\0\0\0\0\0\0\0gpt-9", "tokenizer.ggml.pre is 'gpt-9', known are"),
        (b"\x04\0\0\0\0\0\0\0th e", b"\x04\0\0\0\0\0\0\0thxe", "merges holds 'thxe', expected two tokens"),
        (b"\x04\0\0\0\0\0\0\0th e", b"\x04\0\0\0\0\0\0\0tx e", "tokenizer: "),
        (b"\x03\0\0\0\0\0\0\0the", b"\x03\0\0\0\0\0\0\0\xff\xfe\xfd", "is not UTF-8"),
        (b"\x02\0\0\0\0\0\0\0th\x03", b"\x02\0\0\0\0\0\0\0er\x03", "tokenizer.ggml.tokens holds 'er' twice"),
    ],
)
def test_garbled_tokenizer(tmp_path: Path, old: bytes, new: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        tokenizer_of(tmp_path, old, new)
    assert reason in str(caught.value)
    assert str(tmp_path / "m.gguf") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_token_types_that_do_not_fit(tmp_path: Path, tokenizer: Tokenizer) -> None:
    fields = GgufFile(write_llama_gguf(tmp_path / "m.gguf", tokenizer=tokenizer, **SIZES)).fields
    for wrong in (np.zeros(3, np.int32), "text"):
        changed = type(fields)({**fields.values, "tokenizer.ggml.token_type": wrong}, fields.where)
        with pytest.raises(CheckpointError, match=r"token_type has .* entries for 263 tokens"):
            tokenizer_from_gguf(changed)
    without = {key: value for key, value in fields.values.items() if not key.endswith("token_type")}
    assert tokenizer_from_gguf(type(fields)(without, fields.where)).get_vocab_size() == 263


def test_tokenizer_larger_than_the_model(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_llama_gguf(tmp_path / "m.gguf", tokenizer=tokenizer, **(SIZES | {"vocab_size": 262}))
    with pytest.raises(CheckpointError, match="263 tokens but the model's vocab_size is 262"):
        _ = load_model(path).tokenizer


@needs_smollm2
def test_smollm2_is_described_and_tokenizes_as_the_anchors_do(shared: Path) -> None:
    model = load_model(SMOLLM2)
    assert model.source == "GGUF, dequantized (linears Q4_1, embedding Q8_0)"
    assert (model.num_layers, model.vocab_size, model.spec.num_kv_heads) == (30, 49152, 3)
    text = (shared / "data/text/wikitext2_valid.txt").read_bytes().decode()
    expected = np.load(shared / "anchors/smollm2_evalA_20480.npy")
    ids = model.tokenizer.encode(text[:100_000], add_special_tokens=False).ids
    np.testing.assert_array_equal(ids[:20480], expected)
    windows = np.load(shared / "anchors/smollm2_calibration_8x256.npy")
    for window in windows.tolist():
        cut = model.tokenizer.decode(window, skip_special_tokens=False)
        assert model.tokenizer.encode(cut, add_special_tokens=False).ids == window


# --- refused files; truncation and bit flips of whole files are in tests/faults


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def field(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: bytes, dimensions: list[int], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return string(name) + sizes + struct.pack("<IQ", kind, offset)


def file_of(fields: list[bytes], tensors: list[bytes], data: bytes = b"", version: int = 3) -> bytes:
    counts = struct.pack("<IQQ", version, len(tensors), len(fields))
    header = b"GGUF" + counts + b"".join(fields + tensors)
    return header + bytes(-len(header) % 32) + data


F32, Q8_0, STRING, ARRAY, U32 = 0, 8, 8, 9, 4
HUGE = 2**64 - 1
NESTED = struct.pack("<IQ", ARRAY, 1) * 2000
REFUSED: list[tuple[str, bytes, str]] = [
    ("empty", b"", "cannot read"),
    ("short magic", b"GG", "magic at byte 0 needs 4 bytes, 2 are left"),
    ("other magic", b"GGML" + bytes(40), "not a GGUF file: starts with b'GGML'"),
    ("version 1", b"GGUF" + struct.pack("<I", 1) + bytes(16), "GGUF version 1, versions 2 and 3"),
    ("big endian", b"GGUF" + struct.pack(">I", 3) + bytes(16), "a big-endian file"),
    ("no counts", b"GGUF" + struct.pack("<I", 3), "tensor count at byte 8 needs 8 bytes, 0 are left"),
    ("huge tensor count", b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0), "tensor count is 18446744073709551615"),
    ("huge field count", b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE), "field count is 18446744073709551615"),
    ("huge key", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE), "length of key of field 0 is"),
    ("key not UTF-8", file_of([field(b"\xff", U32, bytes(4))], []), "key of field 0 at byte 32 is not UTF-8"),
    ("value not UTF-8", file_of([field(b"k", STRING, string(b"\xff"))], []), "field 'k' at byte"),
    ("field twice", file_of([field(b"k", U32, bytes(4))] * 2, []), "field 'k' occurs twice"),
    ("unknown type", file_of([field(b"k", 99, bytes(8))], []), "field 'k' has the unknown value type 99"),
    (
        "huge array",
        file_of([field(b"k", ARRAY, struct.pack("<IQ", U32, HUGE))], []),
        "length of field 'k' is",
    ),
    ("array cut", file_of([field(b"k", ARRAY, struct.pack("<IQ", 12, 9))], []), "field 'k' at byte"),
    ("nested arrays", file_of([field(b"k", ARRAY, NESTED)], []), "field 'k' has the unknown value type 9"),
    ("alignment 24", file_of([field(b"general.alignment", U32, struct.pack("<I", 24))], []), "power of two"),
    ("alignment 0", file_of([field(b"general.alignment", U32, bytes(4))], []), "power of two"),
    ("alignment text", file_of([field(b"general.alignment", STRING, string(b"x"))], []), "power of two"),
    ("no dimensions", file_of([], [tensor(b"t", [], F32, 0)], bytes(32)), "tensor 't' has 0 dimensions"),
    ("five", file_of([], [tensor(b"t", [1] * 5, F32, 0)], bytes(32)), "tensor 't' has 5 dimensions"),
    ("huge dimension", file_of([], [tensor(b"t", [HUGE], F32, 0)], bytes(32)), "dimension of tensor 't' is"),
    ("product", file_of([], [tensor(b"t", [2**33] * 4, F32, 0)], bytes(32)), "tensor 't' ends at byte"),
    ("zero", file_of([], [tensor(b"t", [0], F32, 0)], b""), "tensor 't' is [0]"),
    ("partial block", file_of([], [tensor(b"t", [33], Q8_0, 0)], bytes(64)), "multiples of 32"),
    ("number type", file_of([], [tensor(b"t", [8], 250, 0)], bytes(32)), "the unknown number type 250"),
    ("tensor twice", file_of([], [tensor(b"t", [8], F32, 0)] * 2, bytes(32)), "tensor 't' occurs twice"),
    ("offset", file_of([], [tensor(b"t", [8], F32, 4)], bytes(36)), "offset 4, not a multiple of 32"),
    ("gap", file_of([], [tensor(b"t", [8], F32, 32)], bytes(64)), "starts at byte 96, expected 64"),
    (
        "overlap",
        file_of([], [tensor(b"s", [8], F32, 0), tensor(b"t", [8], F32, 0)], bytes(32)),
        "starts at byte 96, expected 128",
    ),
    ("cut", file_of([], [tensor(b"t", [8], F32, 0)], bytes(31)), "ends at byte 96, the file at 95"),
    ("rest", file_of([], [tensor(b"t", [8], F32, 0)], bytes(33)), "1 bytes after the last tensor"),
]


@pytest.mark.parametrize(
    ("content", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused_files(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_strings(tmp_path: Path) -> None:
    count = 2**20 + 1
    path = tmp_path / "m.gguf"
    path.write_bytes(file_of([field(b"k", ARRAY, struct.pack("<IQ", STRING, count) + bytes(8 * count))], []))
    with pytest.raises(CheckpointError, match="more than 1048576 strings by field 'k'"):
        load_model(path)


def test_every_scalar_and_version_2(tmp_path: Path) -> None:
    values = {0: ("B", 255), 1: ("b", -1), 2: ("H", 65535), 3: ("h", -2), 4: ("I", 2**32 - 1), 5: ("i", -3)}
    values |= {6: ("f", 0.5), 7: ("?", True), 10: ("Q", 2**64 - 1), 11: ("q", -4), 12: ("d", 0.1)}  # type: ignore[dict-item]
    fields = [field(b"s%d" % k, k, struct.pack(f"<{f}", v)) for k, (f, v) in values.items()]
    fields += [
        field(b"a%d" % k, ARRAY, struct.pack(f"<IQ3{f}", k, 3, v, v, v)) for k, (f, v) in values.items()
    ]
    fields.append(field(b"none", ARRAY, struct.pack("<IQ", U32, 0)))
    header = read_header(memoryview(file_of(fields, [], version=2)), "x")
    for kind, (_, value) in values.items():
        assert header.fields[f"s{kind}"] == value
        assert list(header.fields[f"a{kind}"]) == [value] * 3  # type: ignore[call-overload]
    assert len(header.fields["none"]) == 0  # type: ignore[arg-type]


def test_strings_are_decoded_when_asked_for() -> None:
    words = [b"one", b"", "zwei ü".encode(), b"\xff"]
    value = struct.pack("<IQ", STRING, 4) + b"".join(map(string, words))
    strings = read_header(memoryview(file_of([field(b"k", ARRAY, value)], [])), "x").fields["k"]
    assert isinstance(strings, StringArray)
    assert strings[:3] == ["one", "", "zwei ü"]
    assert strings[2] == "zwei ü"
    with pytest.raises(CheckpointError, match="x: field 'k': string at byte"):
        _ = strings[3]


def test_evaluation_says_what_the_file_had_rounded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.arange(32, dtype=np.int32).reshape(2, 16))
    for kind, said in {"Q8_0": "(GGUF, dequantized (linears Q8_0", "F32": "(full precision)"}.items():
        path = write_llama_gguf(tmp_path / f"{kind}.gguf", kind=kind, **SIZES)
        assert main(["evaluate", str(path), "--data", str(tokens), "--quiet"]) == 0
        assert said in capsys.readouterr().out
