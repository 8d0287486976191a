"""A model seen otherwise: every tensor is asked of the original, and changed on the way by a subclass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from omniquant.checkpoint.source import F32
from omniquant.checkpoint.text_settings import TextSettings
from omniquant.models.model import Model


class ModelView(Model):
    """A view of a model, the same in everything.

    Parameters
    ----------
    model : Model
        It is not changed.
    """

    def __init__(self, model: Model) -> None:
        # Not the constructor of a model on disk.
        self._model = model
        self.name = model.name
        self.config: Mapping[str, object] = model.config
        self.architecture = model.architecture

    @property
    def family(self) -> str:
        """The family's name."""
        return self._model.family

    @property
    def source(self) -> str:
        """Where the numbers come from."""
        return self._model.source

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return self._model.tokenizer

    @property
    def text(self) -> TextSettings:
        """Special tokens and chat template."""
        return self._model.text

    def files(self) -> list[Path]:
        """Return the files the weights are read from."""
        return self._model.files()

    def fingerprint(self) -> str:
        """Return the original's; what makes the view is among the options of a calibration."""
        return self._model.fingerprint()

    def embedding(self, tokens: npt.NDArray[np.integer]) -> F32:
        """Return the embedding's rows [.., H] of tokens."""
        return self._model.embedding(tokens)

    def outer(self, part: str) -> dict[str, F32]:
        """Return a small part outside the blocks."""
        return self._model.outer(part)

    def lm_head(self, rows: slice | None = None) -> F32:
        """Return the output matrix [V, H], or some rows of it."""
        return self._model.lm_head(rows)

    def block(self, index: int) -> dict[str, F32]:
        """Return the tensors of one block; see :meth:`Model.block`."""
        return self._model.block(index)

    def drop_pages(self) -> None:
        """Let the system take back what was read of the original's files."""
        self._model.drop_pages()
