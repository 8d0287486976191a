"""Zero-shot accuracy: likelihoods against plain NumPy, texts packed and shared, tasks, statistics, errors."""

from __future__ import annotations

import json
import math
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy_llama import forward
from small_run import VOCAB, small_model, small_tokens

import omniquant
from omniquant import _core
from omniquant.checkpoint.fields import Fields
from omniquant.cli import main
from omniquant.errors import CheckpointError, ConfigError, DataError, NotFiniteError
from omniquant.forward import packs, run_block, run_texts
from omniquant.models.load import load_model
from omniquant.zeroshot import likelihood
from omniquant.zeroshot.beginnings import share_beginnings
from omniquant.zeroshot.data import read_questions
from omniquant.zeroshot.likelihood import (
    Request,
    encode_pair,
    log_likelihoods,
    log_likelihoods_on_integers,
    span_of,
)
from omniquant.zeroshot.statistics import Accuracy, Difference, mcnemar, mean_of, wilson
from omniquant.zeroshot.tasks import TASKS

PIQA = {"query": "Question: warm\n", "choices": ["the sun", "ice"], "gold": 0}
ROWS = {
    "piqa": ({"goal": "warm", "sol1": "the sun", "sol2": "ice", "label": 0}, PIQA),
    "arc_easy": (
        {"question": "why?", "choices": {"text": ["so", "no", "yes"], "label": [*"ABC"]}, "answerKey": "C"},
        {"query": "Question: why?", "choices": ["so", "no", "yes"], "gold": 2},
    ),
    "boolq": (
        {"passage": "Ice is cold.", "question": "is ice warm", "label": 0},
        {"query": "Passage: Ice is cold.\nQuestion: is ice warm?", "choices": ["no", "yes"], "gold": 0},
    ),
    "winogrande": (
        {"sentence": "Ann met Eve so _ was late.", "option1": "Ann", "option2": "Eve", "answer": "2"},
        {
            "context_options": ["Ann met Eve so Ann", "Ann met Eve so Eve"],
            "continuation": "was late.",
            "gold": 1,
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def quantized(model):
    return omniquant.calibrate(model, small_tokens(), "W4A16g8", method="rtn", progress=False).fold()


@pytest.fixture(scope="module")
def tiny():
    return load_model("omniquant-tiny")


def random_requests(count=12, seed=5):
    """Return requests of different lengths; every other one shares its context with the one before."""
    rng = np.random.default_rng(seed)
    requests = []
    for index in range(count):
        context = tuple(rng.integers(0, VOCAB, rng.integers(1, 14)).tolist())
        if index % 2:
            context = requests[-1].context
        requests.append(Request(context, tuple(rng.integers(0, VOCAB, rng.integers(1, 6)).tolist())))
    requests.append(Request(requests[0].context, (*requests[0].continuation[:-1], 3)))  # the same text
    return requests


def by_hand(model, request):
    """Return log-likelihood and greediness from plain NumPy logits of the whole text."""
    whole = np.array([request.context + request.continuation])
    logits = forward(model, whole)[0, len(request.context) - 1 : -1]
    log_probabilities = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    log_probabilities -= logits.max(1, keepdims=True)
    targets = np.array(request.continuation)
    return log_probabilities[np.arange(len(targets)), targets].sum(), (logits.argmax(1) == targets).all()


# ---- likelihoods --------------------------------------------------------------


def test_likelihoods_equal_plain_numpy(model):
    requests = random_requests()
    # One continuation that is the likeliest token, so that greedy is seen both ways.
    best = int(forward(model, np.array([requests[0].context]))[0, -1].argmax())
    requests.append(Request(requests[0].context, (best,)))
    scores = log_likelihoods(model, requests)
    expected = [by_hand(model, request) for request in requests]
    np.testing.assert_allclose([s.log_likelihood for s in scores], [e[0] for e in expected], rtol=1e-5)
    assert [s.greedy for s in scores] == [e[1] for e in expected]
    assert {s.greedy for s in scores} == {False, True}


def test_integer_runtime_equals_its_own_logits_whatever_is_shared(quantized):
    requests = random_requests()
    engine = quantized.engine()
    scores = log_likelihoods_on_integers(engine, requests, quantized.max_positions, threads=1)
    backwards = log_likelihoods_on_integers(engine, requests[::-1], quantized.max_positions, threads=2)
    assert scores == backwards[::-1]
    fake = log_likelihoods(quantized, requests)
    np.testing.assert_allclose(
        [s.log_likelihood for s in scores], [s.log_likelihood for s in fake], rtol=1e-3
    )
    for request, score in zip(requests, scores, strict=True):
        logits = quantized.logits(np.array(request.context + request.continuation))
        logits = logits[len(request.context) - 1 : -1].astype(np.float64)
        normalizer = np.log(np.exp(logits).sum(axis=1))
        targets = np.array(request.continuation)
        expected = (logits[np.arange(len(targets)), targets] - normalizer).sum()
        assert score.log_likelihood == pytest.approx(expected, rel=1e-9)
        assert score.greedy == (logits.argmax(axis=1) == targets).all()


def test_texts_that_requests_share_run_once(model, monkeypatch):
    seen = []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda tokens, at: seen.append(len(tokens)) or embed(tokens, at))
    context = (5, 6, 7)
    log_likelihoods(model, [Request(context, (1,)), Request(context, (2,)), Request((5, 6), (7, 9))])
    assert seen == [3]


def test_more_texts_than_memory_go_in_parts(model, monkeypatch):
    requests = random_requests()
    whole = log_likelihoods(model, requests)
    monkeypatch.setattr(likelihood, "HIDDEN_BYTES", 4 * model.spec.hidden_size * 20)
    calls = []
    parts = log_likelihoods(model, requests, progress=lambda done, total: calls.append((done, total)))
    np.testing.assert_allclose(
        [s.log_likelihood for s in parts], [s.log_likelihood for s in whole], rtol=1e-6
    )
    assert len(calls) > 4
    assert calls[-1] == (len(calls), len(calls))


def test_threads_do_not_matter(model):
    requests = random_requests()
    assert log_likelihoods(model, requests, threads=1) == log_likelihoods(model, requests, threads=3)


def test_of_a_text_too_long_the_end_counts(model):
    long = Request(tuple(range(60)) * 3, (1, 2))
    span = span_of(long, model.max_positions)
    assert (len(span.tokens), span.start) == (model.max_positions, model.max_positions - 2)
    cut = Request((long.context + long.continuation)[-model.max_positions - 1 : -2], (1, 2))
    assert log_likelihoods(model, [long]) == log_likelihoods(model, [cut])
    with pytest.raises(DataError, match="a continuation of 129 tokens: the model takes 128"):
        log_likelihoods(model, [Request((1,), (2,) * 129)])


def test_packed_texts_equal_texts_alone(model):
    lengths = np.array([7, 1, 12, 3], np.int32)
    x = np.random.default_rng(0).standard_normal((lengths.sum(), model.spec.hidden_size)).astype(np.float32)
    packed = run_texts(model, 0, model.block(0), x, lengths)
    for start, length in zip(np.cumsum(lengths) - lengths, lengths, strict=True):
        alone = run_block(model, 0, model.block(0), x[None, start : start + length])
        np.testing.assert_allclose(packed[start : start + length], alone[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", ["W16A16", "W16A16KV3", "W16A16KV3sink3", "W16A16KV3sink7"])
def test_texts_that_share_their_beginning_equal_texts_alone(model, scheme):
    activation = omniquant.QuantConfig.parse(scheme).activation(0)
    rng = np.random.default_rng(1)
    whole = rng.standard_normal((3, 9, model.spec.hidden_size)).astype(np.float32)
    whole[1:, :5] = whole[0, :5]
    whole[2, 5] = whole[1, 5]  # more than the root has of it: run for each
    lone = rng.standard_normal((4, model.spec.hidden_size)).astype(np.float32)
    packed = run_texts(
        model,
        0,
        model.block(0),
        np.concatenate([lone, whole[0], whole[1, 5:], whole[2, 5:7]]),
        np.array([4, 9, 4, 2], np.int32),
        np.array([0, 0, 5, 5], np.int32),
        activation=activation,
    )
    alone = [run_block(model, 0, model.block(0), x[None], activation=activation)[0] for x in (lone, *whole)]
    expected = np.concatenate([alone[0], alone[1], alone[2][5:], alone[3][5:7]])
    np.testing.assert_allclose(packed, expected, rtol=1e-5, atol=1e-6)


@given(st.sets(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=20))
def test_shared_beginnings_are_those_of_the_root(texts):
    found = share_beginnings(texts)
    assert sorted(text.tokens for text in found) == sorted(texts)
    root = ()
    for text in found:
        assert text.own
        if not text.shared:
            root = text.tokens
        assert text.tokens[: text.shared] == root[: text.shared]


def test_beginnings_of_choices_run_once_and_groups_stay_small():
    context = tuple(range(20))
    choices = share_beginnings([(*context, 50), (*context, 50, 51), (*context, 60)])
    assert [len(text.own) for text in choices] == [21, 1, 1]
    other = share_beginnings([(*context, 50), (*context, 60), (0, 90, *context, 1), (0, 90, *context, 2)])
    assert [text.shared for text in other] == [0, 20, 0, 22]
    many = share_beginnings([(*context, i, *context) for i in range(300)])
    assert [text.shared for text in many].count(0) == 4


def test_packs_cover_every_text_once():
    parts = list(packs([1000, 1000, 100, 5000, 10]))
    assert [(part.start, part.stop) for part in parts] == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert list(packs([])) == []
    parts = list(packs([1000, 500, 700, 10], [0, 9, 9, 0]))
    assert [(part.start, part.stop) for part in parts] == [(0, 3), (3, 4)]


@pytest.mark.parametrize(
    ("lengths", "message"), [([5, 6], "2 texts of 11 tokens in a window of 12"), ([13, -1], "-1 at 1")]
)
def test_lengths_that_are_no_texts_are_refused(model, lengths, message):
    x = np.zeros((1, 12, model.spec.hidden_size), np.float32)
    with pytest.raises(ValueError, match=message):
        _core.block_forward(
            model.spec.to_core(),
            model.block(0),
            x,
            *model.rope_tables(12),
            lengths=np.array(lengths, np.int32),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": [5, 7], "shared": [0, 6]}, "shared: 6 at 1, the text before has 5 tokens"),
        ({"lengths": [5, 7], "shared": [2, 0]}, "shared: 2 at 0, the text before has 0 tokens"),
        ({"lengths": [5, 7], "shared": [0, -1]}, "shared: -1 at 1"),
        ({"lengths": [5, 7], "shared": [0]}, "shared"),
        ({"shared": [0]}, "shared: needs lengths"),
    ],
)
def test_beginnings_that_no_text_has_are_refused(model, options, message):
    x = np.zeros((1, 12, model.spec.hidden_size), np.float32)
    arrays = {name: np.array(values, np.int32) for name, values in options.items()}
    with pytest.raises(ValueError, match=message):
        _core.block_forward(model.spec.to_core(), model.block(0), x, *model.rope_tables(12), **arrays)


def test_not_a_number_is_an_error(model, monkeypatch):
    head = model.lm_head().copy()
    head[3, 2] = np.nan
    monkeypatch.setattr(model, "lm_head", lambda: head)
    with pytest.raises(NotFiniteError, match="log-likelihood of text 0"):
        log_likelihoods(model, random_requests())


# ---- from texts to tokens -----------------------------------------------------


def test_continuations_are_what_the_whole_has_more(tiny):
    context, continuation = "the value of", " the argument"
    request = encode_pair(tiny, context, continuation)
    whole = tiny.tokenizer.encode(context + continuation).ids
    assert request.context + request.continuation == tuple(whole)
    assert request.context == tuple(tiny.tokenizer.encode(context).ids)
    # Spaces that end a context belong to what follows.
    assert encode_pair(tiny, context + " ", "the argument") == request
    with pytest.raises(DataError, match=r"0 of . tokens are context"):
        encode_pair(tiny, " ", "x")


def test_the_token_that_begins_texts_is_part_of_the_context(tiny, monkeypatch):
    plain = encode_pair(tiny, "a value", " is")
    monkeypatch.setitem(tiny.__dict__, "text", omniquant.models.model.TextSettings(bos=1, add_bos=True))
    assert encode_pair(tiny, "a value", " is") == Request((1, *plain.context), plain.continuation)


# ---- tasks --------------------------------------------------------------------


@pytest.mark.parametrize("task", ROWS)
def test_both_layouts_make_the_same_question(task):
    original, stored = (TASKS[task].question(Fields(row, "row")) for row in ROWS[task])
    assert original == stored


def test_questions_are_worded_as_lm_eval_does():
    piqa = TASKS["piqa"].question(Fields(PIQA, "row"))
    assert piqa.contexts == ("Question: warm\nAnswer:",) * 2
    assert piqa.continuations == (" the sun", " ice")
    assert piqa.lengths == (7, 3)
    boolq = TASKS["boolq"].question(Fields(ROWS["boolq"][1], "row"))
    assert boolq.contexts[0] == "Ice is cold.\nQuestion: is ice warm?\nAnswer:"
    winogrande = TASKS["winogrande"].question(Fields(ROWS["winogrande"][0], "row"))
    assert winogrande.contexts == ("Ann met Eve so Ann", "Ann met Eve so Eve")
    assert winogrande.continuations == (" was late.",) * 2


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("piqa", {"gold": 2}, "the right choice is 2, expected 0 to 1"),
        ("piqa", {"choices": ["a"]}, "choices is .* at least two texts"),
        ("piqa", {"choices": ["a", ""]}, "at least two texts"),
        ("piqa", {"gold": None}, "gold is missing"),
        ("winogrande", {"continuation": 3}, "continuation is 3"),
    ],
)
def test_rows_that_are_no_questions_are_refused(task, change, message):
    with pytest.raises(CheckpointError, match=message):
        TASKS[task].question(Fields(ROWS[task][1] | change, "row"))


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("arc_easy", {"answerKey": "D"}, "answerKey is 'D', expected one of"),
        ("arc_easy", {"choices": 1}, "choices is 1"),
        ("winogrande", {"sentence": "no gap"}, "a text with a gap"),
        ("winogrande", {"answer": "3"}, "answer is '3'"),
    ],
)
def test_original_rows_that_are_no_questions_are_refused(task, change, message):
    with pytest.raises(CheckpointError, match=message):
        TASKS[task].question(Fields(ROWS[task][0] | change, "row"))


