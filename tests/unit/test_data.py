"""Token windows: which ones, from what, and what is refused."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import write_llama_folder

from omniquant.data import calibration_windows, evaluation_windows
from omniquant.errors import CheckpointError, DataError
from omniquant.models import Model, load_model

STREAM = np.arange(1000) * 7 % 64


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load_model(write_llama_folder(tmp_path / "m"))


def saved(path: Path, array: Any) -> Path:
    np.save(path, array)
    return path


# --- calibration


@pytest.mark.parametrize(("samples", "seqlen"), [(1, 10), (2, 10), (7, 10), (10, 100), (100, 10), (3, 128)])
def test_windows_of_a_stream_are_spread_over_it(model: Model, samples: int, seqlen: int) -> None:
    # Ids are below 64, so positions are told by a stream of their own: all windows of length 2 differ.
    windows = calibration_windows(STREAM, model, samples, seqlen)
    assert windows.shape == (min(samples, 1000 // seqlen), seqlen)
    assert windows.dtype == np.int32
    assert windows.flags.c_contiguous
    count = len(windows)
    slack = 1000 - count * seqlen
    for i, window in enumerate(windows):
        start = i * seqlen + (i * slack // (count - 1) if count > 1 else 0)
        np.testing.assert_array_equal(window, STREAM[start : start + seqlen])
    if count > 1:
        np.testing.assert_array_equal(windows[-1], STREAM[-seqlen:])


def test_a_short_stream_gives_fewer_windows(model: Model) -> None:
    assert calibration_windows(STREAM[:35], model, 8, 10).shape == (3, 10)


def test_windows_are_used_as_they_are(model: Model, tmp_path: Path) -> None:
    stored = STREAM[:96].reshape(6, 16)
    for source in (stored, saved(tmp_path / "w.npy", stored)):
        np.testing.assert_array_equal(calibration_windows(source, model, 2, 5), stored)


@pytest.mark.parametrize("dtype", ["<i4", ">i8", "u1", "<u8"])
def test_arrays_of_any_integers_and_memory(model: Model, tmp_path: Path, dtype: str) -> None:
    stream = STREAM.astype(dtype)
    expected = calibration_windows(STREAM, model, 4, 10)
    np.testing.assert_array_equal(calibration_windows(stream, model, 4, 10), expected)
    np.testing.assert_array_equal(calibration_windows(np.repeat(stream, 2)[::2], model, 4, 10), expected)
    np.testing.assert_array_equal(
        calibration_windows(saved(tmp_path / "s.npy", stream), model, 4, 10), expected
    )
    fortran = np.asfortranarray(stream[:40].reshape(4, 10))
    np.testing.assert_array_equal(calibration_windows(fortran, model, 4, 10), STREAM[:40].reshape(4, 10))


def test_text_is_tokenized_without_special_tokens(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"hello\r\n there. and more")
    ids = model.tokenizer.encode("hello\r\n there. and more").ids
    np.testing.assert_array_equal(evaluation_windows(path, model, len(ids)), [ids])
    np.testing.assert_array_equal(evaluation_windows(str(path), model, len(ids)), [ids])


def test_text_keeps_the_anchors_tokens(shared: Path) -> None:
    model = load_model(shared / "data/stories260K")
    windows = evaluation_windows(shared / "data/text/tinystories_calibration.txt", model, 256)
    anchor = np.load(shared / "anchors/stories260K_eval_24576.npy")
    # The anchors' stream is this text behind one BOS, its stories joined in another way.
    np.testing.assert_array_equal(windows.ravel()[:322], anchor[1:323])


def test_built_in_texts() -> None:
    model = load_model("omniquant-tiny")
    calibration = calibration_windows(None, model, 8, 64)
    evaluation = evaluation_windows(None, model, 64, max_tokens=512)
    assert calibration.shape == evaluation.shape == (8, 64)
    assert not (calibration[:, None] == evaluation[None]).all(-1).any()


def test_no_built_in_text(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> str:
        raise RuntimeError("no docstrings")

    monkeypatch.setattr("omniquant.embedded.calibration_text", nothing)
    with pytest.raises(DataError, match="built-in calibration text: no docstrings"):
        calibration_windows(None, model, 8, 64)


# --- evaluation


@pytest.mark.parametrize(("seqlen", "max_tokens", "count"), [(100, None, 10), (99, None, 10), (100, 350, 3)])
def test_a_stream_is_cut_from_its_start(
    model: Model, seqlen: int, max_tokens: int | None, count: int
) -> None:
    windows = evaluation_windows(STREAM, model, seqlen, max_tokens)
    np.testing.assert_array_equal(windows, STREAM[: count * seqlen].reshape(count, seqlen))
    assert windows.dtype == np.int32


def test_evaluation_windows_as_they_are(model: Model) -> None:
    stored = STREAM[:96].reshape(6, 16)
    np.testing.assert_array_equal(evaluation_windows(stored, model, 5), stored)
    np.testing.assert_array_equal(evaluation_windows(stored, model, 5, max_tokens=47), stored[:2])
    with pytest.raises(DataError, match="max_tokens is 15, one window has 16 tokens"):
        evaluation_windows(stored, model, 5, max_tokens=15)


# --- refused


@pytest.mark.parametrize(
    "function", [lambda s, m: calibration_windows(s, m, 4, 10), lambda s, m: evaluation_windows(s, m, 10)]
)
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (STREAM[:9], "tokens: 9 tokens, one window of seqlen 10 needs 10"),
        (STREAM[:0], "tokens: 0 tokens, one window of seqlen 10 needs 10"),
        (STREAM + 1, r"tokens: token id 64 at \[9\] is outside the vocabulary of 64"),
        (STREAM - 1, r"tokens: token id -1 at \[0\]"),
        (STREAM.astype(np.uint64) - np.uint64(1), r"tokens: token id 18446744073709551615 at \[0\]"),
        (STREAM.astype(np.float32), "tokens: token ids are float32, expected integers"),
        (STREAM.astype(object), "tokens: token ids are object, expected integers"),
        (np.array(3), r"tokens: token ids are \[\], expected a stream"),
        (np.zeros((2, 2, 2), int), r"tokens: token ids are \[2, 2, 2\], expected a stream"),
        (np.zeros((3, 1), int), r"tokens: windows are \[3, 1\], expected at least \[1, 2\]"),
        (np.zeros((0, 8), int), r"tokens: windows are \[0, 8\]"),
        (np.zeros((1, 129), int), "129 tokens in a sequence: m takes 1 to 128"),
        ("nowhere.txt", "nowhere.txt: cannot read: No such file"),
        ("nowhere.npy", "nowhere.npy: cannot read: No such file"),
        ("a\0b.txt", "cannot read: embedded null byte"),
        ("a\0b.npy", "embedded null byte"),
        (".", "cannot read: Is a directory"),
    ],
)
def test_sources_that_are_refused(model: Model, function: Any, source: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        function(source, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("samples", "seqlen", "reason"),
    [
        (0, 10, "samples is 0"),
        (1, 1, "seqlen is 1, expected at least 2"),
        (1, -5, "seqlen is -5"),
        (1, 129, "129 tokens in a sequence: m takes 1 to 128"),
    ],
)
def test_windows_that_make_no_sense(model: Model, samples: int, seqlen: int, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        calibration_windows(STREAM, model, samples, seqlen)


@pytest.mark.parametrize("max_tokens", [0, -3, 9])
def test_fewer_tokens_allowed_than_a_window(model: Model, max_tokens: int) -> None:
    with pytest.raises(DataError, match="one window of seqlen 10 needs 10"):
        evaluation_windows(STREAM, model, 10, max_tokens)


def test_text_that_is_not_utf8(model: Model, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"abc\xffdef")
    with pytest.raises(DataError, match=r"t\.txt: not UTF-8 text: byte 3 is 0xff"):
        calibration_windows(tmp_path / "t.txt", model, 1, 2)


def test_text_without_a_tokenizer(tmp_path: Path) -> None:
    model = load_model(write_llama_folder(tmp_path / "m", tokenizer=False))
    (tmp_path / "t.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        calibration_windows(tmp_path / "t.txt", model, 1, 2)


class Malicious:
    """Raises SystemExit when it is unpickled."""

    def __reduce__(self) -> Any:
        return (exit, (99,))


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


GOOD = npy(STREAM[:100])
ARCHIVE = io.BytesIO()
np.savez(ARCHIVE, ids=STREAM)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an array",
        GOOD[:5],
        GOOD[:60],
        GOOD[:-1],
        pickle.dumps(Malicious()),
        npy(np.array([Malicious()], object)),
        npy(np.array(["text"])),
        npy(np.array([1.5])),
        npy(np.zeros(0, int)),
        ARCHIVE.getvalue(),
        GOOD.replace(b"(100,)", b"(1<9,)"),
        GOOD.replace(b"(100,)", b"(-10,)"),
        GOOD.replace(b"(100,), }      ", b"(10**99,), }   "),
        GOOD.replace(b"(100,), }             ", b"(999999999999999999,),}"),
        GOOD.replace(b"{'descr'", b"((((((((("),
    ],
    ids=range(16),
)
def test_arrays_that_are_damaged_or_not_integers(model: Model, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ids.npy"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        calibration_windows(path, model, 1, 10)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_truncation_of_an_array(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    for size in range(len(GOOD)):
        path.write_bytes(GOOD[:size])
        with pytest.raises(DataError):
            calibration_windows(path, model, 1, 10)
