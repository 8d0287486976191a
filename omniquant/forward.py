"""A model block by block: what calibration and evaluation both do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from omniquant import _core
from omniquant.config import QuantConfig
from omniquant.errors import DataError
from omniquant.models.ends import Ends
from omniquant.models.spec import BlockSpec

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Weights = dict[str, F32]
Activation = dict[str, int | bool]
Progress = Callable[[int, int], None]  # done, of how many

# Small enough for Ctrl-C to be answered within a second, large enough to keep the threads busy.
TOKENS_AT_ONCE = 2048
# Hidden states held at a time; more than fit go through the model in several passes.
HIDDEN_BYTES = 1 << 30


class ForwardModel(Protocol):
    """What a full-precision and a quantized model have in common."""

    @property
    def spec(self) -> BlockSpec:
        """Sizes and kinds of a block."""

    @property
    def num_layers(self) -> int:
        """Number of blocks."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    def name(self) -> str:
        """For people."""

    def embed(
        self, tokens: npt.NDArray[np.integer], positions: npt.NDArray[np.integer] | None = None, /
    ) -> F32:
        """Return what the first block reads [.., T, H] of tokens [.., T] at positions [T]; None: from 0."""

    def block(self, index: int) -> Weights:
        """Return the weights of a block."""

    def spec_of(self, layer: int) -> BlockSpec:
        """Return the spec of one block."""

    def ends(self) -> Ends:
        """Return what stands before the first block and behind the last one."""

    def lm_head(self) -> F32:
        """Return the output embedding [V, H]."""

    def rope_tables(self, length: int, layer: int, /) -> tuple[F32, F32]:
        """Return cos and sin [length, r/2] of one block."""


class Steps:
    """Counts what has been run, called once a step, and tells it."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self) -> None:
        """Count one more."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def activation_of(model: ForwardModel, index: int) -> Activation | None:
    """Return the quantizers of a block's activations; None of a model in full precision."""
    scheme: QuantConfig | None = getattr(model, "scheme", None)
    return None if scheme is None else scheme.activation(index)


def as_windows(tokens: npt.ArrayLike, vocab_size: int, seqlen: int | None = None) -> I32:
    """Check token ids and cut a stream into windows that do not overlap.

    Parameters
    ----------
    tokens : array_like of int
        1-D: a stream, cut into windows of `seqlen` (the rest is left out); 2-D [N, T]: windows as they are.
    vocab_size : int
    seqlen : int, optional
        Needed for a stream; for windows it must be T or None.

    Returns
    -------
    ndarray of int32 [N, T]

    Raises
    ------
    DataError
        If there is not one whole window of at least two tokens, or an id is outside the vocabulary.
    """
    array = np.asarray(tokens)
    if not np.issubdtype(array.dtype, np.integer) or array.ndim not in (1, 2):
        raise DataError(f"tokens must be whole numbers [n] or [N, T], got {array.dtype} {list(array.shape)}")
    if array.ndim == 1:
        array = _cut(array, seqlen)
    elif seqlen is not None and seqlen != array.shape[1]:
        raise DataError(f"windows of {array.shape[1]} tokens were given, but seqlen is {seqlen}")
    if array.shape[0] < 1 or array.shape[1] < 2:
        raise DataError(f"{array.shape[0]} windows of {array.shape[1]} tokens: at least one of two is needed")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise DataError(f"token id {bad} is outside the vocabulary of {vocab_size}")
    return np.ascontiguousarray(array, dtype=np.int32)


def _cut(stream: npt.NDArray[np.integer], seqlen: int | None) -> npt.NDArray[np.integer]:
    if seqlen is None or seqlen < 2:
        raise DataError(f"a stream of tokens needs seqlen, at least 2, got {seqlen}")
    windows = len(stream) // seqlen
    if windows == 0:
        raise DataError(f"{len(stream)} tokens are fewer than one window of {seqlen}")
    return stream[: windows * seqlen].reshape(windows, seqlen)


