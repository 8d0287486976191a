"""A `tokenizers.Tokenizer` from the metadata of a GGUF file.

`tokenizer.ggml.model` is gpt2 (byte-level BPE, with its merges) or llama (SentencePiece's BPE: pieces with
scores, where the two neighbours whose union scores highest are merged first, and bytes stand for what no
piece covers).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.gguf_header import StringArray
from omniquant.checkpoint.text import one_line, shown
from omniquant.errors import CheckpointError

_KEY = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "\u2581"  # SentencePiece's sign for a space
_MAX_PIECE = 128  # the longest of real vocabularies have 48 characters

# GPT-2's word pattern (Radford et al. 2019, encoder.py).
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# LLaMA 3's pattern; Qwen2's differs in the length of digit runs alone.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

# tokenizer.ggml.pre -> the patterns that cut text into words, applied one after the other.
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "smollm": (r"\p{N}", _GPT2),
    "falcon": (),  # a chain of its own, see below
    "bloom": (r" ?[^(\s|.,!?…。，、।۔،)]+",),  # noqa: RUF001 - the marks are meant
}
# Other names of GPT-2's: Phi-2, and OLMo, whose tokenizer is GPT-NeoX's.
_ALIASES = {"phi-2": "gpt-2", "olmo": "gpt-2"}
# These look a whole word up in the vocabulary before merging.
_IGNORE_MERGES = frozenset({"llama-bpe"})
_NFC = frozenset({"qwen2"})


def _strings(fields: Fields, name: str) -> StringArray:
    value = fields.values.get(_KEY + name)
    if not isinstance(value, StringArray):
        raise fields.fail(_KEY + name, "an array of strings")
    return value


def _vocabulary(fields: Fields) -> dict[str, int]:
    tokens = _strings(fields, "tokens")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocabulary[token] != index)
        raise CheckpointError(f"{fields.where}: {_KEY}tokens holds {shown(twice)} twice")
    return vocabulary


def _merge(fields: Fields, line: str) -> tuple[str, str]:
    # The first half is never empty, so a token may start with the separator.
    cut = line.find(" ", 1)
    if cut < 0:
        raise CheckpointError(f"{fields.where}: {_KEY}merges holds {shown(line)}, expected two tokens")
    return line[:cut], line[cut + 1 :]


def _added_tokens(fields: Fields, vocabulary: dict[str, int]) -> list[AddedToken]:
    kinds = fields.values.get(_KEY + "token_type")
    if kinds is None:
        return []
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(vocabulary):
        found = len(kinds) if isinstance(kinds, Sequence | np.ndarray) else shown(kinds)
        raise CheckpointError(
            f"{fields.where}: {_KEY}token_type has {found} entries for {len(vocabulary)} tokens"
        )
    return [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(vocabulary, kinds.tolist(), strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def pre_tokenizer_named(pre: str) -> pre_tokenizers.PreTokenizer:
    """Return the pre-tokenizer of one of ``PRE_TOKENIZERS``."""
    if pre == "falcon":
        # It looks for digits among the signs that stand for bytes, not in the text.
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        )
    patterns = PRE_TOKENIZERS[pre]
    splits: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    return pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _byte_level(fields: Fields) -> Tokenizer:
    pre = fields.text(_KEY + "pre", "default")
    pre = _ALIASES.get(pre, pre)
    if pre not in PRE_TOKENIZERS:
        known = ", ".join((*PRE_TOKENIZERS, *_ALIASES))
        raise UnsupportedCheckpointError(f"{fields.where}: {_KEY}pre is {shown(pre)}, known are {known}")
    vocabulary = _vocabulary(fields)
    merges = [_merge(fields, line) for line in _strings(fields, "merges")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _IGNORE_MERGES))
    if pre in _NFC:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer_named(pre)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(_added_tokens(fields, vocabulary))
    return tokenizer


def _scores(fields: Fields, count: int) -> list[float]:
    scores = fields.values.get(_KEY + "scores")
    if not isinstance(scores, np.ndarray) or len(scores) != count or not np.isfinite(scores).all():
        raise CheckpointError(f"{fields.where}: {_KEY}scores are no {count} finite numbers, one a token")
    return [float(score) for score in scores]


def _merges_by_score(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Return every way to make a piece of two, best piece first; of one piece, the earlier parts first."""
    merges = []
    for piece, index in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = vocabulary.get(piece[:cut]), vocabulary.get(piece[cut:])
            if left is not None and right is not None:
                merges.append((-scores[index], index, left, right, piece[:cut], piece[cut:]))
    return [(left, right) for *_, left, right in sorted(merges)]


def _sentencepiece(fields: Fields) -> Tokenizer:
    vocabulary = _vocabulary(fields)
    if max(map(len, vocabulary), default=0) > _MAX_PIECE:
        raise CheckpointError(f"{fields.where}: {_KEY}tokens: a piece has more than {_MAX_PIECE} characters")
    scores = _scores(fields, len(vocabulary))
    unknown = fields.integer(_KEY + "unknown_token_id", 0, minimum=0)
    names = list(vocabulary)
    if unknown >= len(names):
        raise CheckpointError(
            f"{fields.where}: {_KEY}unknown_token_id {unknown} is not among {len(names)} tokens"
        )
    added = _added_tokens(fields, vocabulary)
    names_added = {token.content for token in added}
    plain = {piece: index for piece, index in vocabulary.items() if piece not in names_added}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges_by_score(plain, scores),
            unk_token=names[unknown],
            fuse_unk=True,
            byte_fallback=all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)),
        )
    )
    prepend = [normalizers.Prepend(_SPACE)] if fields.boolean(_KEY + "add_space_prefix", True) else []
    strip = [decoders.Strip(" ", 1, 0)] if prepend else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_tokens(added)
    return tokenizer


def tokenizer_from_gguf(fields: Fields) -> Tokenizer:
    """Build the tokenizer a GGUF file describes.

    Parameters
    ----------
    fields
        The metadata of the file.

    Raises
    ------
    UnsupportedCheckpointError
        If the model is neither byte-level nor SentencePiece's BPE, or its pre-tokenizer is not known here;
        by name.
    CheckpointError
        If the tokens, merges and token types do not fit together.
    """
    model = fields.text(_KEY + "model")
    build = {"gpt2": _byte_level, "llama": _sentencepiece}.get(model)
    if build is None:
        raise UnsupportedCheckpointError(
            f"{fields.where}: {_KEY}model is {shown(model)}, gpt2 and llama are read"
        )
    try:
        return build(fields)
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"{fields.where}: tokenizer: {one_line(error)}") from error