# ---- statistics ---------------------------------------------------------------


def test_intervals():
    right = np.array([True] * 8 + [False] * 2)
    found = Accuracy.of(right)
    assert found.value == 0.8
    assert found.stderr == pytest.approx(math.sqrt(0.8 * 0.2 / 9))  # ddof 1, as lm-eval
    # Wilson's interval are the shares p whose score |0.8 - p| / sqrt(p (1 - p) / 10) is 1.96.
    for end in wilson(8, 10):
        assert abs(0.8 - end) / math.sqrt(end * (1 - end) / 10) == pytest.approx(1.959964, rel=1e-6)
    assert wilson(0, 5)[0] == 0
    assert wilson(5, 5)[1] == 1
    assert math.isnan(Accuracy.of(np.array([True])).stderr)


def test_differences_are_paired():
    first = np.array([True, True, True, False, True, False])
    second = np.array([True, False, False, True, False, False])
    found = Difference.of(first, second)
    assert (found.gained, found.lost) == (3, 1)
    assert found.flips == 4 / len(first)
    paired = np.array([0, 1, 1, -1, 1, 0])
    assert found.value == pytest.approx(paired.mean())
    assert found.stderr == pytest.approx(paired.std(ddof=1) / math.sqrt(6))
    assert found.high - found.value == pytest.approx(1.959964 * found.stderr, rel=1e-6)
    # Of 4 coins at most 1 lies the rare way: (1 + 4) / 16, twice.
    assert found.p_value == 0.625
    assert mcnemar(0, 0) == 1
    assert mcnemar(900, 1200) < 1e-9
    mean = mean_of([0.5, 0.7], [0.03, 0.04])
    assert mean["value"] == pytest.approx(0.6)
    assert mean["stderr"] == pytest.approx(0.025)


