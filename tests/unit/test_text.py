"""What foreign files and libraries say, made fit for one line."""

from __future__ import annotations

import pytest

from omniquant.checkpoint.text import one_line, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\n  lines\t", "two lines"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\ud800 lone, \u2028 separator", "\\ud800 lone, separator"),
        ("", "ValueError"),
        ("x" * 10_000, "x" * 300 + "..."),
    ],
)
def test_errors_of_libraries_become_one_printable_line(text: str, expected: str) -> None:
    assert one_line(ValueError(text)) == expected


def test_system_errors_give_their_reason_alone() -> None:
    assert one_line(FileNotFoundError(2, "No such file", "/some/path")) == "No such file"


def test_values_of_files_are_shown_short_and_printable() -> None:
    for value in ("\x1b\n\ud800" * 1000, list(range(10**6)), {"a": {"b": ["c" * 10**6] * 9}}, 10**4000):
        assert shown(value).isprintable()
        assert len(shown(value)) < 600
