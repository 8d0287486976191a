"""Bad input, full disks, missing folders: one line that says what and where, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from small_run import contents, small_folder, small_tokens
from synthetic import llama_config, llama_tensors, safetensors_bytes, write_llama_gguf

from omniquant.checkpoint import atomic
from omniquant.cli import main


@pytest.fixture
def folder(tmp_path):
    return small_folder(tmp_path / "tiny")


@pytest.fixture
def tokens(tmp_path):
    np.save(tmp_path / "windows.npy", small_tokens())
    return tmp_path / "windows.npy"


def command(model, data, output, *more):
    return [
        "quantize", str(model), "--scheme", "W4A4", "--method", "affinequant", "--data", str(data),
        "--epochs", "1", "--threads", "1", "--quiet", "--output", str(output), *more,
    ]  # fmt: skip


def error_of(capsys, arguments):
    """Run a command that must fail; returns its one line."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("omniquant: error: ")
    assert err.count("\n") == 1
    return err


# --- lies and damage in what is read ---------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def edit_config(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def poison(folder):
    path = folder / "model.safetensors"
    tensors = dict(safetensors.numpy.load(path.read_bytes()))
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    path.write_bytes(safetensors.numpy.save(tensors))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: cut(f / "model.safetensors"), "model.safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "model.safetensors"),
        (lambda f: cut(f / "config.json"), "config.json"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (edit_config(hidden_size=17), "the configuration says [64, 17]"),
        (edit_config(intermediate_size=24), "mlp"),
        (edit_config(num_hidden_layers=3), "model.layers.2"),
        (edit_config(num_hidden_layers=10**12), "num_hidden_layers"),
        (edit_config(model_type="mystery"), "mystery"),
        (edit_config(vocab_size=10), "embed_tokens"),
    ],
)
def test_a_model_that_lies(capsys, folder, tokens, tmp_path, damage, words):
    damage(folder)
    assert words in error_of(capsys, command(folder, tokens, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_not_a_number(capsys, folder, tokens, tmp_path):
    poison(folder)
    err = error_of(capsys, command(folder, tokens, tmp_path / "out"))
    assert "block 1: up.weight: row 3 column 5 is nan" in err
    assert "1 finished blocks are kept" in err


def test_a_gguf_that_is_cut(capsys, tokens, tmp_path):
    path = write_llama_gguf(tmp_path / "tiny.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "tiny.gguf" in error_of(capsys, command(path, tokens, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_does_not_fit(capsys, folder, tmp_path):
    text = json.loads((folder / "tokenizer.json").read_text())
    text["model"]["vocab"]["zzz"] = 900
    (folder / "tokenizer.json").write_text(json.dumps(text))
    (tmp_path / "text.txt").write_text("some words " * 100)
    assert "901 tokens" in error_of(capsys, command(folder, tmp_path / "text.txt", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.npy", None, "gone.npy"),
        ("gone.txt", None, "gone.txt"),
        ("cut.npy", b"\x93NUMPY\x01\x00v", "cut.npy"),
        ("text.npy", b"hello", "text.npy"),
        ("latin.txt", b"caf\xe9", "not UTF-8"),
        ("short.txt", b"hello", "5 tokens"),
        ("empty.txt", b"", "0 tokens"),
    ],
)
def test_data_that_lies(capsys, folder, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    arguments = command(folder, tmp_path / name, tmp_path / "out", "--seqlen", "16")
    assert words in error_of(capsys, arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((2, 8), 64), "64"),
        (np.zeros((2, 8)), "float64"),
        (np.zeros((2, 2, 2), np.int32), "[2, 2, 2]"),
        (np.zeros((0, 8), np.int32), "[0, 8]"),
        (np.array([{}], object), "integers"),
    ],
)
def test_token_ids_that_lie(capsys, folder, tmp_path, array, words):
    np.save(tmp_path / "ids.npy", array, allow_pickle=True)
    assert words in error_of(capsys, command(folder, tmp_path / "ids.npy", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["block_00001.safetensors", "outer.safetensors", "manifest.json", "config.json"]
)
@pytest.mark.parametrize("asked", ["evaluate", "info"])
def test_a_result_that_is_cut(capsys, folder, tokens, tmp_path, name, asked):
    assert main(command(folder, tokens, tmp_path / "out")) == 0
    capsys.readouterr()
    cut(tmp_path / "out" / name)
    data = ["--data", str(tokens)] if asked == "evaluate" else []
    if asked == "info" and name.startswith("block"):
        return  # info reads no weights
    assert name in error_of(capsys, [asked, str(tmp_path / "out"), *data])


# --- disks and folders that refuse ------------------------------------------------------------------------


class Refusing:
    """Fails a function's k-th call with an error number, and every later one."""

    def __init__(self, function, at, number):
        self.function, self.at, self.number, self.calls = function, at, number, 0

    def __call__(self, *positional, **keywords):
        self.calls += 1
        if self.calls >= self.at:
            raise OSError(self.number, os.strerror(self.number))
        return self.function(*positional, **keywords)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("whole")
    np.save(place / "windows.npy", small_tokens())
    assert main(command(small_folder(place / "tiny"), place / "windows.npy", place / "out")) == 0
    return contents(place / "out")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("name", ["fsync", "open", "replace"])
@pytest.mark.parametrize("at", [1, 2, 5, 8, 10, 12])
def test_a_disk_that_fails(capsys, monkeypatch, folder, tokens, tmp_path, whole, number, name, at):
    output = tmp_path / "out"
    refusing = Refusing(getattr(os, name), at, number)
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, name, refusing)
        status = main(command(folder, tokens, output))
    out, err = capsys.readouterr()
    if status == 0:  # it never got to that many calls
        assert refusing.calls < at
        assert contents(output) == whole
        return
    assert (status, out) == (2, "")
    assert os.strerror(number) in err
    assert err.count("\n") == 1
    started = (output / "manifest.json").exists()
    assert (
        output.exists() == started
    )  # a start that failed leaves nothing, a block that failed what was before
    assert not started or not [path for path in output.iterdir() if path.name.endswith(".tmp")]
    assert main(command(folder, tokens, output, "--resume")) == 0
    assert contents(output) == whole


def test_a_file_size_limit(folder, tokens, tmp_path):
    """A real limit of the system: the write of a block fails half-way."""
    output = tmp_path / "out"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3500, 3500))

    done = subprocess.run(
        [sys.executable, "-m", "omniquant", *command(folder, tokens, output)],
        capture_output=True, text=True, preexec_fn=limit, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(output.glob(".*"))
    assert not list(output.glob("block_*"))


@pytest.mark.parametrize("place", ["file", "file/deeper", "bad\0name"])
def test_an_output_that_cannot_be(capsys, folder, tokens, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    err = error_of(capsys, command(folder, tokens, tmp_path / place))
    assert "cannot" in err or "null" in err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(capsys, folder, tokens, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    assert "Permission denied" in error_of(capsys, command(folder, tokens, tmp_path / "locked" / "out"))


def test_a_folder_that_vanishes(capsys, monkeypatch, folder, tokens, tmp_path):
    output = tmp_path / "out"
    real, calls = os.replace, []

    def vanish(source, target):
        calls.append(target)
        real(source, target)
        if len(calls) == 5:
            shutil.rmtree(output)

    monkeypatch.setattr(atomic.os, "replace", vanish)
    err = error_of(capsys, command(folder, tokens, output))
    assert "No such file or directory" in err


def test_shards_and_untied_heads_go_the_same_way(capsys, tokens, tmp_path):
    config = llama_config(vocab_size=64, tie_word_embeddings=False)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    (sharded / "config.json").write_text(json.dumps(config))
    (sharded / "model.safetensors").write_bytes(safetensors_bytes(llama_tensors(config, 1)))
    assert main(command(sharded, tokens, tmp_path / "out")) == 0
    assert main(["evaluate", str(tmp_path / "out"), "--data", str(tokens), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["perplexity"] > 1
