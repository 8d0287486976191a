"""How likely a continuation is behind a context, for many at once.

Fake-quantized and full-precision models run block by block over all texts, packed behind each other
(:func:`omniquant.forward.run_texts`); what several texts begin with runs once. On the integer runtime
texts run one by one, and what a text begins with is kept for the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from omniquant.errors import DataError, NotFiniteError
from omniquant.forward import (
    F32,
    HIDDEN_BYTES,
    I32,
    ForwardModel,
    Head,
    Progress,
    Steps,
    activation_of,
    packs,
    run_texts,
)
from omniquant.runtime.engine import Engine
from omniquant.runtime.prompt import TextModel, text_tokens
from omniquant.zeroshot.beginnings import Text, Tokens, common_length, share_beginnings


class ScoringModel(ForwardModel, TextModel, Protocol):
    """A model that reads text and can be run block by block."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""


@dataclass(frozen=True)
class Request:
    """Tokens of a context and of the continuation asked for; neither is empty."""

    context: Tokens
    continuation: Tokens


class Score(NamedTuple):
    """Sum of a continuation's log-probabilities, and whether each token was the likeliest."""

    log_likelihood: float
    greedy: bool


class Span(NamedTuple):
    """What a request asks of a text: the targets behind its tokens from `start` on."""

    tokens: Tokens
    start: int
    targets: Tokens


def encode_pair(model: TextModel, context: str, continuation: str) -> Request:
    """Tokenize context and continuation together, as lm-eval does.

    Spaces that end the context go to the continuation. The continuation is what the whole has beyond the
    tokens of the context alone.

    Raises
    ------
    DataError
        If that leaves one of them without tokens.
    """
    kept = context.rstrip()
    whole = text_tokens(model, context + continuation)
    before = len(text_tokens(model, kept))
    if not 0 < before < len(whole):
        raise DataError(
            f"{continuation!r} behind {context[-60:]!r}: {before} of {len(whole)} tokens are context"
        )
    return Request(tuple(whole[:before]), tuple(whole[before:]))


def span_of(request: Request, max_positions: int) -> Span:
    """Return what to run: of a text longer than the model takes its end, as lm-eval does."""
    whole = (request.context + request.continuation)[-(max_positions + 1) :]
    if len(request.continuation) >= len(whole):
        many = len(request.continuation)
        raise DataError(f"a continuation of {many} tokens: the model takes {max_positions}")
    return Span(whole[:-1], len(whole) - 1 - len(request.continuation), request.continuation)


def log_likelihoods(
    model: ScoringModel, requests: Sequence[Request], *, threads: int = 1, progress: Progress | None = None
) -> list[Score]:
    """Score requests block by block, in float32, activations rounded where the model quantizes them.

    Parameters
    ----------
    model : Model or QuantizedModel
    requests : sequence of Request
    threads : int
    progress : callable, optional
        Called with (blocks done, blocks).

    Returns
    -------
    list of Score
        In the order of the requests.

    Raises
    ------
    DataError
        If a continuation is longer than the model takes.
    NotFiniteError
        If the model computes NaN or infinity.
    """
    spans = [span_of(request, model.max_positions) for request in requests]
    on_text: dict[Tokens, list[int]] = {}  # of each distinct text: the spans on it
    for index, span in enumerate(spans):
        on_text.setdefault(span.tokens, []).append(index)
    parts = list(_parts(share_beginnings(on_text), 4 * model.spec.hidden_size))
    head = Head(model)
    scores: list[Score | None] = [None] * len(spans)
    steps = Steps(progress, len(parts) * model.num_layers)
    for part in parts:
        hidden = _run(model, part, threads, steps)
        asked, rows = [], []
        for text, of_text in zip(part, _text_rows(part), strict=True):
            for index in on_text[text.tokens]:
                first = spans[index].start
                asked.append(index)
                rows.append(of_text[first : first + len(spans[index].targets)])
        found = _score_rows(head, hidden, [spans[index] for index in asked], rows, threads)
        for index, score in zip(asked, found, strict=True):
            scores[index] = score
    return _finite(scores, model.name)


