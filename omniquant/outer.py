"""What of a model lies outside its blocks: embedding, last norm, head, configuration, tokenizer.

A result directory keeps them once, unquantized, so that it needs the original model no more:
`outer.safetensors` (a tied head is the embedding and is not stored twice; see runtime/matrix.py for the
precisions), `config.json` and, where there is one, `tokenizer.json` with `text.json`: special tokens and chat
template.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from omniquant.checkpoint.atomic import atomic_save_safetensors, atomic_write_bytes
from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.finite import check_finite
from omniquant.checkpoint.json_file import read_json_object
from omniquant.checkpoint.safetensors_reader import SafetensorsFolder
from omniquant.checkpoint.text_settings import TextSettings, settings_from_config
from omniquant.checkpoint.tokenizer_file import fitted, read_tokenizer
from omniquant.errors import CheckpointError
from omniquant.forward import F32, Weights
from omniquant.models.adapter import Architecture
from omniquant.models.ends import Ends, ends_of
from omniquant.models.layered import Layered
from omniquant.models.model import Model, check_token_ids
from omniquant.models.registry import adapter_for_model_type
from omniquant.models.rotated import Rotation
from omniquant.runtime.matrix import Matrix, from_tensors, row_parts

OUTER_NAME = "outer.safetensors"
CONFIG_NAME = "config.json"
TOKENIZER_NAME = "tokenizer.json"
TEXT_NAME = "text.json"

_MATRICES = ("embedding.weight", "lm_head.weight")
_PARTS = ("final_norm", "embedding_norm", "positions", "lm_head")


def save_outer(model: Model, folder: Path) -> list[str]:
    """Write everything outside the blocks durably; returns the names of the files."""
    # Before anything is written: the tokenizer may not fit the model.
    tokenizer = _tokenizer_json(model)
    text = None if tokenizer is None else json.dumps(model.text.to_dict(), indent=1)
    tied = model.architecture.tied_embeddings
    matrices = {"embedding": model.embedding_rows} | ({} if tied else {"lm_head": model.lm_head})
    vectors = {f"{part}.{kind}": values for part in _PARTS for kind, values in model.outer(part).items()}
    for name, values in vectors.items():
        check_finite(f"{model.name}: {name}", values)
    tensors: dict[str, npt.NDArray[Any]] = dict(vectors)
    for name, load in matrices.items():
        for part in row_parts(model.vocab_size):
            check_finite(f"{model.name}: {name}", load(part), first_row=part.start)
        tensors |= Matrix.exact_rows(load, model.vocab_size).to_tensors(name)
    config = json.dumps(dict(model.config), indent=1, sort_keys=True, allow_nan=False)
    atomic_write_bytes(folder / CONFIG_NAME, config.encode() + b"\n")
    names = [CONFIG_NAME]
    if tokenizer is not None:
        atomic_write_bytes(folder / TOKENIZER_NAME, tokenizer.encode())
        names.append(TOKENIZER_NAME)
    if text is not None:
        atomic_write_bytes(folder / TEXT_NAME, text.encode() + b"\n")
        names.append(TEXT_NAME)
    atomic_save_safetensors(folder / OUTER_NAME, tensors)
    return [*names, OUTER_NAME]


def _tokenizer_json(model: Model) -> str | None:
    """Return the tokenizer's text; None where the model brings none, or one only its own engine can run."""
    weights = next(iter(model.files()), None)
    if weights and weights.suffix == ".safetensors" and not (weights.parent / TOKENIZER_NAME).is_file():
        return None
    try:
        return str(model.tokenizer.to_str())
    except UnsupportedCheckpointError:
        return None


class StoredOuter(Layered):
    """What :func:`save_outer` wrote, with the methods a model has for it.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged or does not fit the configuration.
    """

    def __init__(self, folder: Path, name: str, rotation: Rotation | None = None) -> None:
        self.name = name
        self._folder = folder
        config = Fields(read_json_object(folder / CONFIG_NAME), str(folder / CONFIG_NAME))
        adapter = adapter_for_model_type(config.text("model_type"), config.where)
        self.config = config.values
        original = adapter.architecture(config)
        self.architecture: Architecture = original if rotation is None else rotation.architecture(original)
        self._source = SafetensorsFolder(folder / OUTER_NAME)
        refs = adapter.outer_tensors(self.architecture, "safetensors")
        self._vectors = {name: ref.ours or ref.shape for name, ref in refs.items() if name not in _MATRICES}
        self._embedding, self._head = self._read_tensors()

    def _read_tensors(self) -> tuple[Matrix, Matrix]:
        vocab, hidden = self.vocab_size, self.spec.hidden_size
        where, source = str(self._folder / OUTER_NAME), self._source
        stored = {name: (source.dtype(name), source.shape(name)) for name in source.names()}
        embedding = from_tensors("embedding", (vocab, hidden), stored, source.load_stored, where)
        head = embedding
        expected = set(embedding.to_tensors("embedding")) | set(self._vectors)
        if not self.architecture.tied_embeddings:
            head = from_tensors("lm_head", (vocab, hidden), stored, source.load_stored, where)
            expected |= set(head.to_tensors("lm_head"))
        for name in sorted(expected ^ set(stored)):
            raise CheckpointError(
                f"{where}: tensor {name!r} is {'missing' if name in expected else 'unknown'}"
            )
        for name, shape in self._vectors.items():
            if stored[name][1] != shape:
                raise CheckpointError(f"{where}: {name} is {list(stored[name][1])}, expected {list(shape)}")
        return embedding, head

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; CheckpointError where the model brought none or it does not fit."""
        return fitted(read_tokenizer(self._folder / TOKENIZER_NAME), self.vocab_size, self.name)

    @cached_property
    def text(self) -> TextSettings:
        """Special tokens and chat template; those of config.json where nothing else was stored."""
        path = self._folder / TEXT_NAME
        if path.is_file():
            return TextSettings.from_fields(Fields(read_json_object(path), str(path)))
        return settings_from_config(Fields(self.config, str(self._folder / CONFIG_NAME)))

    def embed(self, tokens: npt.NDArray[np.integer], positions: npt.NDArray[np.integer] | None = None) -> F32:
        """Return what the first block reads [.., T, H] of tokens [.., T]; see :meth:`Model.embed`."""
        return self.ends().enter(self.embedding(tokens), positions)

    def embedding(self, tokens: npt.NDArray[np.integer]) -> F32:
        """Return the embedding's rows of token ids."""
        ids = np.asarray(tokens)
        check_token_ids(ids, self.vocab_size, "tokens")
        distinct, where = np.unique(ids, return_inverse=True)
        return self._embedding.rows(distinct.astype(np.int64))[where.reshape(ids.shape)]

    def outer(self, part: str) -> Weights:
        """Return "weight" and "bias", as far as it has them, of what is neither embedding nor head."""
        names = [name for name in self._vectors if name.startswith(f"{part}.")]
        return {name.rpartition(".")[2]: self._source.load(name) for name in names}

    def ends(self) -> Ends:
        """Return what stands before the first block and behind the last one."""
        return ends_of(self)

    def lm_head(self) -> F32:
        """Return the output matrix [V, H]."""
        return self._head.rows()

    def matrices(self) -> tuple[Matrix, Matrix]:
        """Return embedding and head as they are stored; the same object where they are tied."""
        return self._embedding, self._head

    def drop_pages(self) -> None:
        """Give mapped memory back; a packed head is not read from the file again."""
        self._source.drop_pages()
