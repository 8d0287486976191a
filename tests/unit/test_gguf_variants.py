"""GGUF files of other shapes: LLaMA 3's frequencies, SentencePiece vocabularies, models in several files."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from synthetic import Pieces, byte_level_tokenizer, write_llama_gguf

import omniquant
from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.errors import CheckpointError
from omniquant.models import load_model
from omniquant.models.rope import rope_tables

pytest.importorskip("gguf", reason="the gguf package is not installed")

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 300, "num_hidden_layers": 2,
}  # fmt: skip

# ---- rope_freqs.weight --------------------------------------------------------


def llama3_factors(base: float, head_dim: int, factor: float) -> npt.NDArray[np.float32]:
    """Return the factors as llama.cpp's converter computes them: by wavelength, one after the other."""
    factors, original = [], 8192
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * base ** (i / head_dim)
        if wavelength < original / 4:
            factors.append(1.0)
        elif wavelength > original / 1:
            factors.append(factor)
        else:
            smooth = (original / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def with_factors(path: Path, factors: npt.NDArray[np.float32], **options: Any) -> Path:
    extra = {"rope_freqs.weight": factors}
    return write_llama_gguf(path, extra_tensors=extra, **(SIZES | {"rope_theta": 500000.0} | options))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3s_frequencies_are_those_of_its_config(tmp_path: Path, factor: float) -> None:
    model = load_model(with_factors(tmp_path / "m.gguf", llama3_factors(500000.0, 16, factor)))
    assert model.config["rope_parameters"] == {
        "rope_theta": 500000.0, "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    frequencies = 500000.0 ** (-np.arange(8) / 8) / llama3_factors(500000.0, 16, factor).astype(np.float64)
    for found, expected in zip(model.rope_tables(50), rope_tables(frequencies, 50), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_other_factors_are_taken_as_they_are_and_kept_in_a_result(tmp_path: Path) -> None:
    factors = np.array([1, 1.5, 2, 2, 3, 4, 1, 9], np.float32)
    tokenizer = byte_level_tokenizer([("t", "h")])  # a result keeps it
    model = load_model(with_factors(tmp_path / "m.gguf", factors, tokenizer=tokenizer))
    expected = rope_tables(500000.0 ** (-np.arange(8) / 8) / factors.astype(np.float64), 50)
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    options: dict[str, Any] = {"method": "rtn", "progress": False, "output": tmp_path / "out"}
    omniquant.calibrate(model, tokens, "W4A16", **options)
    stored = omniquant.CalibrationResult.load(tmp_path / "out").fold()
    for tables in (model.rope_tables(50), stored.rope_tables(50)):
        for found, wanted in zip(tables, expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("factors", [[1.0] * 7, [1.0] * 7 + [0.0], [1.0] * 7 + [math.nan], [-1.0] * 8])
def test_factors_that_make_no_sense_are_refused(tmp_path: Path, factors: list[float]) -> None:
    path = with_factors(tmp_path / "m.gguf", np.array(factors, np.float32))
    with pytest.raises(CheckpointError, match=r"m\.gguf: tensor 'rope_freqs.weight' is no list of 8 finite"):
        load_model(path)


def test_factors_beside_linear_scaling_are_refused(tmp_path: Path) -> None:
    extra = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    path = with_factors(tmp_path / "m.gguf", np.ones(8, np.float32), extra=extra)
    with pytest.raises(UnsupportedCheckpointError, match=r"rope_freqs.weight beside"):
        load_model(path)


# ---- SentencePiece ------------------------------------------------------------

SPACE = "\u2581"
WORDS = ["the", "then", "other", "lather", "ein", "eine", "Haus", "häuser", "a", "an", "and", "ther"]


def pieces(seed: int, space_prefix: bool = True) -> Pieces:
    """Return a vocabulary with bytes, letters and random parts of words, scored in random order."""
    rng = np.random.default_rng(seed)
    text = SPACE.join(["", *WORDS])
    parts = {text[i : i + n] for i in range(len(text)) for n in (2, 3, 4, 5)} - {""}
    chosen = sorted(rng.choice(sorted(parts), size=120, replace=False).tolist())
    letters = sorted(set(text))
    order = rng.permutation(len(chosen) + len(letters))
    scores = {"<unk>": 0.0, "<s>": 0.0, "</s>": 0.0} | {f"<0x{byte:02X}>": 0.0 for byte in range(256)}
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3} | {f"<0x{byte:02X}>": 6 for byte in range(256)}
    for piece, rank in zip([*chosen, *letters], order, strict=True):
        scores[str(piece)] = -float(rank)
    return Pieces(scores, kinds, space_prefix)


def merged(vocabulary: Pieces, text: str) -> list[str]:
    """Return the pieces by the definition: merge the neighbours whose union scores best, leftmost first."""
    plain = {piece: score for piece, score in vocabulary.scores.items() if piece not in vocabulary.kinds}
    symbols = list((SPACE if vocabulary.space_prefix else "") + text.replace(" ", SPACE))
    while True:
        unions = [(plain.get(a + b), i) for i, (a, b) in enumerate(pairwise(symbols))]
        scored = [(-score, i) for score, i in unions if score is not None]
        if not scored:
            break
        at = min(scored)[1]
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
    return [
        part
        for symbol in symbols
        for part in ([symbol] if symbol in plain else [f"<0x{byte:02X}>" for byte in symbol.encode()])
    ]


@pytest.mark.parametrize("space_prefix", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_sentencepiece_merges_by_score(tmp_path: Path, seed: int, space_prefix: bool) -> None:
    vocabulary = pieces(seed, space_prefix)
    sizes = SIZES | {"vocab_size": len(vocabulary.scores)}
    tokenizer = load_model(write_llama_gguf(tmp_path / "m.gguf", tokenizer=vocabulary, **sizes)).tokenizer
    rng = np.random.default_rng(seed)
    for _ in range(60):
        text = " ".join(rng.choice([*WORDS, "Zeit", "é!", "\n", "日本"], size=rng.integers(1, 9)))
        encoded = tokenizer.encode(text, add_special_tokens=False)
        assert encoded.tokens == merged(vocabulary, text), text
        assert tokenizer.decode(encoded.ids) == text
    assert tokenizer.encode("the</s>a", add_special_tokens=False).tokens.count("</s>") == 1
    assert tokenizer.decode(tokenizer.encode("the</s>").ids) == "the"


def test_a_sentencepiece_vocabulary_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    vocabulary = pieces(0)
    sizes = SIZES | {"vocab_size": len(vocabulary.scores)}
    path = write_llama_gguf(tmp_path / "m.gguf", tokenizer=vocabulary, **sizes)
    content = path.read_bytes()
    for old, new, message in (
        (b"tokenizer.ggml.scores", b"tokenizer.ggml.scorez", "scores are no"),
        (b"unknown_token_id\x04\0\0\0\0\0\0\0", b"unknown_token_id\x04\0\0\0\xff\xff\0\0", "is not among"),
    ):
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))
        with pytest.raises(CheckpointError, match=message):
            load_model(path).tokenizer  # noqa: B018 - it is read when asked for
    long = Pieces(vocabulary.scores | {"x" * 200: -1.0}, vocabulary.kinds)
    sizes["vocab_size"] += 1
    with pytest.raises(CheckpointError, match="more than 128 characters"):
        load_model(write_llama_gguf(tmp_path / "l.gguf", tokenizer=long, **sizes)).tokenizer  # noqa: B018


# ---- several files ------------------------------------------------------------


def split_model(folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    tokenizer = byte_level_tokenizer([("t", "h")])
    write_llama_gguf(folder / "m.gguf", kind="Q8_0", tokenizer=tokenizer, split=8, **SIZES)
    return sorted(folder.iterdir())


def test_a_split_model_is_the_whole_one(tmp_path: Path) -> None:
    parts = split_model(tmp_path / "parts")
    assert [part.name for part in parts] == [f"m-{n:05}-of-00003.gguf" for n in (1, 2, 3)]
    tokenizer = byte_level_tokenizer([("t", "h")])
    whole = load_model(write_llama_gguf(tmp_path / "m.gguf", kind="Q8_0", tokenizer=tokenizer, **SIZES))
    for part in parts:
        model = load_model(part)
        assert model.name == "m"
        assert model.source == whole.source
        for layer in range(2):
            for name, values in whole.block(layer).items():
                np.testing.assert_array_equal(model.block(layer)[name], values)
        np.testing.assert_array_equal(model.lm_head(), whole.lm_head())
        assert model.tokenizer.encode("the").ids == whole.tokenizer.encode("the").ids
        assert model.fingerprint() == load_model(parts[0]).fingerprint()


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    parts = split_model(tmp_path / "parts")
    contents = [part.read_bytes() for part in parts]

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_model(parts[0])
        for part, content in zip(parts, contents, strict=True):
            part.write_bytes(content)

    parts[2].unlink()
    refused(r"m-00003-of-00003\.gguf: cannot read: No such file")
    parts[1].write_bytes(contents[2])
    refused(r"m-00002-of-00003\.gguf: part 3 of 3 of a split model, its name says 2 of 3")
    parts[2].write_bytes(contents[2][:-64])
    refused(r"m-00003-of-00003\.gguf: tensor .* ends at byte")
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(contents[0])
    with pytest.raises(CheckpointError, match=r"part 1 of 3 of a split model, its name says 1 of 1"):
        load_model(alone)
    (tmp_path / "m-00001-of-99999.gguf").write_bytes(contents[0])
    with pytest.raises(CheckpointError, match="expected 1 to 1000 parts"):
        load_model(tmp_path / "m-00001-of-99999.gguf")
