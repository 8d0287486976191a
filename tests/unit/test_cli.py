"""The command line as others script against it: arguments, JSON, exit status, one-line errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_run import contents, small_folder, small_tokens

import omniquant
from omniquant import cli
from omniquant.cli import main
from omniquant.progress import NowAndThen

BLOCK_KEYS = {
    "index", "seconds", "loss_rtn", "loss_initial", "loss_final", "min_margin", "max_condition",
    "rows_projected",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(small_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "windows.npy"
    np.save(path, small_tokens())
    return str(path)


@pytest.fixture
def quantize(folder, tokens, tmp_path):
    def arguments(*more, output=None, scheme="W4A4", method="affinequant", model=folder, data=tokens):
        return [
            "quantize", model, "--scheme", scheme, "--method", method, "--data", data, "--epochs", "1",
            "--seed", "2", "--threads", "1", "--output", str(output or tmp_path / "out"), *more,
        ]  # fmt: skip

    return arguments


def succeeds(capsys, *arguments):
    assert main([*arguments]) == 0
    return capsys.readouterr()


def fails(capsys, *arguments):
    """Return the one line a failing command writes; nothing else may appear on standard output."""
    assert main([*arguments, "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("omniquant: error: ")
    assert err.count("\n") == 1
    return err


def test_quantize_ends_with_one_object(capsys, quantize, tmp_path):
    out, err = succeeds(capsys, *quantize("--json"))
    data = json.loads(out)
    assert out.count("\n") == 1
    assert {"output", "scheme", "method", "seconds", "steps", "peak_rss_mib", "blocks"} <= set(data)
    assert (data["output"], data["scheme"], data["method"]) == (str(tmp_path / "out"), "W4A4", "affinequant")
    assert data["steps"] == 8
    assert [block["index"] for block in data["blocks"]] == [0, 1]
    assert all(set(block) >= BLOCK_KEYS for block in data["blocks"])
    assert "block 2/2" in err


def test_quantize_in_words(capsys, quantize, tmp_path):
    out, _ = succeeds(capsys, *quantize())
    assert str(tmp_path / "out") in out
    assert "smallest dominance margin" in out
    out, err = succeeds(capsys, *quantize("--quiet", method="omniquant", output=tmp_path / "more"))
    assert "margin" not in out
    assert err == ""


@pytest.mark.parametrize(
    "more",
    [
        ["--norm-map", "online"], ["--qk-map", "exact"], ["--qk-map", "scale"], ["--vo-map", "diagonal"],
        ["--no-up-down"], ["--dominance", "reject"], ["--dominance", "monitor"], ["--stability", "0.1"],
        ["--alpha", "0.7"], ["--aug-loss"], ["--no-aug-loss"], ["--loss", "token"], ["--loss", "relative"],
        ["--lac"], ["--rotation", "folded"], ["--rotation", "online"], ["--batch-size", "3"],
        ["--schedule", "cosine"], ["--no-shuffle"], ["--best-iterate"], ["--lr-lwc", "0.02"],
        ["--lr-let", "0.01"],
        ["--parametrization", "absolute", "--stability", "0.1"], ["--margin", "0.2"],
    ],
)  # fmt: skip
def test_every_option_reaches_the_calibration(capsys, quantize, more):
    out, _ = succeeds(capsys, *quantize("--json", *more))
    options = json.loads(out)["options"]
    plain = omniquant.CalibrationOptions.for_method(
        "affinequant", omniquant.QuantConfig.parse("W4A4"), epochs=1, seed=2
    )
    changed = {name for name, value in plain.to_dict().items() if options[name] != value}
    named = {
        flag.removeprefix("--").removeprefix("no-").replace("-", "_")
        for flag in more
        if flag.startswith("--")
    }
    assert changed <= named
    assert changed or more == ["--aug-loss"]  # that is the default at W4A4


def test_evaluate_models_and_results(capsys, quantize, folder, tokens, tmp_path):
    succeeds(capsys, *quantize())
    out, _ = succeeds(capsys, "evaluate", str(tmp_path / "out"), "--data", tokens, "--json")
    data = json.loads(out)
    result = omniquant.CalibrationResult.load(tmp_path / "out")
    assert data["perplexity"] == omniquant.perplexity(result, small_tokens())
    assert {key: data[key] for key in ("tokens", "windows", "seqlen", "model", "scheme", "method")} == {
        "tokens": 48, "windows": 4, "seqlen": 12, "model": "tiny", "scheme": "W4A4", "method": "affinequant",
    }  # fmt: skip
    out, _ = succeeds(capsys, "evaluate", folder, "--data", tokens, "--json")
    data = json.loads(out)
    assert (data["scheme"], data["method"], data["fake_quantized"]) == (None, None, False)
    out, _ = succeeds(capsys, "evaluate", folder, "--data", tokens)
    assert f"perplexity {data['perplexity']:.4f}" in out


def test_evaluate_text_and_streams(capsys, folder, tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox. " * 20)
    out, _ = succeeds(
        capsys,
        "evaluate",
        folder,
        "--data",
        str(tmp_path / "text.txt"),
        "--seqlen",
        "16",
        "--max-tokens",
        "50",
        "--json",
    )
    assert json.loads(out)["windows"] == 3
    np.save(tmp_path / "stream.npy", np.arange(60) % 60)
    out, _ = succeeds(
        capsys, "evaluate", folder, "--data", str(tmp_path / "stream.npy"), "--seqlen", "20", "--json"
    )
    assert json.loads(out)["tokens"] == 60


def test_evaluate_shows_a_bar_on_a_terminal(capsys, folder, tokens, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _, err = succeeds(capsys, "evaluate", folder, "--data", tokens)
    assert "step/s" in err or "s/step" in err or "?step" in err


@pytest.mark.parametrize("against", [False, True])
def test_evaluate_writes_lines_to_a_log_where_it_takes_long(capsys, folder, tokens, monkeypatch, against):
    command = ["evaluate", folder, "--data", tokens, *(["--against", folder] if against else [])]
    _, err = succeeds(capsys, *command)
    assert err == ""
    monkeypatch.setattr(NowAndThen, "FIRST_SECONDS", 0.0)
    _, err = succeeds(capsys, *command)
    assert re.fullmatch(r"1 of \d steps, 0:00 so far, about 0 s left\n", err)
    _, err = succeeds(capsys, *command, "--quiet")
    assert err == ""


def test_info_of_a_model(capsys, folder):
    out, _ = succeeds(capsys, "info", folder, "--json")
    data = json.loads(out)
    assert (data["kind"], data["num_layers"], data["linear_weights"]) == (
        "model",
        2,
        2 * (16 * 16 * 3 + 16 * 20 * 3),
    )
    out, _ = succeeds(capsys, "info", folder)
    assert "4 heads of 4, 2 key/value heads" in out
    assert [site["site"] for site in data["permits"]][:2] == ["norm1 -> q, k, v", "q <-> k"]
    assert "permits   up -> down: one scale a channel\n" in out


def test_info_of_the_families(capsys):
    out, _ = succeeds(capsys, "info", "--families", "--json")
    found = {each["model_type"]: each["class"] for each in json.loads(out)["families"]}
    assert found.items() >= {"llama": "LlamaForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}.items()


def test_info_of_a_result(capsys, quantize, tmp_path):
    succeeds(capsys, *quantize("--norm-map", "online"))
    out, _ = succeeds(capsys, "info", str(tmp_path / "out"), "--json")
    data = json.loads(out)
    assert data["online_multiply_adds_per_token"] == 2 * 2 * 16 * 16
    assert data["approximate"] == ["q <-> k"]
    assert data["complete"]
    assert 4 < data["bits_per_weight"] < 8
    out, _ = succeeds(capsys, "info", str(tmp_path / "out"))
    for words in (
        "fake-quantized",
        "APPROXIMATE",
        "online: 512 multiply-adds",
        "block_00001.safetensors",
        "margin",
    ):
        assert words in out
    succeeds(capsys, *quantize(method="rtn", output=tmp_path / "plain"))
    out, _ = succeeds(capsys, "info", str(tmp_path / "plain"))
    assert "map       none" in out


def test_resume_makes_the_same_result(capsys, quantize, tmp_path):
    succeeds(capsys, *quantize())
    succeeds(capsys, *quantize("--resume"))
    _, err = succeeds(capsys, *quantize("--resume", output=tmp_path / "new"))
    assert f"{tmp_path / 'new'}: nothing to resume, a new run" in err
    assert contents(tmp_path / "new") == contents(tmp_path / "out")


def test_auto_says_what_it_chose(capsys, quantize, tmp_path):
    out = succeeds(capsys, *quantize("--json", scheme="W3A16", method="auto")).out
    told = succeeds(capsys, "info", str(tmp_path / "out")).out
    assert "method    omniquant (rounding learned, start search), " in told
    found = json.loads(out)
    assert (found["method"], found["options"]["rounding"], found["options"]["epochs"]) == (
        "omniquant",
        "learned",
        1,
    )


def test_methods_that_train_nothing_tell_no_epochs_and_rtn_one_loss(capsys, quantize, tmp_path):
    _, err = succeeds(capsys, *quantize(method="rtn"))
    assert "W4A4 rtn, 4 windows of 12 tokens\n" in err
    assert re.search(r"^block 1/2: loss [\d.e-]+, [\d.]+ s$", err, re.MULTILINE)
    _, err = succeeds(capsys, *quantize(method="omniquant", output=tmp_path / "trained"))
    assert "W4A4 omniquant, 4 windows of 12 tokens, 1 epoch\n" in err


def test_training_options_of_methods_that_train_nothing_are_noted(capsys, quantize):
    _, err = succeeds(capsys, *quantize(method="rtn"))
    assert "rtn trains nothing: --epochs 1 has no effect" in err


@pytest.mark.parametrize(
    ("scheme", "more", "words"),
    [
        ("W4B4", [], "scheme 'W4B4' is not understood: expected W<bits>[s]A<bits>"),
        ("W1A4", [], "weights cannot have 1 bits"),
        ("W16A16", [], "quantizes nothing"),
        ("W4A4", ["--epochs", "-3"], "epochs -3"),
        ("W4A4", ["--alpha", "nan"], "alpha nan"),
        ("W4A4", ["--stability", "inf"], "stability inf"),
        ("W4A4", ["--threads", "0"], "threads 0"),
        ("W4A4", ["--samples", "0", "--data", "STREAM"], "samples is 0"),
        ("W4A4", ["--seqlen", "4000", "--data", "STREAM"], "takes 1 to 128"),
        ("W4A4", ["--seqlen", "100", "--data", "STREAM"], "40 tokens"),
        ("W4A4", ["--data", "nowhere.txt"], "nowhere.txt"),
        ("W4A4", ["--method", "omniquant", "--norm-map", "online"], "needs method 'affinequant'"),
    ],
)
def test_bad_wishes_are_told_in_one_line_and_nothing_is_written(
    capsys, quantize, tmp_path, scheme, more, words
):
    np.save(tmp_path / "stream.npy", np.arange(40))
    more = [str(tmp_path / "stream.npy") if word == "STREAM" else word for word in more]
    assert words in fails(capsys, *quantize(*more, scheme=scheme))
    assert not (tmp_path / "out").exists()


def test_bad_models_are_told(capsys, quantize, tokens, tmp_path):
    assert "no such folder or file" in fails(capsys, *quantize(model=str(tmp_path / "none")))
    succeeds(capsys, *quantize())
    again = quantize(model=str(tmp_path / "out"), output=tmp_path / "more")
    assert "is quantized already" in fails(capsys, *again)
    assert "no such folder or file" in fails(capsys, "evaluate", "none", "--data", tokens)
    assert "no such folder or file" in fails(capsys, "info", "none\0")
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize", "NOWHERE", "--scheme", "W4A16", "--output", "z"],
        ["tune", "FOLDER", "--model", "NOWHERE", "--output", "z"],
        ["tune", "NOWHERE", "--model", "FOLDER", "--output", "z"],
        ["evaluate", "NOWHERE"],
        ["evaluate", "FOLDER", "--against", "NOWHERE"],
        ["evaluate", "FOLDER", "--against", "NOWHERE", "--limit", "1"],
    ],
)
def test_a_path_that_leads_nowhere_is_named_before_data_that_lack(capsys, folder, tmp_path, arguments):
    nowhere = str(tmp_path / "nowhere")
    filled = [{"NOWHERE": nowhere, "FOLDER": folder}.get(word, word) for word in arguments]
    assert f"{nowhere!r}: no such folder or file" in fails(capsys, *filled)


def test_data_is_needed_except_by_the_embedded_model(capsys, folder):
    assert "--data is needed" in fails(capsys, "evaluate", folder)


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["quantize"], ["evaluate", "x", "--seqlen", "many"], ["info"], ["info", "x", "--families"]],
)
def test_usage_errors_have_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "omniquant" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "quantize", "evaluate", "info", "demo"])
def test_help_has_examples(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert f"omniquant {command}" in out


def test_ctrl_c_is_130(capsys, monkeypatch, folder):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.info, "run", interrupted)
    assert main(["info", folder]) == 130
    assert capsys.readouterr().err == "omniquant: interrupted\n"
    monkeypatch.setattr(cli.quantize, "run", interrupted)
    assert main(["quantize", folder, "--scheme", "W4A4", "--output", "out"]) == 130
    assert capsys.readouterr().err.endswith("interrupted; what is finished is kept, go on with --resume\n")


def test_what_a_target_will_not_hold_is_told_at_the_start(capsys, quantize, tmp_path):
    _, err = succeeds(capsys, *quantize("--target", "huggingface", method="rtn"))
    assert "huggingface has no place for all of W4A4: exporting will need --weights-only" in err
    out, _ = succeeds(capsys, "info", str(tmp_path / "out"))
    assert "rtn (target huggingface)" in out
    more = {"method": "rtn", "scheme": "W3A16g4", "output": tmp_path / "odd"}
    _, err = succeeds(capsys, *quantize("--target", "onnx", **more))
    assert "exporting will need --variant dequantize-linear" in err
    more = {"method": "rtn", "scheme": "W4A16", "output": tmp_path / "weights"}
    _, err = succeeds(capsys, *quantize("--target", "huggingface", **more))
    assert "weights-only" not in err


@pytest.mark.parametrize(
    ("scheme", "more", "words"),
    [
        (
            "W4A16g8",
            [],
            "groups of 8: down with 20 inputs ends in a shorter one, which compressed-tensors, gptq, ",
        ),
        ("W4A16g6", [], "groups of 6: q with 16 inputs and 6 others end in a shorter one, which "),
        ("W4A16g4", ["--override", "layers.0.q=W8A16g8"], "groups of 8: down with 20 inputs ends in "),
        ("W4A16g4", [], None),
        ("W4A16g20", [], None),
        ("W4A16", [], None),
        ("W4A16g8", ["--target", "huggingface"], None),
    ],
)
def test_groups_that_leave_a_rest_are_told_once(capsys, quantize, scheme, more, words):
    _, err = succeeds(capsys, *quantize(*more, scheme=scheme, method="rtn"))
    assert err.count("in a shorter one") == (words is not None)
    assert words is None or words in err
    _, err = succeeds(capsys, *quantize(*more, "--resume", scheme=scheme, method="rtn"))
    assert "in a shorter one" not in err


def test_fewer_windows_than_asked_for_and_what_auto_chose_are_told(capsys, quantize):
    _, err = succeeds(capsys, *quantize("--samples", "99", method="auto", scheme="W3A16"))
    assert "the data hold 4 windows, 99 were asked for" in err
    assert "W3A16 omniquant (rounding learned, start search" in err


@pytest.mark.parametrize(
    ("file", "engine"), [("model.onnx", "ONNX Runtime"), ("openvino_model.xml", "OpenVINO")]
)
def test_a_graph_is_told_whose_it_is(capsys, folder, tokens, tmp_path, file, engine):
    graph = tmp_path / "graph"
    shutil.copytree(folder, graph)
    (graph / file).write_bytes(b"a graph")
    succeeds(capsys, "info", str(graph))  # weights are there beside it
    (graph / "model.safetensors").unlink()
    words = f"{graph}: holds an exported {file}, which {engine} runs; omniquant reads models and results"
    for command in ("info", "evaluate", "generate"):
        more = {"info": [], "evaluate": ["--data", tokens], "generate": ["--prompt", "a"]}[command]
        assert words in fails(capsys, command, str(graph), *more)


def test_a_result_without_its_manifest_is_told(capsys, quantize, tmp_path):
    succeeds(capsys, *quantize(method="rtn"))
    (tmp_path / "out" / "manifest.json").unlink()
    assert "a result of omniquant quantize, but has no manifest.json" in fails(
        capsys, "info", str(tmp_path / "out")
    )


def test_out_of_memory_is_told(capsys, monkeypatch):
    def greedy(arguments):
        raise MemoryError

    monkeypatch.setattr(cli.info, "run", greedy)
    assert main(["info", "x"]) == 2
    assert capsys.readouterr().err == "omniquant: error: out of memory\n"


def test_module_and_closed_pipe(folder):
    done = subprocess.run(
        [sys.executable, "-m", "omniquant", "info", folder], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "model")
    reader, writer = os.pipe()
    os.close(reader)
    closed = subprocess.run(
        [sys.executable, "-m", "omniquant", "info", folder],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (closed.returncode, closed.stderr) == (141, "")
