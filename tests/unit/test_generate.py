"""Generating text: with the cache as without, streamed as at once, by prompt, tokens or conversation."""

from __future__ import annotations

import builtins
import json

import numpy as np
import pytest
from small_run import small_folder, small_tokens

import omniquant
from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.text_settings import TextSettings, settings_from_gguf
from omniquant.cli import main
from omniquant.errors import CheckpointError, ConfigError, DataError
from omniquant.models.load import load_model
from omniquant.quantized import QuantizedModel
from omniquant.runtime.chat import render_chat

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
LONG = "once upon a time there was"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the embedded model at W4A8, in a directory, opened."""
    path = tmp_path_factory.mktemp("tiny") / "result"
    model = load_model("omniquant-tiny")
    windows = omniquant.calibration_windows(None, model, samples=1, seqlen=32)
    omniquant.calibrate(model, windows, "W4A8", method="rtn", output=path, progress=False)
    return QuantizedModel.load(path)


def greedy_without_a_cache(model, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        token = int(np.argmax(model.logits(tokens)[-1]))
        if token in model.text.eos:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


def test_the_cache_changes_nothing(tiny):
    prompt = tiny.tokenizer.encode(LONG).ids
    found = tiny.generate(LONG, max_new_tokens=40)
    assert found.tokens == greedy_without_a_cache(tiny, prompt, 40)
    assert found.text == tiny.tokenizer.decode(prompt + found.tokens)[len(LONG) :]
    assert found.finish == ("length" if len(found.tokens) == 40 else "end")
    assert found.prompt_tokens == len(prompt)
    assert found.prefill_rate > 0 < found.decode_rate


def test_a_stream_is_the_same_text_in_pieces(tiny):
    options = {"max_new_tokens": 30, "temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 4}
    stream = tiny.stream(LONG, **options)
    pieces = list(stream)
    assert len(pieces) > 5
    assert "".join(pieces) == stream.result.text == tiny.generate(LONG, **options).text


def test_same_seed_same_text_at_any_number_of_threads(tiny):
    options = {"max_new_tokens": 30, "temperature": 1.0}
    texts = [tiny.generate(LONG, seed=s, threads=t, **options).tokens for s, t in [(1, 1), (1, 2), (2, 1)]]
    assert texts[0] == texts[1] != texts[2]


def test_stop_strings_end_the_text_and_are_left_out(tiny):
    whole = tiny.generate(LONG, max_new_tokens=40).text
    stop = whole[10:14]
    found = tiny.generate(LONG, max_new_tokens=40, stop=[stop, "never there"])
    assert found.finish == "stop"
    assert found.text == whole[: whole.index(stop)]
    assert tiny.generate(LONG, max_new_tokens=40, stop=stop).text == found.text


def test_tokens_are_a_prompt_too(tiny):
    ids = tiny.tokenizer.encode(LONG).ids
    by_text = tiny.generate(LONG, max_new_tokens=5).tokens
    assert tiny.generate(ids, max_new_tokens=5).tokens == by_text
    assert tiny.generate(np.array(ids, np.uint16), max_new_tokens=5).tokens == by_text


def test_a_text_ends_where_the_model_does(tiny):
    positions = tiny.max_positions
    full = tiny.generate([5] * (positions - 3), max_new_tokens=50)
    assert (full.finish, len(full.tokens)) == ("length", 3)
    for prompt in ([5] * positions, [], [tiny.vocab_size], [-1], np.zeros((1, 2), int), ""):
        with pytest.raises(DataError):
            tiny.generate(prompt)
    with pytest.raises(DataError, match="takes 1 to 256"):
        tiny.logits(np.zeros(257, int))


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"stop": ""}, {"temperature": -1.0}, {"length": 3}, {"stop": [""]}]
)
def test_options_that_make_no_sense(tiny, options):
    with pytest.raises(ConfigError):
        tiny.generate(LONG, **options)


def test_logits_of_windows_do_not_see_each_other(tiny):
    windows = np.random.default_rng(1).integers(0, tiny.vocab_size, (3, 20))
    found = tiny.logits(windows, threads=2)
    assert found.shape == (3, 20, tiny.vocab_size)
    for window, logits in zip(windows, found, strict=True):
        np.testing.assert_array_equal(tiny.logits(window, threads=1), logits)
    with pytest.raises(DataError):
        tiny.logits(np.zeros((2, 0), int))


def test_a_result_in_memory_runs_as_one_on_disk(tiny):
    model = load_model("omniquant-tiny")
    windows = omniquant.calibration_windows(None, model, samples=1, seqlen=32)
    result = omniquant.calibrate(model, windows, "W4A8", method="rtn", progress=False)
    assert (
        result.fold().generate(LONG, max_new_tokens=10).tokens
        == tiny.generate(LONG, max_new_tokens=10).tokens
    )


def test_without_a_tokenizer_there_are_tokens(tmp_path):
    folder = small_folder(tmp_path / "model")
    (folder / "tokenizer.json").unlink(missing_ok=True)
    path = tmp_path / "result"
    omniquant.calibrate(load_model(folder), small_tokens(), "W4A4", method="rtn", output=path, progress=False)
    model = QuantizedModel.load(path)
    found = model.generate([1, 2, 3], max_new_tokens=5)
    assert len(found.tokens) == 5
    assert found.text == ""
    for options in ({"prompt": "a"}, {"prompt": [1], "stop": "b"}):
        with pytest.raises(CheckpointError, match="tokenizer"):
            model.generate(**options)


# ---- settings and conversations ------------------------------------------------


def settings_of(folder, **files):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return load_model(folder).text


def test_settings_of_a_folder(tmp_path):
    folder = small_folder(tmp_path / "model")
    found = settings_of(
        folder,
        generation_config__json={"eos_token_id": [3, 5]},
        tokenizer_config__json={
            "add_bos_token": True,
            "chat_template": [{"name": "default", "template": "x"}],
        },
    )
    assert found.add_bos
    assert found.chat_template == "x"
    assert set(found.eos) >= {3, 5}
    assert settings_of(folder, chat_template__jinja="y").chat_template == "y"
    with pytest.raises(CheckpointError, match="eos_token_id"):
        settings_of(folder, generation_config__json={"eos_token_id": ["x"]})
    with pytest.raises(CheckpointError, match="characters"):
        settings_of(folder, generation_config__json={}, chat_template__jinja="y" * (1 << 20 + 1))


def test_settings_of_gguf_metadata():
    fields = {
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": TEMPLATE,
    }
    expected = TextSettings(1, (2,), True, TEMPLATE)
    assert settings_from_gguf(Fields(fields, "x.gguf")) == expected
    assert TextSettings.from_fields(Fields(expected.to_dict(), "text.json")) == expected


def test_a_conversation_by_template():
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    assert render_chat(TEMPLATE, messages, "<s>", "</s>") == "u:hi</s>a:yo</s>a:"
    for template in ("{% if", "{{ 1 / 0 }}", "{{ messages[9].x.y }}", "{{ raise_exception('no\nsystem') }}"):
        with pytest.raises(DataError, match="template"):
            render_chat(template, messages)
    for attack in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ range(9999999) }}"):
        with pytest.raises(DataError, match="template"):
            render_chat(attack, messages)
    for bad in ([], [{"role": "user"}], ["hi"], [{"role": "user", "content": 3}]):
        with pytest.raises(DataError):
            render_chat(TEMPLATE, bad)


def test_a_missing_jinja2_is_named(monkeypatch):
    real = builtins.__import__

    def no_jinja2(name, *rest):
        if name.startswith("jinja2"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_jinja2)
    with pytest.raises(ConfigError, match=r"omniquant-c\[chat\]"):
        render_chat(TEMPLATE, [{"role": "user", "content": "hi"}])


def test_a_chat_goes_by_the_template(tiny, monkeypatch):
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(DataError, match="no chat template"):
        tiny.generate(messages)
    monkeypatch.setattr(tiny._outer, "text", TextSettings(0, (1,), False, TEMPLATE))
    end = tiny.tokenizer.id_to_token(1)
    prompt = tiny.tokenizer.encode(f"u:hi{end}a:", add_special_tokens=False).ids
    assert tiny.generate(messages, max_new_tokens=4).tokens == tiny.generate(prompt, max_new_tokens=4).tokens
    monkeypatch.setattr(tiny._outer, "text", TextSettings(0, (), True, None))
    assert tiny.generate(LONG, max_new_tokens=1).prompt_tokens == 1 + len(tiny.tokenizer.encode(LONG).ids)


# ---- the command line -------------------------------------------------------------


def test_command_line(tiny, capsys):
    folder = str(tiny._store.folder)
    assert main(["generate", folder, "--prompt", LONG, "--max-new-tokens", "8", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    expected = tiny.generate(LONG, max_new_tokens=8)
    assert out == expected.text + "\n"
    assert "8 generated at" in err
    options = [
        "--temperature",
        "0.7",
        "--top-k",
        "9",
        "--top-p",
        "0.9",
        "--seed",
        "3",
        "--stop",
        "zzz",
        "--json",
    ]
    assert main(["generate", folder, "--prompt", LONG, "--max-new-tokens", "8", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    sampled = tiny.generate(LONG, max_new_tokens=8, temperature=0.7, top_k=9, top_p=0.9, seed=3, stop=["zzz"])
    assert (found["text"], found["tokens"], found["scheme"]) == (sampled.text, sampled.tokens, "W4A8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["omniquant-tiny", "--prompt", "x"], "no result of omniquant quantize"),
        (["DIR", "--prompt", ""], "prompt"),
        (["DIR", "--prompt", "x", "--chat"], "no chat template"),
        (["DIR", "--prompt", "x", "--top-p", "7"], "top_p is 7.0"),
    ],
)
def test_command_line_errors(tiny, capsys, arguments, message):
    folder = str(tiny._store.folder)
    assert main(["generate", *(folder if a == "DIR" else a for a in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_evaluate_on_integers(tiny, capsys):
    folder = str(tiny._store.folder)
    run = ["evaluate", folder, "--seqlen", "64", "--max-tokens", "1024", "--json", "--quiet"]
    assert main([*run, "--runtime", "integer"]) == 0
    integers = json.loads(capsys.readouterr().out)
    assert main(run) == 0
    fake = json.loads(capsys.readouterr().out)
    assert (integers["runtime"], fake["runtime"]) == ("integer", "fake")
    assert (integers["fake_quantized"], fake["fake_quantized"]) == (False, True)
    assert integers["perplexity"] == pytest.approx(fake["perplexity"], rel=5e-3)
    windows = omniquant.evaluation_windows(None, tiny, 64, 1024)
    assert tiny.perplexity(windows) == integers["perplexity"]
    assert tiny.perplexity(windows, runtime="fake") == fake["perplexity"]
    with pytest.raises(ConfigError, match="expected 'integer' or 'fake'"):
        tiny.perplexity(windows, runtime="float")
    assert main(["evaluate", "omniquant-tiny", "--runtime", "integer", "--max-tokens", "1024"]) == 2
