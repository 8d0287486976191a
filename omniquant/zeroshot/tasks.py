"""The tasks: how a row of data becomes contexts and continuations, as lm-eval words them.

Rows come in either of two layouts: "query", "choices" and "gold" (winogrande: "context_options",
"continuation" and "gold"), or the fields of the data set itself, as the datasets library has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.text import shown
from omniquant.errors import CheckpointError

_DELIMITER = " "  # between a context and its continuation


@dataclass(frozen=True)
class Question:
    """One question: choice i is continuation i behind context i.

    Parameters
    ----------
    contexts, continuations : tuple of str
    lengths : tuple of int
        Characters of each choice, by which acc_norm divides.
    gold : int
        The right choice.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    lengths: tuple[int, ...]
    gold: int


@dataclass(frozen=True)
class Task:
    """A task by its name in lm-eval.

    Parameters
    ----------
    name : str
    normalized : bool
        lm-eval also reports acc_norm.
    source : (str, str or None, str)
        Path, configuration and split in the datasets library.
    stored : callable
        Makes a question of a row with the fields of this module.
    original : callable
        Makes one of a row with the fields of the data set.
    marks : str
        The field that tells the first layout.
    """

    name: str
    normalized: bool
    source: tuple[str, str | None, str]
    stored: Callable[[Fields], Question]
    original: Callable[[Fields], Question]
    marks: str = "query"

    def question(self, row: Fields) -> Question:
        """Return the question of a row; CheckpointError names a field that is missing or wrong."""
        question = self.stored(row) if row.has(self.marks) else self.original(row)
        last = len(question.continuations) - 1
        if question.gold > last:
            raise CheckpointError(f"{row.where}: the right choice is {question.gold}, expected 0 to {last}")
        return question


def _texts(row: Fields, field: str) -> list[str]:
    value = row.values.get(field)
    texts = [entry for entry in value if isinstance(entry, str) and entry] if isinstance(value, list) else []
    if len(texts) < 2 or texts != value:
        raise row.fail(field, "at least two texts")
    return texts


def _same_context(context: str, choices: list[str], gold: int) -> Question:
    return Question(
        contexts=(context,) * len(choices),
        continuations=tuple(_DELIMITER + choice for choice in choices),
        lengths=tuple(map(len, choices)),
        gold=gold,
    )


def _answer(query: str) -> str:
    """Return a query that ends as lm-eval's do: "Question: ...", a line break, "Answer:"."""
    if query.endswith("Answer:"):
        return query
    return query + ("" if query.endswith("\n") else "\n") + "Answer:"


def _stored(row: Fields) -> Question:
    gold = row.integer("gold", minimum=0)
    return _same_context(_answer(row.text("query")), _texts(row, "choices"), gold)


def _stored_boolq(row: Fields) -> Question:
    # lm-eval's passages stand without a heading.
    query = row.text("query").removeprefix("Passage: ")
    return _same_context(_answer(query), _texts(row, "choices"), row.integer("gold", minimum=0))


def _stored_winogrande(row: Fields) -> Question:
    options = _texts(row, "context_options")
    return _partial(options, row.text("continuation"), row.integer("gold", minimum=0))


def _partial(contexts: list[str], continuation: str, gold: int) -> Question:
    """Return a partial evaluation (Trinh & Le, 2018): the same ending behind each way to begin."""
    return Question(
        contexts=tuple(contexts),
        continuations=(_DELIMITER + continuation,) * len(contexts),
        lengths=(len(continuation),) * len(contexts),
        gold=gold,
    )


def _piqa(row: Fields) -> Question:
    choices = [row.text("sol1"), row.text("sol2")]
    return _same_context(f"Question: {row.text('goal')}\nAnswer:", choices, row.integer("label", minimum=0))


def _arc(row: Fields) -> Question:
    choices = row.values.get("choices")
    if not isinstance(choices, dict):
        raise row.fail("choices", '"text" and "label"')
    inner = Fields(choices, f"{row.where}: choices")
    labels = _texts(inner, "label")
    key = row.text("answerKey")
    if key not in labels:
        raise row.fail("answerKey", f"one of {shown(labels)}")
    context = f"Question: {row.text('question')}\nAnswer:"
    return _same_context(context, _texts(inner, "text"), labels.index(key))


def _boolq(row: Fields) -> Question:
    context = f"{row.text('passage')}\nQuestion: {row.text('question')}?\nAnswer:"
    return _same_context(context, ["no", "yes"], row.integer("label", minimum=0))


def _winogrande(row: Fields) -> Question:
    sentence, answer = row.text("sentence"), row.text("answer")
    before, gap, after = sentence.partition("_")
    if not gap:
        raise row.fail("sentence", "a text with a gap _")
    if answer not in ("1", "2"):
        raise row.fail("answer", '"1" or "2"')
    options = [before + row.text("option1"), before + row.text("option2")]
    return _partial(options, after.strip(), int(answer) - 1)


TASKS = {
    task.name: task
    for task in (
        Task("piqa", True, ("baber/piqa", None, "validation"), _stored, _piqa),
        Task("arc_easy", True, ("allenai/ai2_arc", "ARC-Easy", "test"), _stored, _arc),
        Task("arc_challenge", True, ("allenai/ai2_arc", "ARC-Challenge", "test"), _stored, _arc),
        Task("boolq", False, ("aps/super_glue", "boolq", "validation"), _stored_boolq, _boolq),
        Task(
            "winogrande",
            False,
            ("allenai/winogrande", "winogrande_xl", "validation"),
            _stored_winogrande,
            _winogrande,
            "context_options",
        ),
    )
}