def chunks(windows: int, length: int) -> Iterator[slice]:
    """Yield slices of windows that make about 2,048 tokens each; they depend on the shape alone."""
    step = max(1, TOKENS_AT_ONCE // max(1, length))
    for start in range(0, windows, step):
        yield slice(start, min(windows, start + step))


class Positioned(Protocol):
    """What has positions, rotary or others."""

    def spec_of(self, layer: int) -> BlockSpec:
        """Return the spec of one block."""

    def rope_tables(self, length: int, layer: int, /) -> tuple[F32, F32]:
        """Return cos and sin [length, r/2] of one block."""


def rope_or_empty(model: Positioned, length: int, layer: int) -> tuple[F32, F32]:
    """Return the rope tables of a block, or empty ones where it has no rotary positions."""
    if model.spec_of(layer).rope:
        return model.rope_tables(length, layer)
    return np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)


def block_parts(
    model: ForwardModel,
    layer: int,
    weights: Weights,
    x: F32,
    *,
    activation: Activation | None = None,
    in_parts: bool = False,
    bfloat16: bool = False,
    codes: Mapping[str, npt.NDArray[Any]] | None = None,
    threads: int = 1,
) -> Iterator[tuple[slice, F32]]:
    """Yield what a block makes of hidden states [N, T, H], a few windows at a time: :func:`run_block`.

    in_parts: products of floats may be those of bfloat16 parts, 2^-16 from exact, where that is faster;
    bfloat16: operands are rounded to it, as training does; codes: of linears with one grid a row, for exact
    products of integers where activations are rounded to bytes too.
    """
    spec = model.spec_of(layer).to_core()
    cos, sin = rope_or_empty(model, x.shape[1], layer)
    options: dict[str, Any] = {
        "activation": activation,
        "in_parts": in_parts,
        "bfloat16": bfloat16,
        "codes": codes,
        "threads": threads,
    }
    for part in chunks(x.shape[0], x.shape[1]):
        yield part, _core.block_forward(spec, weights, x[part], cos, sin, **options)


def run_block(
    model: ForwardModel,
    layer: int,
    weights: Weights,
    x: F32,
    *,
    activation: Activation | None = None,
    threads: int = 1,
) -> F32:
    """Run hidden states [N, T, H] through one block, a few windows at a time.

    Parameters
    ----------
    model : ForwardModel
        For the spec and the rope tables.
    layer : int
        Which block it is.
    weights : dict of str to ndarray
        Of the block, in floating point.
    x : ndarray of float32 [N, T, H]
    activation : dict, optional
        Quantizers of activations, Q, K and V; None: all in float.
    threads : int

    Returns
    -------
    ndarray of float32 [N, T, H]
    """
    out = np.empty_like(x)
    for part, y in block_parts(model, layer, weights, x, activation=activation, threads=threads):
        out[part] = y
    return out


