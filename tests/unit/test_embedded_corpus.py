"""The embedded corpus: long enough, deterministic, and split without overlap."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from omniquant.embedded import calibration_text, corpus, documentation, evaluation_text, training_text
from omniquant.embedded.stdlib_modules import STDLIB_MODULES


@pytest.fixture
def fresh_cache() -> Iterator[None]:
    corpus.documents.cache_clear()
    yield
    corpus.documents.cache_clear()


def _paragraphs(text: str) -> set[str]:
    normalized = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return {paragraph for paragraph in normalized if len(paragraph) >= 60}


def test_texts_are_long_enough() -> None:
    # 128 calibration windows of 256 tokens at about 3 characters a token.
    assert len(training_text()) > 1_000_000
    assert len(calibration_text()) > 200_000
    assert len(evaluation_text()) > 80_000


def test_evaluation_shares_no_paragraph_with_training() -> None:
    held_out = _paragraphs(evaluation_text())
    assert held_out
    assert not held_out & _paragraphs(training_text())
    assert not held_out & _paragraphs(calibration_text())


def test_calibration_is_part_of_training() -> None:
    assert _paragraphs(calibration_text()) <= _paragraphs(training_text())


def test_document_names_are_unique() -> None:
    names = [document.name for document in corpus.documents()]
    assert len(names) == len(set(names))


def test_text_is_the_same_in_another_process() -> None:
    # Another hash seed: catches an order or a split that depends on it.
    program = (
        "import hashlib; from omniquant.embedded import evaluation_text;"
        "print(hashlib.sha256(evaluation_text().encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_no_memory_addresses_in_text() -> None:
    assert " object at 0x7f" not in training_text()


def test_text_does_not_depend_on_what_was_imported() -> None:
    """Packages rewrite docstrings of the standard library; two that do are imported where there are."""
    program = (
        "import json, logging, hashlib, contextlib, sys\n"
        "json.dumps.__doc__ = logging.__doc__ = 'changed ' * 100\n"
        "logging.Logger.extra = property(lambda self: 0, doc='An added property.')\n"
        "for name in ('torch', 'IPython'):\n"
        "    with contextlib.suppress(ImportError): __import__(name)\n"
        "from omniquant.embedded import evaluation_text, training_text\n"
        "print(hashlib.sha256((evaluation_text() + training_text()).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for flags in ([], ["-OO"]):
        command = [sys.executable, *flags, "-c", program]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        expected = hashlib.sha256((evaluation_text() + training_text()).encode()).hexdigest()
        assert answer.stdout.strip() == expected, flags


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize("executable", ["/nonexistent/python", "", None, os.devnull])
def test_without_an_interpreter_to_start_it_warns_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, executable: str | None
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.warns(RuntimeWarning, match="built in this process"):
        assert len(evaluation_text()) > 80_000


@pytest.mark.usefixtures("fresh_cache")
def test_works_without_pydoc_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    monkeypatch.setattr(corpus, "_all_documents", lambda: documentation.collect(STDLIB_MODULES))
    assert not any(document.name.startswith("topic:") for document in corpus.documents())
    assert len(evaluation_text()) > 50_000


@pytest.mark.usefixtures("fresh_cache")
def test_no_documentation_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_all_documents", lambda: [])
    with pytest.raises(RuntimeError, match="docstrings"):
        corpus.documents()
