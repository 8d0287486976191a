"""Kill a tuning anywhere, resume it, and the result has the same sha256 as one that was never killed."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from fork_server import killed_at_random
from small_run import contents, small_folder, small_tokens

from omniquant.cli import main

KILLS = 30


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    place = tmp_path_factory.mktemp("given")
    folder, tokens, result = small_folder(place / "tiny", layers=2), place / "windows.npy", place / "rtn"
    np.save(tokens, small_tokens(12, 16))
    asked = ["--data", str(tokens), "--threads", "1", "--quiet"]
    rounded = ["--scheme", "W3A16g8", "--method", "rtn", "--output", str(result)]
    assert main(["quantize", str(folder), *rounded, *asked]) == 0

    def arguments(output):
        wish = ["--model", str(folder), "--epochs", "2", "--resume", "--output", str(output)]
        return ["tune", str(result), *wish, *asked]

    return arguments


def resumes_to(server, command, output, expected):
    assert server.run(command(output))["status"] == 0
    assert contents(output) == expected
    assert [path.name for path in output.parent.iterdir()] == [output.name]  # nothing left beside it


def test_killed_at_every_file_operation(server, command, whole, tmp_path):
    expected, operations, _ = whole
    assert operations > 15
    for moment in range(1, operations + 1):
        output = tmp_path / str(moment) / "out"
        output.parent.mkdir()
        assert server.run(command(output), kill_at=moment)["status"] == -signal.SIGKILL
        resumes_to(server, command, output, expected)


@pytest.mark.slow
def test_killed_at_random_moments(server, command, whole, tmp_path):
    expected, _, seconds = whole
    for output in killed_at_random(server, command, KILLS, seconds, tmp_path):
        resumes_to(server, command, output, expected)
