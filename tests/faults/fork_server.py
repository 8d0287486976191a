"""Runs the command line in children of a warm process, so that hundreds of kills take a minute, not an hour.

The server is a process of its own, started once: it imports everything, never uses a second thread, and forks
a child for each request, a line of JSON on standard input:

    {"arguments": [...], "kill_at": 7, "delay": 0.12}

The child runs ``omniquant.cli.main(arguments)``. With `kill_at` it kills itself with SIGKILL at its 7th file
operation (the writing, syncing or renaming of a durable file); with `delay` the server kills it after 0.12
seconds. The answer, a line of JSON, holds the child's status (negative: the signal), its number of file
operations if it lived, its seconds and what it wrote to standard error.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


class ForkServer:
    """The other end: starts the server and asks it to run things."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, arguments: list[str], **request: Any) -> dict[str, Any]:
        """Run a command in a child and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"arguments": arguments} | request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def killed_at_random(
    server: ForkServer, command: Callable[[Path], list[str]], kills: int, seconds: float, folder: Path
) -> Iterator[Path]:
    """Yield outputs of a command that was killed at random moments, each in a folder of its own."""
    moments = random.Random(20240607)
    killed = attempt = 0
    while killed < kills:
        attempt += 1
        assert attempt < 4 * kills
        output = folder / str(attempt) / "out"
        output.parent.mkdir()
        hit = server.run(command(output), delay=moments.uniform(0.0, seconds))["status"] == -signal.SIGKILL
        killed += hit
        # The longest delay follows the length of a run, which follows what else the machine is doing.
        seconds *= 1.02 if hit else 0.9
        yield output
        shutil.rmtree(output.parent)


class Counter:
    """Counts file operations and dies at one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.count = 0
        self.kill_at = kill_at

    def __call__(self) -> None:
        """Count one operation."""
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, counted before it runs."""

        def counted(*positional: Any, **keywords: Any) -> Any:
            self()
            return function(*positional, **keywords)

        return counted


def _child(arguments: list[str], kill_at: int | None, answer: int) -> None:
    from omniquant.checkpoint import atomic
    from omniquant.cli import main

    counter = Counter(kill_at)
    os.fsync, os.replace = counter.before(os.fsync), counter.before(os.replace)
    # Twice around the writing itself: with an empty temporary file, and with a whole one not yet synced.
    atomic._write_and_sync = counter.before(atomic._write_and_sync)
    status = 1
    try:
        status = main(arguments)
    finally:
        os.write(answer, str(counter.count).encode())
        os._exit(status)


def _serve_one(request: dict[str, Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as errors:
        return _run_child(request, reader, writer, errors)


def _run_child(request: dict[str, Any], reader: int, writer: int, errors: IO[bytes]) -> dict[str, Any]:
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        _child(request["arguments"], request.get("kill_at"), writer)
    os.close(writer)
    if "delay" in request:
        time.sleep(request["delay"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    operations = os.read(reader, 64)
    os.close(reader)
    seconds = time.monotonic() - started
    return {
        "status": os.waitstatus_to_exitcode(status),
        "operations": int(operations or 0),
        "seconds": seconds,
    }


def serve() -> None:
    """Answer requests until standard input ends."""
    import omniquant.calibration
    import omniquant.cli
    import omniquant.data

    del omniquant
    for line in sys.stdin:
        print(json.dumps(_serve_one(json.loads(line))), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    serve()
