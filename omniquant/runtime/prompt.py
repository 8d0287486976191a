"""From what a caller has (a text, tokens, a conversation) to the tokens a model continues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypedDict, cast

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from omniquant.checkpoint.text_settings import TextSettings
from omniquant.errors import CheckpointError, ConfigError, DataError
from omniquant.models.model import check_token_ids
from omniquant.runtime.chat import Message, render_chat
from omniquant.runtime.engine import Engine
from omniquant.runtime.generation import GenerationOptions, TextGenerator
from omniquant.runtime.sampling import SamplingOptions

Prompt = str | Sequence[int] | npt.NDArray[np.integer] | Sequence[Message]


class Wishes(TypedDict, total=False):
    """The options of ``QuantizedModel.generate``."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: str | Sequence[str]


class TextModel(Protocol):
    """What a text needs of a model."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    def max_positions(self) -> int:
        """The longest text."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; CheckpointError where there is none."""

    @property
    def text(self) -> TextSettings:
        """Special tokens and chat template."""


def start_text(
    model: TextModel, engine: Engine, prompt: Prompt, wishes: Wishes, threads: int | None = None
) -> TextGenerator:
    """Return the iterator that continues a prompt; errors as ``QuantizedModel.generate`` says."""
    stop = wishes.get("stop", ())
    options = GenerationOptions(
        max_new_tokens=wishes.get("max_new_tokens", 128),
        sampling=SamplingOptions(
            temperature=wishes.get("temperature", 0.0),
            top_k=wishes.get("top_k", 0),
            top_p=wishes.get("top_p", 1.0),
            seed=wishes.get("seed", 0),
        ),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        end_tokens=model.text.eos,
    )
    unknown = sorted(set(wishes) - set(Wishes.__annotations__))
    if unknown:
        raise ConfigError(f"generate has no option {unknown[0]!r}")
    tokens = prompt_tokens(model, prompt)
    tokenizer = _tokenizer_of(model, needed=bool(options.stop))
    return TextGenerator(engine, tokenizer, tokens, options, model.max_positions, threads)


def prompt_tokens(model: TextModel, prompt: Prompt) -> list[int]:
    """Return the tokens of a prompt.

    Raises
    ------
    DataError
        If there are none, or they lie outside the vocabulary.
    """
    if isinstance(prompt, str):
        return _encode(model, prompt)
    if len(prompt) and isinstance(prompt[0], Mapping):
        return _encode_chat(model, cast(Sequence[Message], prompt))
    ids = np.asarray(prompt)
    if ids.ndim != 1 or not ids.size:
        raise DataError(f"a prompt of shape {list(ids.shape)}: expected at least one token, [n]")
    check_token_ids(ids, model.vocab_size, "prompt")
    return [int(token) for token in ids]


def _tokenizer_of(model: TextModel, needed: bool) -> Tokenizer | None:
    """Return the tokenizer, None where the model brought none and tokens alone will do."""
    try:
        return model.tokenizer
    except CheckpointError:
        if needed:
            raise
        return None


def text_tokens(model: TextModel, text: str) -> list[int]:
    """Return the tokens of a text, with the special ones its tokenizer adds."""
    tokens: list[int] = model.tokenizer.encode(text).ids
    bos = model.text.bos
    if bos is not None and model.text.add_bos and tokens[:1] != [bos]:
        tokens = [bos, *tokens]
    return tokens


def _encode(model: TextModel, text: str) -> list[int]:
    tokens = text_tokens(model, text)
    if not tokens:
        raise DataError("the prompt is empty")
    return tokens


def _encode_chat(model: TextModel, messages: Sequence[Message]) -> list[int]:
    settings = model.text
    if settings.chat_template is None:
        raise DataError(f"{model.name} has no chat template: give the prompt as text")

    def content(token: int | None) -> str:
        return "" if token is None else model.tokenizer.id_to_token(token) or ""

    end = settings.eos[0] if settings.eos else None
    text = render_chat(settings.chat_template, messages, content(settings.bos), content(end))
    tokens: list[int] = model.tokenizer.encode(text, add_special_tokens=False).ids
    if not tokens:
        raise DataError("the chat template made an empty prompt of the messages")
    return tokens
