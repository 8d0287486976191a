"""Embedding and head at 8 or 4 bits: rounded once, kept, run and exported as they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_run import contents, small_model, small_tokens
from synthetic import write_llama_folder

import omniquant
from omniquant import CalibrationResult
from omniquant.cli import main
from omniquant.errors import CheckpointError, ConfigError, NotFiniteError
from omniquant.models.load import load_model
from omniquant.models.model import Model
from omniquant.progress import Callback
from omniquant.runtime.matrix import BYTES, FLOAT, NIBBLES, Matrix, rounded

BOTH = {"embedding_bits": 8, "head_bits": 8}


def folder_of(path, tied=True):
    sizes = {"hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 96, "vocab": 64, "seed": 7}
    return write_llama_folder(path, **sizes, tie_word_embeddings=tied)


def run(model, **options):
    defaults = {"method": "rtn", "progress": False, "threads": 1}
    return omniquant.calibrate(model, small_tokens(), "W8A16", **(defaults | options))


def kinds(result):
    return [matrix.kind for matrix in result.fold().matrices()]


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float32, (2, 64), elements=st.floats(-1e4, 1e4, width=32)))
def test_values_are_rounded_to_the_nearest_of_255_steps_a_group(values):
    found = rounded(values, 8)
    largest = np.abs(values.reshape(2, 2, 32)).max(axis=-1, keepdims=True)
    # Half a step, and what rounding the step to a half may take from the largest codes.
    bound = largest / 254 + largest * 2.0**-10 + 127 * 2.0**-24
    assert (np.abs(found - values).reshape(2, 2, 32) <= bound).all()
    again = rounded(found, 8)
    np.testing.assert_allclose(again, found, rtol=2e-3, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float32, (2, 64), elements=st.floats(-1e4, 1e4, width=32)))
def test_values_are_rounded_to_the_nearest_of_16_steps_a_group(values):
    found = rounded(values, 4)
    largest = np.abs(values.reshape(2, 2, 32)).max(axis=-1, keepdims=True)
    # Half a step; a whole one at the end of the largest value's other sign, which has a step less.
    bound = largest / 8 * (1 + 2.0**-9) + 8 * 2.0**-24
    assert (np.abs(found - values).reshape(2, 2, 32) <= bound).all()
    inner = np.abs(values.reshape(2, 2, 32)) <= largest * 7 / 8
    assert (np.abs(found - values).reshape(2, 2, 32) <= bound * np.where(inner, 0.51, 1)).all()


@pytest.mark.parametrize(("bits", "kind"), [(8, BYTES), (4, NIBBLES)])
def test_what_is_rounded_is_stored_to_the_bit(bits, kind):
    rows = np.random.default_rng(0).standard_normal((50, 96)).astype(np.float32)
    matrix = Matrix.exact(rounded(rows, bits))
    assert matrix.kind == kind
    assert matrix.nbytes == 50 * 96 * (bits / 8 + 2 / 32)
    np.testing.assert_array_equal(matrix.rows(), rounded(rows, bits))
    np.testing.assert_array_equal(matrix.rows(np.array([7, 3])), rounded(rows, bits)[[7, 3]])


@pytest.mark.parametrize(
    ("tied", "options", "expected"),
    [
        (True, BOTH, [BYTES, BYTES]),
        (False, BOTH, [BYTES, BYTES]),
        (False, {"head_bits": 8}, [FLOAT, BYTES]),
        (False, {"embedding_bits": 8}, [BYTES, FLOAT]),
        (True, {**BOTH, "rotation": "folded"}, [BYTES, BYTES]),
        (True, {"head_bits": 8, "rotation": "folded"}, [FLOAT, BYTES]),
        (True, {"embedding_bits": 4, "head_bits": 4}, [NIBBLES, NIBBLES]),
        (False, {"embedding_bits": 8, "head_bits": 4}, [BYTES, NIBBLES]),
    ],
)
def test_a_result_keeps_and_runs_bytes(tied, options, expected, tmp_path):
    model = load_model(folder_of(tmp_path / "model", tied))
    in_memory = run(model, **options)
    run(model, output=tmp_path / "out", **options)
    in_memory.save(tmp_path / "saved")
    assert contents(tmp_path / "saved") == contents(tmp_path / "out")
    loaded = CalibrationResult.load(tmp_path / "out")
    assert kinds(in_memory) == kinds(loaded) == expected
    folded = loaded.fold()
    if "rotation" not in options:
        head = model.lm_head()
        bits = options.get("head_bits")
        expected_head = rounded(head, bits) if bits else head
        np.testing.assert_array_equal(folded.lm_head(), expected_head)
    tokens = small_tokens(2, 20, seed=8)
    fake = omniquant.perplexity(folded, tokens)
    assert fake == omniquant.perplexity(in_memory, tokens)
    assert fake != omniquant.perplexity(run(model, rotation=options.get("rotation", "none")), tokens)
    integer = folded.perplexity(tokens[0], 20, runtime="integer")
    assert integer == pytest.approx(folded.perplexity(tokens[0], 20, runtime="fake"), rel=2e-3)


def test_a_resume_ends_with_the_same_bits_and_knows_the_difference(tmp_path):
    class Kill(Callback):
        def on_block(self, report):
            raise KeyboardInterrupt

    model = load_model(folder_of(tmp_path / "model"))
    run(model, output=tmp_path / "whole", **BOTH)
    with pytest.raises(KeyboardInterrupt):
        run(model, output=tmp_path / "killed", callbacks=[Kill()], **BOTH)
    with pytest.raises(CheckpointError, match="embedding_bits 8, not 16"):
        run(model, output=tmp_path / "killed", resume=True)
    run(model, output=tmp_path / "killed", resume=True, **BOTH)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_what_makes_no_sense_is_refused(tmp_path, monkeypatch):
    model = load_model(folder_of(tmp_path / "model"))
    with pytest.raises(ConfigError, match="head_bits 8: the head is the embedding, give both"):
        run(model, head_bits=8)
    for bits in (2, 32, True, "8"):
        with pytest.raises(ConfigError, match=r"head_bits .* is not 4, 8 or 16"):
            run(model, head_bits=bits)
    narrow = small_model(tmp_path / "narrow")
    with pytest.raises(ConfigError, match="rows of 16 are no whole groups of 32"):
        run(narrow, **BOTH)
    monkeypatch.setattr(
        Model, "embedding", lambda self, tokens: np.full((*np.shape(tokens), 64), np.nan, "f4")
    )
    with pytest.raises(NotFiniteError, match="embedding"):
        run(model, output=tmp_path / "out", **BOTH)


def test_the_command_line(capsys, tmp_path):
    folder, tokens = folder_of(tmp_path / "model"), tmp_path / "tokens.npy"
    np.save(tokens, small_tokens())
    start = [
        "quantize",
        str(folder),
        "--scheme",
        "W8A16",
        "--method",
        "rtn",
        "--data",
        str(tokens),
        "--quiet",
    ]
    assert main([*start, "--output", str(tmp_path / "no"), "--head-bits", "8"]) == 2
    assert not (tmp_path / "no").exists()
    ends = ["--head-bits", "8", "--embedding-bits", "8"]
    assert main([*start, "--output", str(tmp_path / "out"), *ends]) == 0
    assert kinds(CalibrationResult.load(tmp_path / "out")) == [BYTES, BYTES]
    capsys.readouterr()
