"""Text for training, calibration and evaluation, built from the documentation inside every Python.

The sources are the topics of ``pydoc_data.topics`` (the language reference behind ``help()``) and the
docstrings of a fixed list of standard library modules. No text is stored in this package, so no licence
of a data set applies and no network is needed.

The texts differ a little between Python versions (documentation is edited, modules come and go) and
between platforms, so compare perplexities only within one installation. The embedded model was trained
on the texts of Python 3.11. The split depends on document names alone: a document never changes sides
from one version to the next. Under ``python -OO``, which drops docstrings, only the topics remain; in a
distribution without ``pydoc_data``, only the docstrings do.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import warnings
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

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


def _topic_documents() -> Iterator[Document]:
    try:
        from pydoc_data import topics
    except ImportError:  # some distributions move or strip this data module
        return
    for name in sorted(topics.topics):
        yield Document(f"topic:{name}", topics.topics[name])


def _docstring(value: object) -> str:
    # staticmethod, classmethod and property copy the docstring of what they wrap.
    text = getattr(value, "__doc__", None)
    return inspect.cleandoc(text) if isinstance(text, str) else ""


def _is_documented_kind(value: object) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value) or inspect.isdatadescriptor(value)


def _own_members(module: ModuleType) -> list[tuple[str, object]]:
    # A module's own objects only; what it merely imported belongs to the module that defines it.
    exported = set(getattr(module, "__all__", ()))
    owners = {module.__name__, f"_{module.__name__}"}
    members: list[tuple[str, object]] = []
    for name, value in sorted(vars(module).items()):
        own = name in exported or getattr(value, "__module__", None) in owners
        if own and not name.startswith("__") and (inspect.isclass(value) or inspect.isroutine(value)):
            members.append((name, value))
    return members


def _object_text(qualified_name: str, value: object) -> str:
    # vars() rather than getattr(): reading an attribute may run code of a descriptor.
    parts = [f"{qualified_name}\n\n{_docstring(value)}"] if _docstring(value) else []
    if inspect.isclass(value):
        for name, member in sorted(vars(value).items()):
            text = _docstring(member) if _is_documented_kind(member) else ""
            if text:
                parts.append(f"{qualified_name}.{name}\n\n{text}")
    return "\n\n".join(parts)


def _module_documents(module_name: str) -> list[Document]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules and classes are documentation all the same
        try:
            module = importlib.import_module(module_name)
        except ImportError:  # optional parts (sqlite3, ssl, lzma) may be left out of a build
            return []
        result = [Document(f"module:{module_name}", f"{module_name}\n\n{_docstring(module)}")]
        for name, value in _own_members(module):
            qualified_name = f"{module_name}.{name}"
            result.append(Document(f"object:{qualified_name}", _object_text(qualified_name, value)))
    return result


def _all_documents() -> Iterator[Document]:
    yield from _topic_documents()
    for module_name in STDLIB_MODULES:
        yield from _module_documents(module_name)


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
