"""What the adapter needs of lm-eval, for where it is not installed: after its interface, not its code."""

from __future__ import annotations

import types
from typing import Any


class LM:
    """Models keep answers in a cache, where somebody gave them one."""

    def __init__(self) -> None:
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *answer: None)


class TemplateLM(LM):
    """Turns pairs of texts into pairs of tokens."""

    def loglikelihood(self, requests: list[Any]) -> Any:
        pairs = []
        for context, continuation in (request.args for request in requests):
            if context:
                before = len(self.tok_encode(context.rstrip()))
                whole = self.tok_encode(context + continuation)
                pairs.append(((context, continuation), whole[:before], whole[before:]))
            else:
                tokens = self.tok_encode(continuation, add_special_tokens=False)
                pairs.append(((context, continuation), [self.prefix_token_id], tokens))
        return self._loglikelihood_tokens(pairs)


def get_rolling_token_windows(
    tokens: list[int], prefix: int, most: int, context: int
) -> list[tuple[list[int], list[int]]]:
    """Every token once, each window as long as it may be."""
    assert context == 1
    whole = [prefix, *tokens]
    ends = [*range(most, len(tokens), most), len(tokens)]
    starts = [0, *ends[:-1]]
    return [(whole[max(0, e - most) : e], tokens[s:e]) for s, e in zip(starts, ends, strict=True)]


def make_disjoint_window(pair: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    """Leave the targets out of the context."""
    return pair[0][: len(pair[0]) - len(pair[1]) + 1], pair[1]


def modules() -> dict[str, types.ModuleType]:
    """Return the modules the adapter imports from; registered models are in lm_eval.api.registry.MODELS."""
    models: dict[str, type] = {}

    def register_model(name: str) -> Any:
        return lambda model: models.setdefault(name, model)

    contents: dict[str, dict[str, Any]] = {
        "lm_eval": {},
        "lm_eval.api": {},
        "lm_eval.api.instance": {"Instance": object},
        "lm_eval.api.model": {"TemplateLM": TemplateLM},
        "lm_eval.api.registry": {"register_model": register_model, "MODELS": models},
        "lm_eval.utils": {
            "get_rolling_token_windows": get_rolling_token_windows,
            "make_disjoint_window": make_disjoint_window,
        },
    }
    made = {}
    for name, values in contents.items():
        made[name] = types.ModuleType(name)
        vars(made[name]).update(values)
    return made
