"""A tokenizer as GGUF metadata: byte-level BPE ("gpt2") or SentencePiece-like BPE ("llama")."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from omniquant.checkpoint.gguf_tokenizer import PRE_TOKENIZERS, pre_tokenizer_named
from omniquant.errors import UnsupportedError
from omniquant.export.content import Content

_SPACE = "\u2581"  # SentencePiece's sign for a space
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

# Every place where the patterns of pre-tokenizers differ: digits, contractions, case, spaces, marks, lines.
_PROBE = (
    "Hello world's  We'LL 12345 7 3.14 don't\n\n  x\t\ty = a_b[10]; «né» 漢字 e\u0301 !!!\r\n   end 'S 're "
    "100,000…  ?!word #tag\n \n"
)


def add_tokenizer(writer: Any, content: Content) -> None:
    """Add the tokenizer, its special tokens and the chat template; none where the model brings none.

    Raises
    ------
    UnsupportedError
        If llama.cpp has no tokenizer that cuts text like this one.
    """
    text = content.tokenizer_json()
    if text is None:
        writer.add_tokenizer_model("no_vocab")
        return
    state = json.loads(text)
    model = state["model"]
    if model.get("type") != "BPE":
        raise UnsupportedError(f"gguf cannot hold a {model.get('type')} tokenizer; nearest: huggingface")
    tokens, kinds = _tokens(state, content.result.architecture.vocab_size)
    if model.get("byte_fallback"):
        # Gemma's does not begin a text with a space.
        first = content.result.fold().tokenizer.encode("a", add_special_tokens=False).tokens[0]
        _add_llama(writer, tokens, kinds, model["merges"], first.startswith(_SPACE))
    else:
        _add_gpt2(writer, content.result.fold().tokenizer, tokens, kinds, model["merges"])
    settings = content.text_settings()
    begins = content.result.fold().tokenizer.encode("a").ids[0] == settings.bos  # its post-processor says so
    writer.add_add_bos_token(settings.add_bos or begins)
    if settings.bos is not None:
        writer.add_bos_token_id(settings.bos)
    if settings.eos:
        writer.add_eos_token_id(settings.eos[0])
    if settings.chat_template is not None:
        writer.add_chat_template(settings.chat_template)


def _tokens(state: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Return token texts and types by id; embeddings without a token get a name of their own."""
    names = {index: token for token, index in state["model"]["vocab"].items()}
    added = {entry["id"]: entry for entry in state["added_tokens"]}
    names |= {index: entry["content"] for index, entry in added.items()}
    tokens, kinds = [], []
    for index in range(vocab_size):
        token = names.get(index)
        tokens.append(f"[PAD{index}]" if token is None else token)
        if token is None:
            kinds.append(_UNUSED)
        elif index in added:
            kinds.append(_CONTROL if added[index]["special"] else _USER_DEFINED)
        else:
            kinds.append(_NORMAL)
    return tokens, kinds


def _pairs(merges: list[Any]) -> list[tuple[str, str]]:
    # Newer files hold pairs, older ones both halves with a space between.
    split = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges)
    return [(first, second) for first, second in split]


def _add_gpt2(
    writer: Any, tokenizer: Tokenizer, tokens: list[str], kinds: list[int], merges: list[Any]
) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_of(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in _pairs(merges)])


def _add_llama(writer: Any, tokens: list[str], kinds: list[int], merges: list[Any], prefix: bool) -> None:
    # llama.cpp merges the pair whose result has the highest score: the rank of its merge, upside down.
    ranks = {"".join(pair): rank for rank, pair in reversed(list(enumerate(_pairs(merges))))}
    scores = [-float(ranks.get(token, len(ranks))) for token in tokens]
    for index, token in enumerate(tokens):
        if token == "<unk>":
            kinds[index] = _UNKNOWN
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[index] = _BYTE
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(prefix)


def pre_tokenizer_of(tokenizer: Tokenizer) -> str:
    """Return llama.cpp's name of a tokenizer's way to cut text into words, found by how it cuts a probe.

    Raises
    ------
    UnsupportedError
        If none that is known here cuts alike.
    """
    cuts = _cut(tokenizer.pre_tokenizer)
    for name in PRE_TOKENIZERS:
        if _cut(pre_tokenizer_named(name)) == cuts:
            return name
    known = ", ".join(PRE_TOKENIZERS)
    raise UnsupportedError(
        f"gguf cannot hold this tokenizer: it cuts text unlike {known}; nearest: huggingface, converted by "
        "llama.cpp's own script"
    )


def _cut(pre_tokenizer: Any) -> list[str]:
    if pre_tokenizer is None:
        return []
    return [word for word, _ in pre_tokenizer.pre_tokenize_str(_PROBE)]
