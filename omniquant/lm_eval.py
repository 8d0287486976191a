"""lm-eval on models and results of this package.

``python -m omniquant.lm_eval run --model omniquant --model_args pretrained=DIR --tasks piqa`` is lm-eval's
own command line with the model "omniquant" registered; in Python, importing this module registers it.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from omniquant.errors import ConfigError
from omniquant.quantized import QuantizedModel
from omniquant.runtime.generation import GenerationOptions
from omniquant.runtime.perplexity import Runtime
from omniquant.runtime.prompt import text_tokens
from omniquant.threads import resolve_threads
from omniquant.zeroshot.evaluate import open_scorer
from omniquant.zeroshot.likelihood import Request, ScoringModel


@register_model("omniquant")
class OmniQuantLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A model or a result directory, as lm-eval runs models.

    Parameters
    ----------
    pretrained : str or model
        A model folder, a .gguf file, "omniquant-tiny", a result's directory, or an opened one of these.
    runtime : {"fake", "integer"}
        How a result runs.
    threads : int, optional
        None: all processors this process may use.
    **ignored
        What lm-eval passes to every model: batch_size, max_batch_size, device.

    Raises
    ------
    ConfigError
        If an argument is unknown, or `runtime` does not fit the model.
    """

    def __init__(
        self,
        pretrained: str | ScoringModel,
        runtime: Runtime = "fake",
        threads: int | None = None,
        **ignored: Any,
    ) -> None:
        super().__init__()
        unknown = set(ignored) - {"batch_size", "max_batch_size", "device"}
        if unknown:
            raise ConfigError(f"lm-eval's model omniquant has no argument {min(unknown)!r}")
        from omniquant.cli.common import open_any

        opened = open_any(pretrained) if isinstance(pretrained, str) else pretrained
        self._threads = resolve_threads(threads)
        self._model, self._score = open_scorer(opened, runtime, self._threads, None)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        eos = self._model.text.eos
        if not eos:
            raise ConfigError(f"{self._model.name} does not say which token ends a text")
        return eos[0]

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text without context: the one that begins texts, else the one that ends."""
        bos = self._model.text.bos
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """The longest text."""
        return self._model.max_positions

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's caches tell models apart by."""
        return self._model.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **ignored: Any) -> list[int]:
        """Return the tokens of a text; None: with the special ones the tokenizer adds by itself."""
        if add_special_tokens is False:
            plain: list[int] = self._model.tokenizer.encode(string, add_special_tokens=False).ids
            return plain
        return text_tokens(self._model, string)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **ignored: Any
    ) -> list[tuple[float, bool]]:
        wanted = [Request(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        scores = [tuple(score) for score in self._score(wanted)]
        for (texts, _, _), score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, score)
        return cast(list[tuple[float, bool]], scores)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, in windows as long as the model takes."""
        windows: list[Request] = []
        counts: list[int] = []
        for (text,) in (request.args for request in requests):
            tokens = self.tok_encode(text, add_special_tokens=False)
            pairs = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            asked = [make_disjoint_window(pair) for pair in pairs]
            windows += [Request(tuple(context), tuple(targets)) for context, targets in asked]
            counts.append(len(asked))
        found = np.array([score.log_likelihood for score in self._score(windows)])
        return [float(part.sum()) for part in np.split(found, np.cumsum(counts)[:-1])]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue texts, greedily unless told otherwise; on packed integers, which only results have."""
        if not isinstance(self._model, QuantizedModel):
            raise ConfigError(f"{self._model.name}: only results of omniquant quantize generate text")
        known = GenerationOptions()
        found = []
        for context, wishes in (request.args for request in requests):
            stop = wishes.get("until", [])
            sampled = wishes.get("do_sample", False)
            generation = self._model.generate(
                context,
                threads=self._threads,
                max_new_tokens=wishes.get("max_gen_toks", known.max_new_tokens),
                temperature=wishes.get("temperature", 1.0) if sampled else 0.0,
                stop=[stop] if isinstance(stop, str) else [text for text in stop if text],
            )
            found.append(generation.text)
            self.cache_hook.add_partial("generate_until", (context, wishes), generation.text)
        return found


def main() -> None:
    """Run lm-eval's command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
