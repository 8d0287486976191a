"""Continuing a text: prefill, then token by token, streaming."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from omniquant.errors import ConfigError, DataError
from omniquant.runtime.engine import Decoder, Engine
from omniquant.runtime.sampling import Sampler, SamplingOptions
from omniquant.runtime.streaming import StopStrings, TextStream


@dataclass
class Generation:
    """A continued text.

    Parameters
    ----------
    text : str
        What was generated, without the prompt.
    tokens : list of int
        The same as tokens; an ending token is not among them.
    prompt_tokens : int
    finish : str
        "end" (the model ended the text), "stop" (a stop string), "length"; "" while it goes on.
    prefill_seconds, decode_seconds : float
        For the prompt and the first token's logits; for all further steps.
    steps : int
        Of decoding.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    finish: str = ""
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    steps: int = 0

    @property
    def prefill_rate(self) -> float:
        """Tokens of the prompt a second."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first."""
        return self.steps / self.decode_seconds if self.decode_seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and both rates, ready for JSON."""
        rates = {"prefill_tokens_per_second": self.prefill_rate, "decode_tokens_per_second": self.decode_rate}
        return asdict(self) | rates


@dataclass(frozen=True)
class GenerationOptions:
    """When to stop, and how to choose.

    Raises
    ------
    ConfigError
        If a number or a stop string makes no sense.
    """

    max_new_tokens: int = 128
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: tuple[str, ...] = ()
    end_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")
        if not all(isinstance(stop, str) and stop for stop in self.stop):
            raise ConfigError("a stop string is empty or no text")


class TextGenerator(Iterator[str]):
    """Pieces of text as they are generated; :attr:`result` grows along and is whole at the end.

    Parameters
    ----------
    engine : Engine
    tokenizer : Tokenizer or None
        None: no text, tokens alone.
    prompt : sequence of int
    options : GenerationOptions
    positions : int
        The longest text the model takes.
    threads : int, optional

    Raises
    ------
    DataError
        If the prompt is empty or leaves no room.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        prompt: Sequence[int],
        options: GenerationOptions,
        positions: int,
        threads: int | None = None,
    ) -> None:
        if not 1 <= len(prompt) < positions:
            raise DataError(f"a prompt of {len(prompt)} tokens: 1 to {positions - 1} leave room to go on")
        self.result = Generation(prompt_tokens=len(prompt))
        self._prompt = np.asarray(prompt, np.int64)
        self._room = min(options.max_new_tokens, positions - len(prompt))
        self._options = options
        self._decoder = engine.decoder(len(prompt) + self._room, threads)
        self._sampler = Sampler(options.sampling)
        self._text = None if tokenizer is None else TextStream(tokenizer, prompt)
        self._stops = StopStrings(options.stop)
        self._pieces = self._run(self._decoder)

    def __next__(self) -> str:
        return next(self._pieces)

    def run(self) -> Generation:
        """Generate to the end and return the result."""
        for _ in self:
            pass
        return self.result

    def _run(self, decoder: Decoder) -> Iterator[str]:
        result = self.result
        started = time.perf_counter()
        logits = decoder.next_logits(self._prompt)
        result.prefill_seconds = time.perf_counter() - started
        while True:
            token = self._sampler(logits)
            if token in self._options.end_tokens:
                result.finish = "end"
                break
            result.tokens.append(token)
            yield from self._show("" if self._text is None else self._text.push(token))
            if self._stops.stopped:
                result.finish = "stop"
                return
            if len(result.tokens) == self._room:
                result.finish = "length"
                break
            started = time.perf_counter()
            logits = decoder.next_logits([token])
            result.decode_seconds += time.perf_counter() - started
            result.steps += 1
        yield from self._last()

    def _show(self, piece: str) -> Iterator[str]:
        certain = self._stops.push(piece)
        if certain:
            self.result.text += certain
            yield certain

    def _last(self) -> Iterator[str]:
        """Yield what was held back, unless it completes a stop string after all."""
        yield from self._show("" if self._text is None else self._text.finish())
        if self._stops.stopped:
            self.result.finish = "stop"
        held = self._stops.finish()
        if held:
            self.result.text += held
            yield held
