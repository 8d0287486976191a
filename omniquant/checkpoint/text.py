"""Values and errors of foreign files, made fit for a one-line message."""

from __future__ import annotations

import reprlib

_MAX_ERROR_CHARACTERS, _MAX_VALUE_CHARACTERS = 300, 150
_REPR = reprlib.Repr()
_REPR.maxstring = 60
_REPR.maxother = 60


def shown(value: object) -> str:
    """Return a short, printable, one-line form of a value that came out of a file.

    Parameters
    ----------
    value
        Anything JSON or GGUF metadata can hold, however long.
    """
    text = _REPR.repr(value)
    return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[:_MAX_VALUE_CHARACTERS]}..."


def one_line(error: BaseException) -> str:
    """Return an exception's text on one line, bounded, printable whatever bytes it quotes."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(reason.split()) or type(error).__name__
    # Libraries quote the bytes they choke on: control characters could drive a terminal.
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: 2 * _MAX_ERROR_CHARACTERS])
    return printable if len(printable) <= _MAX_ERROR_CHARACTERS else printable[:_MAX_ERROR_CHARACTERS] + "..."
