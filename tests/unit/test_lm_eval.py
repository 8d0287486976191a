"""The adapter for lm-eval: on the package where it is installed, else on its interface."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest
from lm_eval_interface import modules

import omniquant
from omniquant.errors import ConfigError
from omniquant.models.load import load_model
from omniquant.zeroshot.likelihood import Request, encode_pair, log_likelihoods

INSTALLED = importlib.util.find_spec("lm_eval") is not None
PAIRS = [("the value of", " the argument"), ("the value of", " x"), ("Return ", "True"), ("", "the value")]


@pytest.fixture(scope="module")
def adapter():
    replaced = {} if INSTALLED else modules()
    sys.modules.update(replaced)
    yield importlib.import_module("omniquant.lm_eval")
    for name in ("omniquant.lm_eval", *replaced):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def model():
    return load_model("omniquant-tiny")


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("result") / "out"
    windows = omniquant.calibration_windows(None, model, 1, 32)
    omniquant.calibrate(model, windows, "W4A16", method="rtn", output=path, progress=False)
    return str(path)


def instances(*arguments):
    return [types.SimpleNamespace(args=entry) for entry in arguments]


def test_the_model_is_registered(adapter):
    registry = sys.modules["lm_eval.api.registry"]
    found = registry.get_model("omniquant") if INSTALLED else registry.MODELS["omniquant"]
    assert found is adapter.OmniQuantLM


@pytest.mark.parametrize("runtime", ["fake", "integer"])
def test_likelihoods_are_those_of_the_package(adapter, directory, runtime):
    lm = adapter.OmniQuantLM(directory, runtime=runtime, threads=1, batch_size=4, device="cpu")
    quantized = omniquant.QuantizedModel.load(directory)
    tokens = tuple(quantized.tokenizer.encode("the value", add_special_tokens=False).ids)
    requests = [encode_pair(quantized, *pair) for pair in PAIRS[:3]]
    requests.append(Request((lm.prefix_token_id,), tokens))
    expected = [score.log_likelihood for score in log_likelihoods(quantized, requests)]
    found = lm.loglikelihood(instances(*PAIRS))
    np.testing.assert_allclose([value for value, _ in found], expected, rtol=1e-3)
    assert all(type(greedy) is bool for _, greedy in found)


def test_whole_texts_go_in_windows(adapter, model):
    lm = adapter.OmniQuantLM(model, threads=1)
    text = "The value of the argument is returned. " * 60
    tokens = lm.tok_encode(text, add_special_tokens=False)
    assert len(tokens) > lm.max_length
    found = lm.loglikelihood_rolling(instances((text,), ("the value",)))
    first = Request((lm.prefix_token_id,), tuple(tokens[: lm.max_length]))
    rest = len(tokens) - lm.max_length
    assert rest < lm.max_length
    second = Request(tuple(tokens[-lm.max_length - 1 : -rest]), tuple(tokens[-rest:]))
    expected = sum(score.log_likelihood for score in log_likelihoods(model, [first, second]))
    assert found[0] == pytest.approx(expected, rel=1e-6)
    assert found[1] > found[0]


def test_texts_are_continued_on_integers(adapter, directory, model):
    lm = adapter.OmniQuantLM(directory, threads=1)
    wishes = {"max_gen_toks": 8, "until": ["\n\n", ""]}
    quantized = omniquant.QuantizedModel.load(directory)
    expected = quantized.generate("The value", max_new_tokens=8, stop=["\n\n"]).text
    assert lm.generate_until(instances(("The value", wishes))) == [expected]
    with pytest.raises(ConfigError, match="only results"):
        adapter.OmniQuantLM(model).generate_until(instances(("The value", wishes)))


def test_arguments_that_make_no_sense(adapter, model):
    with pytest.raises(ConfigError, match="no argument 'dtype'"):
        adapter.OmniQuantLM(model, dtype="float16")
    with pytest.raises(ConfigError, match="is not quantized"):
        adapter.OmniQuantLM(model, runtime="integer")
