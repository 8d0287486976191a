"""What objects say of themselves: one line, in whatever state they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def one_line_repr(about: Callable[[T], str]) -> Callable[[T], str]:
    """Make a method that tells what an object is a ``__repr__``: ``Type(what it told)``, and it never raises.

    Debuggers and tracebacks show objects that are half made, or whose files are gone: of these it says the
    type, and what kind of error kept it from telling more.
    """

    def __repr__(self: T) -> str:  # noqa: N807 (a method once the class has it)
        try:
            what = about(self)
        except Exception as error:
            what = f"not to be told: {type(error).__name__}"
        return f"{type(self).__name__}({what})"

    return __repr__
