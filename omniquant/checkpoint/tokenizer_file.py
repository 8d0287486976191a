"""Reading tokenizer.json, and checking that a tokenizer fits its model."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from omniquant.checkpoint.text import one_line
from omniquant.errors import CheckpointError


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``.

    Raises
    ------
    CheckpointError
        If the file is missing or the tokenizers library does not accept it.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, so text cannot be tokenized")
    try:
        return Tokenizer.from_file(str(path))
    except BaseException as error:  # a panic of the Rust library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise CheckpointError(f"{path}: not a valid tokenizer: {one_line(error)}") from error


def encode(tokenizer: Tokenizer, text: str, where: str) -> list[int]:
    """Return the token ids of a whole text, without special tokens.

    Raises
    ------
    CheckpointError
        If the tokenizer contradicts itself, which shows only now; `where` says which model's it is.
    """
    try:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    except BaseException as error:  # a panic of the Rust library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise CheckpointError(f"{where}: its tokenizer cannot encode the text: {one_line(error)}") from error


def fitted(tokenizer: Tokenizer, vocab_size: int, where: str) -> Tokenizer:
    """Return the tokenizer, set to encode whole texts, after checking it against the model's vocabulary.

    A vocabulary smaller than the model's is usual: embeddings are padded to round sizes.

    Raises
    ------
    CheckpointError
        If it can produce an id the model has no embedding for; both sizes are named.
    """
    needed = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if needed > vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has {needed} tokens but the model's vocab_size is {vocab_size}: "
            "it belongs to another model"
        )
    # A stored truncation or padding would cut or stretch calibration texts.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
