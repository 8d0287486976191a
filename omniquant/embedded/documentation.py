"""The documentation inside this Python, read from its modules: the raw documents of the corpus.

Packages that are imported change docstrings of the standard library (torch and IPython do), so
:mod:`omniquant.embedded.corpus` runs this file in a fresh, isolated interpreter. Hence it imports nothing
but the standard library, and as a program takes the modules' names as arguments and writes JSON.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from types import ModuleType


def _topics() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data import topics
    except ImportError:  # some distributions move or strip this data module
        return
    for name in sorted(topics.topics):
        yield f"topic:{name}", topics.topics[name]


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


def _of_module(module_name: str) -> list[tuple[str, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules and classes are documentation all the same
        try:
            module = importlib.import_module(module_name)
        except ImportError:  # optional parts (sqlite3, ssl, lzma) may be left out of a build
            return []
        result = [(f"module:{module_name}", f"{module_name}\n\n{_docstring(module)}")]
        for name, value in _own_members(module):
            qualified_name = f"{module_name}.{name}"
            result.append((f"object:{qualified_name}", _object_text(qualified_name, value)))
    return result


def collect(module_names: Iterable[str]) -> list[tuple[str, str]]:
    """Return (name, text) of every topic, module and object, in a fixed order; some repeat others."""
    documents = list(_topics())
    for name in module_names:
        documents += _of_module(name)
    return documents


if __name__ == "__main__":
    json.dump(collect(sys.argv[1:]), sys.stdout)
