"""Text for training, calibration and evaluation, built from the documentation inside every Python.

The sources are the topics of ``pydoc_data.topics`` (the language reference behind ``help()``) and the
docstrings of a fixed list of standard library modules. No text is stored in this package, so no licence
of a data set applies and no network is needed.

The texts differ a little between Python versions (documentation is edited, modules come and go) and
between platforms, so compare perplexities only within one installation. The embedded model was trained
on the texts of Python 3.11. The split depends on document names alone: a document never changes sides
from one version to the next. In a distribution without ``pydoc_data``, only the docstrings remain.

What a process has imported makes no difference: the texts are read in an interpreter of their own (half a
second, once a process). Where none can be started they are read here, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import warnings
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

from omniquant.embedded.documentation import collect
from omniquant.embedded.stdlib_modules import STDLIB_MODULES

_BUCKETS = 20
_EVALUATION_BUCKETS = frozenset({0, 1})
_TRAINING_BUCKETS = frozenset(range(_BUCKETS)) - _EVALUATION_BUCKETS
_CALIBRATION_BUCKETS = frozenset({2, 3, 4, 5})
# Shorter paragraphs ("See also:", "Example:") are idioms that may well occur in both parts.
_DUPLICATE_MIN_CHARACTERS = 60
SEPARATOR = "\n\n\n"


class Document(NamedTuple):
    """A named text; the name alone decides to which part of the corpus it belongs."""

    name: str
    text: str


def _collect_apart() -> list[tuple[str, str]]:
    """Collect in a fresh interpreter, without site-packages and whatever was imported here."""
    if not sys.executable:
        raise FileNotFoundError("this process knows of no Python to start")
    source = files("omniquant.embedded").joinpath("documentation.py").read_text(encoding="utf-8")
    command = [sys.executable, "-I", "-S", "-", *STDLIB_MODULES]
    answer = subprocess.run(command, input=source.encode(), capture_output=True, timeout=60, check=True)
    return [(name, text) for name, text in json.loads(answer.stdout)]


def _all_documents() -> list[tuple[str, str]]:
    try:
        return _collect_apart()
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # an application that embeds Python
        warnings.warn(
            "the embedded text is built in this process, whose packages may have changed docstrings; "
            f"perplexities may differ a little between processes ({type(error).__name__}: {error})",
            RuntimeWarning,
            stacklevel=3,
        )
        return collect(STDLIB_MODULES)


def _without_repeats(text: str, seen: set[str]) -> str:
    # Topics quote one another and subclasses repeat docstrings: without this, evaluation paragraphs
    # would be found word for word in the training part.
    kept = []
    for paragraph in text.split("\n\n"):
        key = " ".join(paragraph.split())
        if len(key) >= _DUPLICATE_MIN_CHARACTERS:
            if key in seen:
                continue
            seen.add(key)
        if key:
            kept.append(paragraph.rstrip())
    return "\n\n".join(kept)


@lru_cache(maxsize=1)
def documents() -> tuple[Document, ...]:
    """Return all documents of the corpus in a fixed order, free of repeated paragraphs.

    Returns
    -------
    tuple of Document
        Non-empty documents. A paragraph of at least 60 characters occurs in one document only.

    Raises
    ------
    RuntimeError
        If this Python has neither ``pydoc_data.topics`` nor docstrings.
    """
    seen: set[str] = set()
    result = []
    for name, text in _all_documents():
        unique = _without_repeats(text, seen).strip("\n")
        if "\n" in unique:  # a lone line is the heading of an object whose docstring was a repeat
            result.append(Document(name, unique))
    if not result:
        raise RuntimeError("this Python has neither pydoc_data.topics nor docstrings (-OO strips them)")
    return tuple(result)


def _bucket(name: str) -> int:
    # Not hash(): that is salted anew in every process.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % _BUCKETS


def _texts(buckets: frozenset[int]) -> list[str]:
    return [document.text for document in documents() if _bucket(document.name) in buckets]


def training_documents() -> list[str]:
    """Return the texts of the training documents one by one."""
    return _texts(_TRAINING_BUCKETS)


def training_text() -> str:
    """Return the text the embedded model is trained on (about 90% of the documents)."""
    return SEPARATOR.join(training_documents())


def calibration_text() -> str:
    """Return text to calibrate quantization with: a fifth of the documents.

    It is a subset of :func:`training_text`, so the model has seen it; it shares no document with
    :func:`evaluation_text`.
    """
    return SEPARATOR.join(_texts(_CALIBRATION_BUCKETS))


def evaluation_text() -> str:
    """Return text to measure perplexity on (about 10% of the documents).

    No document of it is part of :func:`training_text` or :func:`calibration_text`.
    """
    return SEPARATOR.join(_texts(_EVALUATION_BUCKETS))
