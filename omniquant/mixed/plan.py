"""From a calibration's wishes for mixed precision to the scheme of every linear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from omniquant.config import QuantConfig
from omniquant.config.overrides import Overrides, parse_overrides, with_overrides
from omniquant.forward import I32
from omniquant.mixed.allocation import Allocation, allocate, check_candidates
from omniquant.models.experts import EXPERT, stored_shapes
from omniquant.models.model import Model
from omniquant.models.registry import adapter_of
from omniquant.models.spec import quantized_shapes


@dataclass(frozen=True)
class Wishes:
    """What is asked of mixed precision, as far as it can be checked without a model.

    Parameters
    ----------
    overrides : mapping of str to scheme, or sequence of "PATTERN=SCHEME"
    average_bits : float or None
        None: bits are chosen by nobody.
    candidates : tuple of int
    """

    overrides: Overrides
    average_bits: float | None
    candidates: tuple[int, ...]

    @classmethod
    def of(cls, overrides: Overrides, average_bits: float | None, candidate_bits: Sequence[int]) -> Wishes:
        """Check wishes; ConfigError where they make no sense."""
        kept = overrides if isinstance(overrides, dict | str) else list(overrides)
        parse_overrides(kept)
        if average_bits is None:
            return cls(kept, None, tuple(candidate_bits))
        return cls(kept, average_bits, check_candidates(average_bits, candidate_bits))


def mixed_scheme(
    model: Model,
    windows: I32,
    scheme: QuantConfig,
    wishes: Wishes,
    *,
    known: Allocation | None,
    threads: int,
    check: Callable[[QuantConfig], None],
    say: Callable[[str], None],
) -> tuple[QuantConfig, Allocation | None]:
    """Return the scheme with overrides and, where a budget is given, with measured bits for all others.

    Parameters
    ----------
    model : Model
    windows : ndarray of int32 [N, T]
    scheme : QuantConfig
    wishes : Wishes
    known : Allocation or None
        Of the run that is resumed.
    threads : int
    check : callable
        Raises where a scheme cannot be taken; asked before anything is measured.
    say : callable
        Told what takes long.

    Raises
    ------
    ConfigError
        As :func:`~omniquant.config.overrides.with_overrides` and :func:`~omniquant.mixed.allocate` say.
    """
    names = linear_names(model)
    scheme = with_overrides(scheme, wishes.overrides, names)
    if wishes.average_bits is None:
        check(scheme)
        return scheme, None
    candidates = wishes.candidates
    # Whatever comes out is a mixture of these.
    every = tuple((name, scheme.with_weights(b)) for name, b in zip(names, candidates, strict=False))
    check(replace(scheme, overrides=scheme.overrides + every))
    if known is None:
        say(f"measuring {len(names)} linears at {', '.join(map(str, candidates))} bits")
    return allocate(model, windows, scheme, wishes.average_bits, candidates, known=known, threads=threads)


def linear_names(model: Model) -> dict[str, tuple[str, ...]]:
    """Map our name of every linear, such as "layers.0.q", to that of Hugging Face, one an expert."""
    adapter = adapter_of(model.config)
    names: dict[str, tuple[str, ...]] = {}
    stored = list(stored_shapes(model.spec))
    for index in range(model.num_layers):
        refs = adapter.block_tensors(model.architecture, index, "safetensors")
        for name in quantized_shapes(model.spec):
            parts = [part for part in stored if part.partition(EXPERT)[0] == name]
            keys = (refs[f"{part}.weight"].key.removesuffix(".weight") for part in parts)
            names[f"layers.{index}.{name}"] = tuple(keys)
    return names