def _parts(texts: list[Text], token_bytes: int) -> Iterator[list[Text]]:
    """Yield texts whose hidden states fit in memory together; a part begins with a root."""
    part: list[Text] = []
    held = 0
    for text in texts:
        if part and not text.shared and held * token_bytes > HIDDEN_BYTES:
            yield part
            part, held = [], 0
        part.append(text)
        held += len(text.own)
    if part:
        yield part


def _run(model: ScoringModel, texts: list[Text], threads: int, steps: Steps) -> F32:
    """Return the hidden states [tokens, H] of all texts' own tokens behind the last block."""
    lengths = np.array([len(text.own) for text in texts], np.int32)
    shared = np.array([text.shared for text in texts], np.int32)
    positions = np.concatenate([np.arange(text.shared, len(text.tokens)) for text in texts])
    x = model.embed(np.concatenate([np.array(text.own, np.int32) for text in texts]), positions)
    for index in range(model.num_layers):
        weights, activation = model.block(index), activation_of(model, index)
        x = run_texts(model, index, weights, x, lengths, shared, activation=activation, threads=threads)
        steps()
    return x


def _text_rows(texts: list[Text]) -> Iterator[npt.NDArray[np.intp]]:
    """Yield, of each text, the rows of the hidden states its tokens have, those of its root's among them."""
    root = at = 0
    for text in texts:
        root = root if text.shared else at
        own = np.arange(at, at + len(text.own))
        yield np.concatenate([np.arange(root, root + text.shared), own])
        at += len(own)


def _score_rows(
    head: Head, hidden: F32, spans: list[Span], rows: list[npt.NDArray[np.intp]], threads: int
) -> list[Score]:
    """Score spans, given the rows of hidden [tokens, H] that predict their targets."""
    counts = [len(span.targets) for span in spans]
    scores = []
    for part in packs(counts):
        targets: I32 = np.concatenate([np.array(span.targets, np.int32) for span in spans[part]])
        nll, best = head.nll(hidden[np.concatenate(rows[part])], targets, threads)
        ends = np.cumsum(counts[part])[:-1]
        for nats, same in zip(np.split(nll, ends), np.split(best == targets, ends), strict=True):
            scores.append(Score(-float(nats.sum()), bool(same.all())))
    return scores


def log_likelihoods_on_integers(
    engine: Engine,
    requests: Sequence[Request],
    max_positions: int,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Score]:
    """Score requests as :func:`log_likelihoods` does, on packed integers; `progress` counts requests."""
    spans = [span_of(request, max_positions) for request in requests]
    decoder = engine.decoder(max((len(span.tokens) for span in spans), default=1), threads)
    held: Tokens = ()  # tokens in the cache: what the next text shares with them is not read again
    scores: list[Score | None] = []
    steps = Steps(progress, len(spans))
    for span in spans:
        shared = min(common_length(held, span.tokens), span.start)
        decoder.rewind(shared)
        if shared < span.start:
            decoder.fill(np.array(span.tokens[shared : span.start], np.int32))
        scores.append(_score_logits(decoder.logits(np.array(span.tokens[span.start :], np.int32)), span))
        held = span.tokens
        steps()
    return _finite(scores, engine.name)


def _score_logits(logits: F32, span: Span) -> Score:
    """Score logits [n, V] against the n targets."""
    rows: npt.NDArray[np.float64] = logits.astype(np.float64)
    targets = np.array(span.targets)
    top = rows.max(axis=1)
    log_sum = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
    found = rows[np.arange(len(targets)), targets] - log_sum
    return Score(float(found.sum()), bool((rows.argmax(axis=1) == targets).all()))


def _finite(scores: Sequence[Score | None], name: str) -> list[Score]:
    found = [score for score in scores if score is not None]
    for index, score in enumerate(found):
        if not np.isfinite(score.log_likelihood):
            raise NotFiniteError(f"{name}: the log-likelihood of text {index} is {score.log_likelihood}")
    return found