# ---- whole runs ---------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks")
    for task, rows in ROWS.items():
        lines = [json.dumps(rows[index % 2]) for index in range(5)]
        (path / f"{task}.jsonl").write_text("\n".join(lines) + "\n\n")
    return path


def test_a_run_marks_the_likeliest_choice(tiny, folder):
    found = omniquant.zero_shot(tiny, list(ROWS), folder, limit=3, threads=1)
    for task in ROWS:
        question = read_questions(TASKS[task], folder, 1)[0]
        pairs = zip(question.contexts, question.continuations, strict=True)
        scores = np.array(
            [s.log_likelihood for s in log_likelihoods(tiny, [encode_pair(tiny, *p) for p in pairs])]
        )
        assert found[task].right.tolist() == [scores.argmax() == question.gold] * 3
        normalized = found[task].right_norm
        if task in ("piqa", "arc_easy"):
            by_length = (scores / question.lengths).argmax()
            assert normalized.tolist() == [by_length == question.gold] * 3
        else:
            assert normalized is None
    assert found.acc == pytest.approx(np.mean([found[task].right.mean() for task in ROWS]))
    with pytest.raises(KeyError):
        found["arc_challenge"]


def test_a_result_is_compared_with_its_model(tiny, folder, tmp_path):
    windows = omniquant.calibration_windows(None, tiny, 1, 32)
    result = omniquant.calibrate(tiny, windows, "W4A16", method="rtn", progress=False)
    fake = omniquant.zero_shot(result, "piqa,boolq", folder, against=tiny)
    integers = omniquant.zero_shot(result.fold(), "piqa,boolq", folder, runtime="integer")
    assert integers["piqa"].right.tolist() == fake["piqa"].right.tolist()
    values = fake.to_dict()
    difference = values["against"]["differences"]["piqa"]["acc"]
    assert difference["difference"] == pytest.approx(
        values["tasks"]["piqa"]["acc"] - values["against"]["tasks"]["piqa"]["acc"]
    )
    with pytest.raises(ConfigError, match="is not quantized"):
        omniquant.zero_shot(tiny, "piqa", folder, runtime="integer")
    with pytest.raises(ConfigError, match="runtime is 'float'"):
        omniquant.zero_shot(tiny, "piqa", folder, runtime="float")


