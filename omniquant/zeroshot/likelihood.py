"""How likely a continuation is behind a context, for many at once.

Fake-quantized and full-precision models run block by block over all texts, packed behind each other
(:func:`omniquant.forward.run_texts`); texts that several requests share run once. On the integer runtime
texts run one by one, and what a text begins with is kept for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from omniquant.errors import DataError, NotFiniteError
from omniquant.forward import F32, HIDDEN_BYTES, I32, ForwardModel, Head, activation_of, packs, run_texts
from omniquant.runtime.engine import Engine
from omniquant.runtime.prompt import TextModel, text_tokens

Progress = Callable[[int, int], None]  # done, of how many


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

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Score(NamedTuple):
    """Sum of a continuation's log-probabilities, and whether each token was the likeliest."""

    log_likelihood: float
    greedy: bool


class Span(NamedTuple):
    """What a request asks of a text: the targets behind its tokens from `start` on."""

    tokens: tuple[int, ...]
    start: int
    targets: tuple[int, ...]


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
    texts: dict[tuple[int, ...], list[int]] = {}  # of each distinct text: the spans on it
    for index, span in enumerate(spans):
        texts.setdefault(span.tokens, []).append(index)
    parts = list(_parts(list(texts), 4 * model.spec.hidden_size))
    head = Head(model)
    scores: list[Score | None] = [None] * len(spans)
    for number, part in enumerate(parts):
        advance = _advance(progress, number * model.num_layers, len(parts) * model.num_layers)
        hidden = _run(model, part, threads, advance)
        places, starts, at = [], [], 0
        for text in part:
            places += texts[text]
            starts += [at + spans[index].start for index in texts[text]]
            at += len(text)
        found = _score_rows(head, hidden, [spans[index] for index in places], starts, threads)
        for index, score in zip(places, found, strict=True):
            scores[index] = score
    return _finite(scores, model.name)


def _advance(progress: Progress | None, before: int, total: int) -> Callable[[int], None]:
    def advance(blocks: int) -> None:
        if progress is not None:
            progress(before + blocks, total)

    return advance


def _parts(texts: list[tuple[int, ...]], token_bytes: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield texts whose hidden states fit in memory together."""
    part: list[tuple[int, ...]] = []
    held = 0
    for text in texts:
        if part and held + len(text) * token_bytes > HIDDEN_BYTES:
            yield part
            part, held = [], 0
        part.append(text)
        held += len(text) * token_bytes
    if part:
        yield part


def _run(
    model: ScoringModel, texts: list[tuple[int, ...]], threads: int, advance: Callable[[int], None]
) -> F32:
    """Return the hidden states [tokens, H] of all texts behind the last block."""
    lengths = np.array([len(text) for text in texts], np.int32)
    positions = np.concatenate([np.arange(len(text)) for text in texts])
    x = model.embed(np.concatenate([np.array(text, np.int32) for text in texts]), positions)
    for index in range(model.num_layers):
        activation = activation_of(model, index)
        x = run_texts(model, index, model.block(index), x, lengths, activation=activation, threads=threads)
        advance(index + 1)
    return x


def _score_rows(head: Head, hidden: F32, spans: list[Span], starts: list[int], threads: int) -> list[Score]:
    """Score spans, given the row of hidden [tokens, H] that predicts their first target."""
    counts = [len(span.targets) for span in spans]
    scores = []
    for part in packs(counts):
        begin = zip(starts[part], counts[part], strict=True)
        rows = np.concatenate([np.arange(start, start + count) for start, count in begin])
        targets: I32 = np.concatenate([np.array(span.targets, np.int32) for span in spans[part]])
        nll, best = head.nll(hidden[rows], targets, threads)
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
    held: tuple[int, ...] = ()  # tokens in the cache: what the next text shares with them is not read again
    scores: list[Score | None] = []
    for index, span in enumerate(spans):
        shared = min(_shared(held, span.tokens), span.start)
        decoder.rewind(shared)
        if shared < span.start:
            decoder.fill(np.array(span.tokens[shared : span.start], np.int32))
        scores.append(_score_logits(decoder.logits(np.array(span.tokens[span.start :], np.int32)), span))
        held = span.tokens
        if progress is not None:
            progress(index + 1, len(spans))
    return _finite(scores, engine.name)


def _shared(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Return the length of the common beginning."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


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
