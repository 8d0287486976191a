"""A model as the rest of the package sees it: blocks of named float32 arrays, read when asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.renamed import with_names_of
from omniquant.checkpoint.source import F32, TensorSource
from omniquant.checkpoint.text import shown
from omniquant.checkpoint.text_settings import TextSettings, settings_from_config
from omniquant.errors import CheckpointError, ConfigError, DataError
from omniquant.models.adapter import Architecture, FamilyAdapter
from omniquant.models.ends import Ends, ends_of
from omniquant.models.experts import stacked
from omniquant.models.layered import Layered
from omniquant.models.tensors import TensorRef
from omniquant.reprs import one_line_repr
from omniquant.runtime.matrix import Matrix


class Model(Layered):
    """A language model on disk. Made by :func:`omniquant.models.load.load_model`; never changed.

    Parameters
    ----------
    name
        For people: the folder's or file's name.
    adapter
        The family.
    architecture
        What the configuration says.
    config
        The raw configuration.
    source
        The tensors.
    read_tokenizer
        Called once, when the tokenizer is first needed.
    read_text
        Called once, when special tokens or the chat template are first needed; None: config.json's alone.

    Raises
    ------
    CheckpointError
        If a tensor is missing or has another shape than the configuration says (both are named), or the
        checkpoint has more layers than that.
    """

    def __init__(
        self,
        *,
        name: str,
        adapter: FamilyAdapter,
        architecture: Architecture,
        config: Mapping[str, object],
        source: TensorSource,
        read_tokenizer: Callable[[], Tokenizer],
        read_text: Callable[[Tokenizer], TextSettings] | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.architecture = architecture
        self._adapter = adapter
        self._read_tokenizer = read_tokenizer
        self._read_text = read_text
        self._outer = adapter.outer_tensors(architecture, source.layout)
        heads = [ref.key for ours, ref in self._outer.items() if ours.startswith("lm_head.")]
        self._source = with_names_of(source, self._outer["embedding.weight"].key, heads)
        _check_tensors(adapter, architecture, self._source)

    @property
    def family(self) -> str:
        """The family's name, such as "llama"."""
        return self._adapter.name

    @property
    def source(self) -> str:
        """Where the numbers come from, as in "safetensors float32" or "GGUF, dequantized (linears Q4_1)"."""
        return self._source.description

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read at first use and without truncation or padding.

        Raises
        ------
        CheckpointError
            If it is missing, damaged, or has tokens the model has no embedding for.
        """
        return self._read_tokenizer()

    @cached_property
    def text(self) -> TextSettings:
        """Special tokens and chat template; CheckpointError where the files that say so are damaged."""
        if self._read_text is None:
            return settings_from_config(Fields(self.config, self.name))
        return self._read_text(self.tokenizer)

    def files(self) -> list[Path]:
        """Return the files the weights are read from, sorted; none where they are arrays in memory."""
        return self._source.files()

    def embedding(self, tokens: npt.NDArray[np.integer]) -> F32:
        """Return the embedding's rows of token ids.

        Parameters
        ----------
        tokens
            Integers [N, T] (or any shape).

        Returns
        -------
        float32 [N, T, H]

        Raises
        ------
        DataError
            Naming the first id outside the vocabulary and its position.
        """
        ids = np.asarray(tokens)
        check_token_ids(ids, self.vocab_size, "tokens")
        # Each row once: quantized embeddings are costly to read.
        distinct, where = np.unique(ids, return_inverse=True)
        return self._rows(distinct.astype(np.int64))[where.reshape(ids.shape)]

    def _rows(self, ids: npt.NDArray[np.int64]) -> F32:
        ref = self._outer["embedding.weight"]
        return self._source.load_rows(ref.key, ids)

    def embed(self, tokens: npt.NDArray[np.integer], positions: npt.NDArray[np.integer] | None = None) -> F32:
        """Return what the first block reads of token ids [.., T] at positions [T], from 0 on by default.

        That is :meth:`embedding`, and whatever the family does to it: a scale, a norm, positions. float32
        [.., T, H]; errors as there.
        """
        return self.ends().enter(self.embedding(tokens), positions)

    def block(self, index: int) -> dict[str, F32]:
        """Return the tensors of one block, float32 and C-contiguous; views of the file are read-only.

        Keys: "norm1.weight" [H], "q.weight" [n d, H], "k.weight" and "v.weight" [n_kv d, H],
        "o.weight" [H, n d], "norm2.weight" [H], "gate.weight" and "up.weight" [F, H],
        "down.weight" [H, F], and "*.bias" where the family has them; no "gate" in a plain MLP, and whatever
        other norms the spec has. Those of E experts are stacked by rows, beside "router.weight" [E, H]; a
        shared one is "shared_gate.weight", "shared_up.weight", "shared_down.weight", "shared_router.weight".

        Raises
        ------
        ConfigError
            If there is no such block.
        """
        if not 0 <= index < self.num_layers:
            raise ConfigError(
                f"block {index} does not exist: {self.name} has blocks 0 to {self.num_layers - 1}"
            )
        refs = self._adapter.block_tensors(self.architecture, index, self._source.layout)
        tensors = stacked({ours: self._load(ref) for ours, ref in refs.items()})
        # What was widened is not read again; of views the pages come back when they are used.
        self._source.drop_pages()
        return tensors

    def outer(self, part: str) -> dict[str, F32]:
        """Return "weight" and "bias", as far as it has them, of a part outside the blocks.

        Those are "final_norm", "embedding_norm", "positions" and, of "lm_head", the bias alone.
        """
        found = {
            ours.rpartition(".")[2]: ref for ours, ref in self._outer.items() if ours.startswith(f"{part}.")
        }
        return {k: self._load(ref) for k, ref in found.items() if part != "lm_head" or k == "bias"}

    def ends(self) -> Ends:
        """Return what stands before the first block and behind the last one."""
        return ends_of(self)

    def lm_head(self, rows: slice | None = None) -> F32:
        """Return the output matrix, float32 [V, H], or some rows of it; of tied models the embedding.

        Nothing is cached: keep it if it is needed again, dequantizing it takes time.
        """
        ref = self._outer.get("lm_head.weight", self._outer["embedding.weight"])
        if rows is None:
            return self._load(ref)
        return self._source.load_rows(ref.key, np.arange(self.vocab_size)[rows])

    def embedding_rows(self, rows: slice) -> F32:
        """Return the embedding [V, H] of some token ids, those of a slice."""
        return self.embedding(np.arange(self.vocab_size)[rows])

    def matrices(self) -> tuple[Matrix, Matrix]:
        """Return embedding and head; the same object where they are tied."""
        embedding = Matrix.exact_rows(self.embedding_rows, self.vocab_size)
        if self.architecture.tied_embeddings:
            return embedding, embedding
        return embedding, Matrix.exact_rows(self.lm_head, self.vocab_size)

    def drop_pages(self) -> None:
        """Let the system take back what was read of the files; it is read again where it is needed."""
        self._source.drop_pages()

    def fingerprint(self) -> str:
        """Return a sha256 of the configuration, every tensor's name, type and shape, and the files' content.

        It does not depend on where the files lie. Computed once; reads the whole checkpoint.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name in self._source.names():
            entry = [name, self._source.dtype(name), self._source.shape(name)]
            digest.update(json.dumps(entry).encode())
        for content in self._source.digests():
            digest.update(content)
        return digest.hexdigest()

    def _load(self, ref: TensorRef) -> F32:
        return ref.read(self._source.load(ref.key))

    @one_line_repr
    def __repr__(self) -> str:
        sizes = f"{self.num_layers} blocks, hidden {self.spec.hidden_size}"
        return f"{shown(self.name)}, {sizes}, {self.source}"


