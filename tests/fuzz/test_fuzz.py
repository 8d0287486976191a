"""A few seconds of the fuzzing that `python tests/fuzz/fuzz_readers.py` does for hours."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="limits of POSIX")

from fuzz_readers import fuzz, problem
from fuzz_targets import Target, all_targets

EXECUTIONS, SECONDS = 1500, 8.0


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    return all_targets(tmp_path_factory.mktemp("fuzz"))


def test_valid_inputs_are_taken(targets: list[Target]) -> None:
    assert len(targets) >= 7
    for target in targets:
        assert problem(target, target.valid) == ("", True), target.name


@pytest.mark.filterwarnings("ignore")
def test_changed_files_are_read_or_refused_in_one_line(targets: list[Target], tmp_path: Path) -> None:
    counts = fuzz(targets, 1, range(EXECUTIONS), SECONDS, tmp_path)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in tmp_path.rglob("what.txt")]
    assert not texts, "\n\n".join(texts)
    assert counts["executions"] > 100
    # A mutation that breaks everything, or nothing, would test little.
    assert 0.02 < counts["taken"] / counts["executions"] < 0.9


def test_a_reader_that_does_wrong_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")

    def raising(what: BaseException) -> Callable[[Path], None]:
        def read(_: Path) -> None:
            raise what

        return read

    for what in (KeyError("x"), MemoryError(), RecursionError()):
        target = Target("t", path, path, (lambda rng, content: content,), raising(what))
        assert type(what).__name__ in problem(target, b"")[0]
        assert fuzz([target], 0, range(3), 5, tmp_path / "findings")["findings"] == 3


def test_executions_repeat_themselves(targets: list[Target]) -> None:
    for number, target in enumerate(targets):
        first, again = (target.mutate(random.Random(f"4:{number}")) for _ in range(2))
        assert first == again
