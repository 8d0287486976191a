"""Kill it anywhere, resume it, and the result has the same sha256 as one that was never killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from fork_server import killed_at_random
from small_run import contents, small_folder, small_tokens

from omniquant.state import RUN_NAME

KILLS = 200


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = small_folder(tmp_path_factory.mktemp("model") / "tiny", layers=3)
    tokens = tmp_path_factory.mktemp("data") / "windows.npy"
    np.save(tokens, small_tokens(6, 24))

    def arguments(output, epochs=20):
        return [
            "quantize", str(folder), "--scheme", "W4A4", "--method", "affinequant", "--data", str(tokens),
            "--epochs", str(epochs), "--seed", "2", "--threads", "1", "--quiet", "--resume",
            "--output", str(output),
        ]  # fmt: skip

    return arguments


def litter(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def resumes_to(server, command, output, expected):
    answer = server.run(command(output))
    assert answer["status"] == 0, answer["errors"]
    assert contents(output) == expected
    assert litter(output) == []


@pytest.mark.slow
def test_killed_at_random_moments(server, command, whole, tmp_path):
    expected, _, seconds = whole
    for output in killed_at_random(server, command, KILLS, seconds, tmp_path):
        resumes_to(server, command, output, expected)


@pytest.mark.slow
def test_killed_at_every_file_operation(server, command, whole, tmp_path):
    expected, operations, _ = whole
    assert operations > 30
    for moment in range(1, operations + 1):
        output = tmp_path / str(moment)
        assert server.run(command(output), kill_at=moment)["status"] == -signal.SIGKILL
        resumes_to(server, command, output, expected)


def test_killed_again_and_again(server, command, whole, tmp_path):
    expected, operations, _ = whole
    output = tmp_path / "out"
    for moment in (operations // 3, 7, 11, 3):
        server.run(command(output), kill_at=moment)
    resumes_to(server, command, output, expected)


def test_a_finished_block_is_never_written_again(server, command, whole, tmp_path):
    expected, operations, _ = whole
    output = tmp_path / "out"
    server.run(command(output), kill_at=operations - 6)
    done = {path: path.stat().st_mtime_ns for path in output.glob("block_*.safetensors")}
    assert len(done) >= 2
    resumes_to(server, command, output, expected)
    assert {path: path.stat().st_mtime_ns for path in done} == done


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def interrupt(arguments, output):
    """Start the command line, press Ctrl-C in the second block.

    Returns status, seconds, seconds from its start to the end of the first block, and stderr.
    """
    launched = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "omniquant", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that started the tests in the background may have them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: (output / RUN_NAME).exists() or process.poll() is not None)
    first = time.monotonic() - launched
    time.sleep(0.1)
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out == ""
    return process.returncode, time.monotonic() - pressed, first, err


def test_ctrl_c_ends_within_a_second_and_keeps_the_state(server, command, tmp_path):
    epochs = 1500  # seconds a block, so that a machine with other work does not miss the moment
    arguments = command(tmp_path / "whole", epochs=epochs)
    output = tmp_path / "out"
    status, seconds, first, err = interrupt(command(output, epochs=epochs), output)
    assert status == 130
    assert seconds <= max(1.0, first / 2)  # a second, or more where everything takes longer
    assert "Traceback" not in err
    assert "go on with --resume" in err
    assert 1 <= len(list(output.glob("block_*.safetensors"))) < 3
    assert litter(output) == []
    assert server.run(arguments)["status"] == 0
    resumes_to(server, lambda path: command(path, epochs=epochs), output, contents(tmp_path / "whole"))