def passes(model: ForwardModel, windows: I32) -> list[I32]:
    """Return windows [N, T] in parts [n, T] whose hidden states fit in memory together."""
    together = max(1, HIDDEN_BYTES // (4 * int(windows.shape[1]) * model.spec.hidden_size))
    return [windows[start : start + together] for start in range(0, len(windows), together)]


def run_blocks(model: ForwardModel, windows: I32, *, threads: int = 1, steps: Steps | None = None) -> F32:
    """Return the hidden states [N, T, H] behind the last block of windows [N, T].

    Activations are rounded where the model rounds them; a block is one of `steps`.
    """
    x = model.embed(windows)
    for index in range(model.num_layers):
        activation = activation_of(model, index)
        x = run_block(model, index, model.block(index), x, activation=activation, threads=threads)
        if steps is not None:
            steps()
    return x


def packs(lengths: Sequence[int], shared: Sequence[int] | None = None) -> Iterator[slice]:
    """Yield slices of consecutive texts of about 2,048 tokens together.

    One text is never cut, nor are texts parted from the one they share their beginning with.
    """
    begins = [i for i in range(len(lengths)) if shared is None or not shared[i]]
    start = tokens = 0
    for begin, end in pairwise([*begins, len(lengths)]):
        length = sum(lengths[begin:end])
        if begin > start and tokens + length > TOKENS_AT_ONCE:
            yield slice(start, begin)
            start, tokens = begin, 0
        tokens += length
    if lengths:
        yield slice(start, len(lengths))


def run_texts(
    model: ForwardModel,
    layer: int,
    weights: Weights,
    x: F32,
    lengths: I32,
    shared: I32 | None = None,
    *,
    activation: Activation | None = None,
    threads: int = 1,
) -> F32:
    """Run texts of different lengths through one block: packed, so that short ones share their products.

    Parameters
    ----------
    model, layer, weights, activation, threads
        As in :func:`run_block`.
    x : ndarray of float32 [tokens, H]
        The hidden states of all texts, one text behind the other.
    lengths : ndarray of int32 [texts]
        Their tokens in `x`.
    shared : ndarray of int32 [texts], optional
        How many tokens of the last text that shares none (0) stand before a text's own. None: none.

    Returns
    -------
    ndarray of float32 [tokens, H]
    """
    spec = model.spec_of(layer)
    before = np.zeros_like(lengths) if shared is None else shared
    cos, sin = rope_or_empty(model, int((before + lengths).max()), layer)
    out = np.empty_like(x)
    end = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    for part in packs(lengths.tolist(), before.tolist()):
        here = slice(end[part.start], end[part.stop])
        spans = zip(before[part], before[part] + lengths[part], strict=True)
        positions = np.concatenate([np.arange(*span) for span in spans])
        tables = (cos[positions], sin[positions]) if spec.rope else (cos, sin)
        out[here] = _core.block_forward(
            spec.to_core(),
            weights,
            x[None, here],
            *tables,
            activation=activation,
            lengths=lengths[part],
            shared=before[part],
            threads=threads,
        )[0]
    return out


class Head:
    """Where a model ends: its last norm and its output matrix, read once.

    Parameters
    ----------
    model : ForwardModel
    like : Head, optional
        Whose matrix stands for both where they are equal.
    """

    def __init__(self, model: ForwardModel, like: Head | None = None) -> None:
        self._spec, self._ends, self._matrix = model.spec, model.ends(), model.lm_head()
        if like is not None and np.array_equal(self._matrix, like._matrix):
            self._matrix = like._matrix

    def nll(self, hidden: F32, targets: I32, threads: int) -> tuple[npt.NDArray[np.float64], I32]:
        """Return the nats of targets [M] after hidden states [M, H], and the likeliest tokens [M]."""
        norm = self._ends.final_norm
        return _core.token_nll(
            hidden,
            self._spec.norm,
            self._spec.norm_eps,
            norm["weight"],
            norm.get("bias"),
            self._matrix,
            targets,
            lm_head_bias=self._ends.lm_head_bias,
            logit_cap=self._ends.logit_cap,
            threads=threads,
        )

    def divergence(
        self,
        hidden: F32,
        reference: Head,
        theirs: F32,
        threads: int,
        *,
        in_parts: bool = False,
        bfloat16: bool = False,
    ) -> tuple[npt.NDArray[np.float64], F32]:
        """Compare the next tokens after hidden states [M, H] with those of a reference after its own.

        Returns the divergence [M], nats, and the gradient [M, H] of its mean by `hidden`. The reference is of
        one architecture: in a rotated basis it has another gain and another matrix.
        """
        norm = self._ends.final_norm
        return _core.head_divergence(
            hidden,
            theirs,
            self._spec.norm,
            self._spec.norm_eps,
            norm["weight"],
            self._matrix,
            reference._ends.final_norm["weight"],
            reference._matrix,
            norm_bias=norm.get("bias"),
            lm_head_bias=self._ends.lm_head_bias,
            logit_cap=self._ends.logit_cap,
            in_parts=in_parts,
            bfloat16=bfloat16,
            threads=threads,
        )


def float_logits(model: ForwardModel, tokens: npt.ArrayLike, *, threads: int = 1) -> F32:
    """Return logits [N, T, V] of windows [N, T], with activations rounded where the model rounds them."""
    x = run_blocks(model, as_windows(tokens, model.vocab_size), threads=threads)
    return model.ends().logits(x, model.lm_head(), threads=threads)
