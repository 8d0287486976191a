"""A quantized model packed for its kernels, and decoders that read and continue texts with it."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from omniquant import _core
from omniquant.blockfile import Array
from omniquant.config import QuantConfig
from omniquant.errors import CheckpointError, DataError
from omniquant.forward import F32
from omniquant.models.ends import Ends
from omniquant.models.model import check_token_ids
from omniquant.models.spec import BlockSpec
from omniquant.runtime.matrix import Matrix
from omniquant.threads import resolve_threads


class Runnable(Protocol):
    """What an engine is made from: a :class:`omniquant.QuantizedModel`."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def spec(self) -> BlockSpec:
        """Sizes and kinds of a block."""

    def spec_of(self, layer: int) -> BlockSpec:
        """Return the spec of one block."""

    def layer_kind(self, layer: int) -> int:
        """Return which of the model's kinds of blocks one is: 0 or 1."""

    @property
    def scheme(self) -> QuantConfig:
        """Bits of weights and activations."""

    @property
    def num_layers(self) -> int:
        """Number of blocks."""

    @property
    def max_positions(self) -> int:
        """The longest sequence."""

    def tensors(self, index: int) -> dict[str, Array]:
        """Return a block as it is stored."""

    def matrices(self) -> tuple[Matrix, Matrix]:
        """Return embedding and head."""

    def ends(self) -> Ends:
        """Return what stands before the first block and behind the last one."""

    def rope_tables(self, length: int, layer: int, /) -> tuple[F32, F32]:
        """Return cos and sin of one block."""


def _give_back() -> None:
    """Return to the system what reading the blocks let go: glibc keeps it, 7 % of a small model."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Engine:
    """A model whose linears run on packed integers; it is never changed, threads may share it.

    Parameters
    ----------
    model : QuantizedModel
    threads : int, optional
        For packing and, by default, for running. Results do not depend on it.
    kernel : str, optional
        "reference", "avx2", "avx512_vnni", "amx", "onednn"; None: the best this processor has.

    Raises
    ------
    CheckpointError
        If what is stored cannot be run; names the block.
    """

    def __init__(self, model: Runnable, *, threads: int | None = None, kernel: str | None = None) -> None:
        self.threads = resolve_threads(threads)
        self.vocab_size = 0
        self._model = model
        self._core = self._create(kernel)
        for index in range(model.num_layers):
            self._set_block(index)
        _give_back()

    def _set_block(self, index: int) -> None:
        model, scheme = self._model, self._model.scheme
        how = (
            {name: linear.to_core() for name, linear in scheme.block(index).items()},
            scheme.activation(index),
        )
        try:
            spec, kind = model.spec_of(index).to_core(), model.layer_kind(index)
            tensors = model.tensors(index)
            _core.model_set_block(self._core, index, spec, kind, tensors, *how, threads=self.threads)
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{model.name}: block {index}: {error}") from error

    def _create(self, kernel: str | None) -> object:
        model = self._model
        embedding, head = model.matrices()
        ends = model.ends()
        self.vocab_size = len(head.values)
        self.head_bytes = head.nbytes
        return _core.model_create(
            model.spec.to_core(),
            model.scheme.activation(),
            embedding.to_core(),
            head.to_core(),
            ends.final_norm["weight"],
            ends.final_norm.get("bias"),
            model.num_layers,
            kernel,
            embedding_scale=ends.embedding_scale,
            embedding_norm=ends.embedding_norm.get("weight"),
            embedding_norm_bias=ends.embedding_norm.get("bias"),
            positions=ends.positions,
            lm_head_bias=ends.lm_head_bias,
            logit_cap=ends.logit_cap,
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    def decoder(self, capacity: int, threads: int | None = None) -> Decoder:
        """Return an empty decoder for up to `capacity` tokens; DataError beyond the model's positions.

        It runs on as many threads as asked for, by default those of the engine.
        """
        if not 1 <= capacity <= self._model.max_positions:
            raise DataError(f"{capacity} tokens: {self._model.name} takes 1 to {self._model.max_positions}")
        core = _core.decoder_create(self._core, capacity, *self._rope_tables(capacity))
        return Decoder(core, self.threads if threads is None else resolve_threads(threads))

    def _rope_tables(self, capacity: int) -> tuple[F32 | None, F32 | None]:
        """Return cos and sin of every kind of block [kinds, capacity, r / 2], None where none rotates."""
        model, first = self._model, dict[int, int]()
        for layer in range(model.num_layers):
            first.setdefault(model.layer_kind(layer), layer)
        half = model.spec.rotary // 2
        tables = np.zeros((2, max(first) + 1, capacity, half), np.float32)
        rotate = [(kind, layer) for kind, layer in first.items() if model.spec_of(layer).rope]
        for kind, layer in rotate:
            tables[:, kind] = model.rope_tables(capacity, layer)
        return (tables[0], tables[1]) if rotate else (None, None)

    def facts(self) -> dict[str, Any]:
        """Return what it runs on: bytes of packed blocks, bytes of the head, names of the kernels."""
        return {**_core.model_facts(self._core), "head_bytes": self.head_bytes}


def all_logits(engine: Engine, tokens: npt.ArrayLike, threads: int | None = None) -> F32:
    """Return the logits [T, V] or [N, T, V] after each of tokens [T] or [N, T]; DataError for none."""
    ids = np.asarray(tokens)
    if ids.ndim not in (1, 2) or 0 in ids.shape:
        raise DataError(f"tokens are {list(ids.shape)}, expected a text [T] or windows [N, T]")
    check_token_ids(ids, engine.vocab_size, "tokens")
    decoder = engine.decoder(ids.shape[-1], threads)
    if ids.ndim == 1:
        return decoder.logits(ids)
    logits = np.empty((*ids.shape, engine.vocab_size), np.float32)
    for window, out in zip(ids, logits, strict=True):
        decoder.rewind(0)
        out[:] = decoder.logits(window)
    return logits


class Decoder:
    """One text being read: the cache of its keys and values. One thread at a time may use it."""

    def __init__(self, core: object, threads: int) -> None:
        self._core = core
        self._threads = threads

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(_core.decoder_facts(self._core)["length"])

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        _core.decoder_rewind(self._core, length)

    def fill(self, tokens: npt.ArrayLike) -> None:
        """Read tokens [n] without asking for anything."""
        self._feed(tokens, "nothing")

    def next_logits(self, tokens: npt.ArrayLike) -> F32:
        """Read tokens [n] and return the logits [V] of what comes next."""
        logits: F32 = self._feed(tokens, "last")
        return logits

    def logits(self, tokens: npt.ArrayLike) -> F32:
        """Read tokens [n] and return the logits [n, V] after each."""
        logits: F32 = self._feed(tokens, "all")
        return logits

    def nll(self, tokens: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Read tokens [n] and return the nats of each but the first [n - 1]."""
        nats: npt.NDArray[np.float64] = self._feed(tokens, "nll")
        return nats

    def facts(self) -> dict[str, Any]:
        """Return capacity, length, bytes, and how keys and values are kept."""
        return _core.decoder_facts(self._core)

    def _feed(self, tokens: npt.ArrayLike, want: str) -> Any:
        return _core.decoder_feed(self._core, tokens, want, threads=self._threads)
