"""Text from tokens as they come: no half characters, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from tokenizers import Tokenizer

_UNFINISHED = "\ufffd"  # what decoders give for bytes that are no whole character yet
_PATIENCE = 16  # tokens that may wait for their character to become whole
_CONTEXT = 8  # tokens before the text that decide how its first one is written (a space or none)


class TextStream:
    """Turns tokens into text piece by piece; all pieces together are the whole text's decoding.

    Parameters
    ----------
    tokenizer : Tokenizer
    before : sequence of int
        The tokens the text follows; not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = self._clean_tail(before)
        self._shown = len(self._ids)  # tokens whose text is out
        self._starts = [0]  # tokens that begin a character

    def push(self, token: int) -> str:
        """Add a token; return the text that is certain now, perhaps none."""
        self._ids.append(int(token))
        piece = self._pending()
        waiting = len(self._ids) - self._shown < _PATIENCE
        if waiting and (not piece or piece.endswith(_UNFINISHED)):
            return ""
        self._settle()
        return piece

    def finish(self) -> str:
        """Return what was held back: bytes that never became a character."""
        piece = self._pending()
        self._settle()
        return piece

    def _pending(self) -> str:
        # Decoders look at neighbours, so the tokens before are decoded along and cut off again.
        known = self._decode(self._ids[: self._shown])
        whole = self._decode(self._ids)
        same = (a == b for a, b in zip(known, whole, strict=False))
        return whole[sum(takewhile(bool, same)) :]

    def _settle(self) -> None:
        # Cut in the middle of a character, bytes would be read as something else.
        cut = max(start for start in self._starts if start <= max(0, len(self._ids) - _CONTEXT))
        self._ids = self._ids[cut:]
        self._starts = [start - cut for start in self._starts if start >= cut] + [len(self._ids)]
        self._shown = len(self._ids)

    def _clean_tail(self, tokens: Sequence[int]) -> list[int]:
        for count in range(_CONTEXT, _CONTEXT + _PATIENCE):
            tail = list(tokens[-count:])
            if not self._decode(tail).startswith(_UNFINISHED):
                return tail
        return list(tokens)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""


class StopStrings:
    """Ends a text at the first of some strings, which may come in several pieces.

    Parameters
    ----------
    stops : sequence of str
        None of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Add a piece; return what is certainly before any stop string."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return what was held back because a stop string might have begun."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of text that begins stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
