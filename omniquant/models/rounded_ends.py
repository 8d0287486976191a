"""A model whose embedding or head is rounded to 8 or 4 bits, a half-precision scale every 32 inputs.

That is Q8_0 and Q4_0 of GGUF files, and two of the ways a matrix outside the blocks is stored
(runtime/matrix.py): it is kept as bytes or nibbles in a result, run from them by the integer runtime and
exported as they are to GGUF; other formats hold its values in float.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from omniquant.checkpoint.source import F32
from omniquant.config.scheme import FLOAT_BITS
from omniquant.errors import ConfigError
from omniquant.models.model import Model
from omniquant.models.view import ModelView
from omniquant.runtime.matrix import GROUP, rounded


class RoundedEnds(ModelView):
    """A view of a model with embedding, head or both on integers.

    Parameters
    ----------
    model : Model
    embedding_bits, head_bits : {4, 8, 16}
        16: as it is.

    Raises
    ------
    ConfigError
        If rows are no whole groups of 32, or a tied embedding would not be the head any more.
    """

    def __init__(self, model: Model, embedding_bits: int, head_bits: int) -> None:
        super().__init__(model)
        if self.spec.hidden_size % GROUP:
            rows = f"rows of {self.spec.hidden_size} are no whole groups of {GROUP}"
            raise ConfigError(f"embedding and head on integers: {rows}")
        if self.architecture.tied_embeddings and embedding_bits != head_bits:
            given = f"embedding_bits {embedding_bits} and head_bits {head_bits}"
            raise ConfigError(f"{given}: the head is the embedding, give both")
        self._embedding_bits, self._head_bits = embedding_bits, head_bits

    def embedding(self, tokens: npt.NDArray[np.integer]) -> F32:
        """Return the embedding's rows [.., H] of tokens."""
        rows = super().embedding(tokens)
        return rows if self._embedding_bits == FLOAT_BITS else rounded(rows, self._embedding_bits)

    def lm_head(self, rows: slice | None = None) -> F32:
        """Return the output matrix [V, H], or some rows of it."""
        head = super().lm_head(rows)
        return head if self._head_bits == FLOAT_BITS else rounded(head, self._head_bits)
