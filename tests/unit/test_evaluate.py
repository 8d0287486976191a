"""Perplexity: the anchors' protocol, against plain NumPy, in parts, on models and on results."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy_llama import window_losses
from small_run import VOCAB, small_model, small_tokens

import omniquant
from omniquant import forward
from omniquant.errors import DataError, NotFiniteError
from omniquant.evaluate import evaluate
from omniquant.forward import as_windows, chunks


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


def test_full_precision_equals_plain_numpy(model):
    tokens = small_tokens(5, 16)
    expected = math.exp(window_losses(model, tokens).mean())
    assert omniquant.perplexity(model, tokens) == pytest.approx(expected, rel=1e-5)


def test_stream_is_cut_into_windows_that_do_not_overlap(model):
    stream = small_tokens(1, 50)[0]
    found = evaluate(model, stream, 16)
    assert (found.tokens, found.windows, found.seqlen) == (48, 3, 16)
    assert found.perplexity == evaluate(model, stream[:48].reshape(3, 16)).perplexity
    assert found.perplexity == math.exp(found.nll)


def test_weight_only_result_equals_plain_numpy_on_dequantized_weights(model):
    tokens = small_tokens()
    result = omniquant.calibrate(model, tokens, "W4A16g8", method="rtn", progress=False, threads=1)
    expected = math.exp(window_losses(result.fold(), tokens).mean())
    assert omniquant.perplexity(result, tokens) == pytest.approx(expected, rel=1e-5)
    assert result.evaluate(tokens).perplexity == omniquant.perplexity(result.fold(), tokens)


def test_activations_are_rounded_too(model):
    tokens = small_tokens()
    weights_alone = omniquant.calibrate(model, tokens, "W4A16", method="rtn", progress=False)
    both = omniquant.calibrate(model, tokens, "W4A4", method="rtn", progress=False)
    assert omniquant.perplexity(both, tokens) != omniquant.perplexity(weights_alone, tokens)


def test_more_windows_than_memory_go_in_parts(model, monkeypatch):
    tokens = small_tokens(7, 8)
    whole = evaluate(model, tokens, threads=1)
    monkeypatch.setattr(forward, "HIDDEN_BYTES", 2 * 4 * 8 * model.spec.hidden_size)
    calls = []
    parts = evaluate(model, tokens, progress=lambda done, total: calls.append((done, total)))
    assert parts.nll == pytest.approx(whole.nll, rel=1e-6)
    assert calls == [(i + 1, 8) for i in range(8)]  # four parts of two blocks


def test_threads_do_not_matter(model):
    tokens = small_tokens(6, 16)
    assert evaluate(model, tokens, threads=1).nll == evaluate(model, tokens, threads=2).nll


@pytest.mark.parametrize(
    ("tokens", "seqlen", "message"),
    [
        (np.zeros(5, np.int32), 8, "5 tokens are fewer than one window of 8"),
        (np.zeros(5, np.int32), None, "needs seqlen"),
        (np.zeros(5, np.int32), 1, "at least 2"),
        (np.zeros((2, 8), np.int32), 4, "windows of 8 tokens were given, but seqlen is 4"),
        (np.zeros((0, 8), np.int32), None, "at least one"),
        (np.zeros((2, 1), np.int32), None, "at least one of two"),
        (np.zeros((2, 8)), None, "whole numbers"),
        (np.zeros((2, 2, 8), np.int32), None, "whole numbers"),
        (np.full((2, 8), VOCAB), None, f"token id {VOCAB} is outside the vocabulary of {VOCAB}"),
        (np.array([[1, -2]]), None, "token id -2"),
    ],
)
def test_tokens_that_are_no_windows_are_refused(tokens, seqlen, message):
    with pytest.raises(DataError, match=message):
        as_windows(tokens, VOCAB, seqlen)


def test_windows_are_int32_and_the_caller_keeps_hers():
    stream = np.arange(10, dtype=np.uint16)[::-1]
    windows = as_windows(stream, VOCAB, 5)
    assert windows.dtype == np.int32
    assert windows.tolist() == [[9, 8, 7, 6, 5], [4, 3, 2, 1, 0]]


def test_sequences_beyond_the_model_are_refused(model):
    with pytest.raises(DataError, match="takes 1 to 128"):
        evaluate(model, np.zeros((1, 129), np.int32))


def test_chunks_cover_every_window_once():
    parts = list(chunks(10, 700))
    assert [(part.start, part.stop) for part in parts] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert [part.stop - part.start for part in chunks(3, 5000)] == [1, 1, 1]


def test_not_a_number_is_an_error_not_a_perplexity(model, monkeypatch):
    head = model.lm_head().copy()
    head[3, 2] = np.nan
    monkeypatch.setattr(model, "lm_head", lambda: head)
    with pytest.raises((NotFiniteError, ValueError), match=r"nan|NaN|finite"):
        evaluate(model, small_tokens())