def _check_ref(source: TensorSource, ref: TensorRef) -> None:
    found = source.shape(ref.key)
    if found != ref.shape:
        raise CheckpointError(
            f"{source.file_of(ref.key)}: tensor {ref.key} is {list(found)}, "
            f"the configuration says {list(ref.shape)}"
        )


def _check_tensors(adapter: FamilyAdapter, architecture: Architecture, source: TensorSource) -> None:
    for ref in adapter.outer_tensors(architecture, source.layout).values():
        _check_ref(source, ref)
    for layer in range(architecture.num_layers):
        for ref in adapter.block_tensors(architecture, layer, source.layout).values():
            _check_ref(source, ref)
    # More layers than the configuration admits to: one of the two lies.
    for name in source.names():
        layer_of_name = adapter.layer_of(name, source.layout)
        if layer_of_name is not None and layer_of_name >= architecture.num_layers:
            raise CheckpointError(
                f"{source.file_of(name)}: tensor {shown(name)}, "
                f"but the configuration says {architecture.num_layers} layers"
            )


def check_token_ids(ids: npt.NDArray[Any], vocab_size: int, where: str) -> None:
    """Check that ids are integers of the vocabulary.

    Raises
    ------
    DataError
        Naming the type, or the first id outside [0, vocab_size) and its position.
    """
    if ids.dtype.kind not in "iu":
        raise DataError(f"{where}: token ids are {ids.dtype}, expected integers")
    outside = (ids < 0) | (ids >= vocab_size)
    if outside.any():
        position = np.unravel_index(int(np.argmax(outside)), ids.shape)
        index = ", ".join(str(int(axis)) for axis in position)
        raise DataError(
            f"{where}: token id {ids[position]} at [{index}] is outside the vocabulary of {vocab_size}"
        )
