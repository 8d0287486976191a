"""Texts that begin alike: what they share is run once, and each of them from where it differs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from omniquant.forward import TOKENS_AT_ONCE

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Text:
    """A text among others.

    Parameters
    ----------
    tokens : tuple of int
        All of it.
    shared : int
        How many of them are also the first ones of the last text before that shares none, its root.
    """

    tokens: Tokens
    shared: int = 0

    @property
    def own(self) -> Tokens:
        """The tokens that run for this text, at least one."""
        return self.tokens[self.shared :]


def common_length(first: Tokens, second: Tokens) -> int:
    """Return the length of the common beginning."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def share_beginnings(texts: Iterable[Tokens]) -> list[Text]:
    """Order distinct texts so that what they begin with is shared.

    In sorted order, a text becomes a root where the next one gains more tokens by that than it costs, or
    where a root has so many texts already that they fill a call of the core.

    Parameters
    ----------
    texts : iterable of tuple of int
        None of them empty.

    Returns
    -------
    list of Text
        The first one is a root.
    """
    ordered = sorted(texts)
    found: list[Text] = []
    root: Tokens = ()
    held = 0  # tokens run for the root and what shares with it
    for tokens, following in zip(ordered, [*ordered[1:], ()], strict=True):
        shared = min(common_length(root, tokens), len(tokens) - 1)
        gained = common_length(tokens, following) - shared
        if gained > shared or held + len(tokens) - shared > TOKENS_AT_ONCE:
            root, shared, held = tokens, 0, 0
        held += len(tokens) - shared
        found.append(Text(tokens, shared))
    return found
