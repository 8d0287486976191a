"""Divergence of predictions: against plain NumPy, on both runtimes, and what it refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from small_run import small_folder, small_tokens

import omniquant
from omniquant import _core, fidelity, forward
from omniquant.cli import main
from omniquant.errors import ConfigError, DataError, NotFiniteError
from omniquant.forward import float_logits


def log_probabilities(logits):
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return omniquant.load_model(folder)


@pytest.fixture(scope="module")
def result(model):
    return omniquant.calibrate(model, small_tokens(), "W3A8", method="rtn", progress=False, threads=1)


@pytest.mark.parametrize("vocabulary", [1, 2, 15, 16, 17, 300])
def test_the_core_equals_plain_numpy(vocabulary):
    random = np.random.default_rng(vocabulary)
    reference, logits = 5 * random.standard_normal((2, 7, vocabulary)).astype(np.float32)
    targets = random.integers(0, vocabulary, 7, dtype=np.int32)
    p, q = log_probabilities(reference), log_probabilities(logits)
    kl, reference_nll, nll, same = _core.divergence(reference, logits, targets, threads=2)
    np.testing.assert_allclose(kl, (np.exp(p) * (p - q)).sum(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(reference_nll, -p[np.arange(7), targets], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(nll, -q[np.arange(7), targets], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(same, p.argmax(axis=1) == q.argmax(axis=1))


def test_the_core_names_a_target_outside_the_vocabulary():
    logits = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="token 3 at position 1 is outside the vocabulary of 3"):
        _core.divergence(logits, logits, np.array([0, 3], np.int32))


def test_of_a_result_it_equals_plain_numpy(model, result):
    tokens = small_tokens(5, 16)
    p = log_probabilities(float_logits(model, tokens)[:, :-1])
    q = log_probabilities(float_logits(result.fold(), tokens)[:, :-1])
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    found = omniquant.divergence(result, model, tokens)
    assert found.kl == pytest.approx(kl.mean(), rel=1e-5)
    assert found.kl_stderr == pytest.approx(kl.mean(axis=1).std(ddof=1) / math.sqrt(5), rel=1e-4)
    assert found.kl_99 == pytest.approx(np.percentile(kl, 99), rel=1e-4)
    assert found.same_top == (p.argmax(axis=-1) == q.argmax(axis=-1)).mean()
    assert found.evaluation.perplexity == pytest.approx(omniquant.perplexity(result, tokens), rel=1e-6)
    assert found.reference_perplexity == pytest.approx(omniquant.perplexity(model, tokens), rel=1e-6)


def test_a_model_does_not_diverge_from_itself(model):
    found = omniquant.divergence(model, model, small_tokens(1, 16))
    assert (found.kl, found.kl_99, found.same_top) == (0, 0, 1)
    assert math.isnan(found.kl_stderr)


def test_fewer_bits_diverge_further(model):
    def of(scheme):
        result = omniquant.calibrate(model, small_tokens(), scheme, method="rtn", progress=False)
        return omniquant.divergence(result, model, small_tokens(5, 16)).kl

    assert 0 < of("W8A16") < of("W4A16") < of("W2A16")


def test_parts_and_threads_change_nothing(model, result, monkeypatch):
    tokens = small_tokens(5, 16)
    whole = omniquant.divergence(result, model, tokens, threads=1)
    monkeypatch.setattr(fidelity, "_LOGIT_BYTES", 4 * 5 * model.vocab_size)
    monkeypatch.setattr(forward, "HIDDEN_BYTES", 4 * 16 * model.spec.hidden_size * 2)
    calls = []
    parts = omniquant.divergence(
        result, model, tokens, threads=2, progress=lambda done, total: calls.append((done, total))
    )
    assert parts.kl == pytest.approx(whole.kl, rel=1e-6)
    steps = 2 * 3 * model.num_layers  # two models, three passes of two windows at most
    assert calls == [(done + 1, steps) for done in range(steps)]


def test_integers_predict_what_fake_quantization_does(model, result):
    tokens = small_tokens(5, 16)
    fake = omniquant.divergence(result, model, tokens)
    integer = omniquant.divergence(result, model, tokens, runtime="integer")
    assert integer.kl == pytest.approx(fake.kl, rel=1e-3)
    assert integer.evaluation.perplexity == pytest.approx(fake.evaluation.perplexity, rel=1e-4)


def test_what_cannot_be_compared_is_refused(model, result, tmp_path):
    with pytest.raises(ConfigError, match="is not quantized"):
        omniquant.divergence(model, model, small_tokens(), runtime="integer")
    with pytest.raises(ConfigError, match="runtime is 'int8', expected 'integer' or 'fake'"):
        omniquant.divergence(result, model, small_tokens(), runtime="int8")
    with pytest.raises(ConfigError, match="their predictions cannot be compared"):
        omniquant.divergence(result, omniquant.load_model("omniquant-tiny"), small_tokens())
    with pytest.raises(DataError, match="needs seqlen"):
        omniquant.divergence(result, model, small_tokens()[0])


def test_what_is_not_finite_is_no_result(model, result, monkeypatch):
    monkeypatch.setattr(
        type(model), "lm_head", lambda self: np.full((self.vocab_size, 16), np.nan, np.float32)
    )
    with pytest.raises(NotFiniteError, match="against"):
        omniquant.divergence(result, model, small_tokens())


def test_the_command_tells_it(capsys, folder, model, result, tmp_path):
    np.save(tmp_path / "tokens.npy", small_tokens(5, 16))
    result.save(tmp_path / "out")
    arguments = [str(tmp_path / "out"), "--data", str(tmp_path / "tokens.npy"), "--against", str(folder)]
    assert main(["evaluate", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = omniquant.divergence(result, model, small_tokens(5, 16))
    assert (found["kl"], found["same_top"]) == (expected.kl, expected.same_top)
    assert (found["perplexity"], found["windows"]) == (expected.evaluation.perplexity, 5)
    assert main(["evaluate", *arguments]) == 0
    out = capsys.readouterr().out
    assert f"KL divergence {expected.kl:.4f}" in out
    assert f"perplexity {expected.reference_perplexity:.4f}" in out