def test_the_command_line(folder, capsys):
    arguments = ["evaluate", "omniquant-tiny", "--tasks", "piqa,winogrande", "--task-data", str(folder)]
    assert main([*arguments, "--threads", "1", "--against", "omniquant-tiny", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["tasks"]["piqa"]["questions"] == 5
    assert data["against"]["differences"]["piqa"]["acc_norm"]["p_value"] == 1
    assert main([*arguments, "--limit", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[2:5]] == [
        ["piqa", "acc", "2"], ["piqa", "acc_norm", "2"], ["winogrande", "acc", "2"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "piqa", "--data", "x.txt"], "perplexity and tasks are two runs"),
        (["--limit", "3"], "--limit needs --tasks"),
        (["--tasks", "hellaswag"], "task 'hellaswag' is unknown; known: piqa"),
        (["--tasks", ","], "no task is named"),
        (["--tasks", "piqa,piqa"], "named twice"),
        (["--tasks", "piqa", "--task-data", "/nowhere"], "/nowhere: no such folder"),
        (["--tasks", "piqa", "--limit", "0"], "limit is 0"),
    ],
)
def test_wishes_that_make_no_sense(arguments, message, capsys):
    assert main(["evaluate", "omniquant-tiny", *arguments, "--quiet"]) == 2
    assert message in capsys.readouterr().err


def test_files_that_hold_no_questions(tmp_path):
    with pytest.raises(DataError, match=r"piqa\.jsonl: cannot read"):
        read_questions(TASKS["piqa"], tmp_path)
    (tmp_path / "piqa.jsonl").write_text("\n")
    with pytest.raises(DataError, match="there are no questions"):
        read_questions(TASKS["piqa"], tmp_path)
    (tmp_path / "piqa.jsonl").write_text(json.dumps(PIQA) + "\n{\n")
    assert len(read_questions(TASKS["piqa"], tmp_path, 1)) == 1
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        read_questions(TASKS["piqa"], tmp_path)
    (tmp_path / "piqa.jsonl").write_text('{"query": "q"}')
    with pytest.raises(DataError, match="line 1: gold is missing"):
        read_questions(TASKS["piqa"], tmp_path)


def test_the_datasets_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="install the datasets library"):
        read_questions(TASKS["piqa"])
    library = types.ModuleType("datasets")
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        if arguments[0] != "baber/piqa":
            raise ConnectionError("no network")
        return [ROWS["piqa"][0]]

    library.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", library)
    expected = TASKS["piqa"].question(Fields(PIQA, "row"))
    assert read_questions(TASKS["piqa"]) == [expected]
    assert asked == [(("baber/piqa", None), {"split": "validation"})]
    with pytest.raises(DataError, match="no aps/super_glue: no network"):
        read_questions(TASKS["boolq"])
