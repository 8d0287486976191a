"""Schemes of single linears, wished for by patterns of their names.

A linear has two names: ours, such as ``layers.3.down``, and that of Hugging Face, such as
``model.layers.3.mlp.down_proj`` (with ``.weight`` or without). A pattern (``*``, ``?``, ``[...]``) may match
any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from omniquant.config.scheme import FLOAT_BITS, QuantConfig
from omniquant.errors import ConfigError

FLOAT = "float"  # instead of a scheme: skipped
Overrides = Mapping[str, str | QuantConfig] | Iterable[str]


def parse_overrides(wishes: Overrides) -> list[tuple[str, QuantConfig | None]]:
    """Return patterns and schemes of texts ``PATTERN=SCHEME``, or of a mapping; None: left in float.

    Raises
    ------
    ConfigError
        If a text has no ``=`` or what follows is no scheme.
    """
    if isinstance(wishes, str):
        raise ConfigError(f"overrides {wishes!r}: expected a list of PATTERN=SCHEME, or a mapping")
    pairs = list(wishes.items()) if isinstance(wishes, Mapping) else [_split(wish) for wish in wishes]
    return [(pattern, _scheme(pattern, wanted)) for pattern, wanted in pairs]


def _split(wish: str) -> tuple[str, str | QuantConfig]:
    pattern, equals, scheme = wish.rpartition("=")
    if not equals or not pattern:
        raise ConfigError(f"override {wish!r}: expected PATTERN=SCHEME, such as 'model.layers.0.*=W8A8'")
    return pattern, scheme


def _scheme(pattern: str, wanted: str | QuantConfig) -> QuantConfig | None:
    if wanted == FLOAT:
        return None
    try:
        own = QuantConfig.parse(wanted) if isinstance(wanted, str) else replace(wanted, overrides=())
    except ConfigError as error:
        raise ConfigError(f"override {pattern!r}: {error}, or {FLOAT}") from None
    if {own.q_bits, own.k_bits, own.v_bits} != {min(own.a_bits, FLOAT_BITS)}:
        raise ConfigError(f"override {pattern!r}: {own.text}: Q, K and V have the bits of the model's scheme")
    if own.sink_tokens:
        raise ConfigError(f"override {pattern!r}: {own.text}: sink tokens are those of the model's scheme")
    return own


def with_overrides(scheme: QuantConfig, wishes: Overrides, names: Mapping[str, Sequence[str]]) -> QuantConfig:
    """Return the scheme with every wish resolved to the linears it names.

    Parameters
    ----------
    scheme : QuantConfig
        Of all others. Q, K and V stay as it says.
    wishes : mapping of str to scheme, or iterable of "PATTERN=SCHEME"
        Where several match, the last one counts. A scheme is complete: without ``g``, one scale a row.
        "float" leaves weights as they are; inputs too, where it covers a whole block.
    names : mapping of str to sequence of str
        Every linear of the model: our name, and that of Hugging Face (of experts, each one's).

    Returns
    -------
    QuantConfig

    Raises
    ------
    ConfigError
        If a pattern matches nothing, or some experts of a block alone, or the inputs of one block would be
        rounded in two ways.
    """
    wanted: dict[str, QuantConfig | None] = dict(scheme.overrides)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ConfigError(f"override {unknown[0]!r} names no linear of the model")
    for pattern, one in parse_overrides(wishes):
        found = [ours for ours, theirs in names.items() if _matches(pattern, ours, theirs)]
        if not found:
            ours, theirs = next(iter(names.items()))
            raise ConfigError(
                f"override {pattern!r} matches no linear; names are such as {ours} or {theirs[0]}"
            )
        wanted |= dict.fromkeys(found, one)
    own: dict[str, QuantConfig] = {}
    for layer in dict.fromkeys(_layer(name) for name in names):
        own |= _block(scheme, wanted, [name for name in names if _layer(name) == layer])
    return replace(scheme, overrides=tuple((name, own[name]) for name in names if name in own))


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _matches(pattern: str, ours: str, theirs: Sequence[str]) -> bool:
    if fnmatchcase(ours, pattern):
        return True
    found = [fnmatchcase(name, pattern) or fnmatchcase(name + ".weight", pattern) for name in theirs]
    if any(found) and not all(found):
        raise ConfigError(
            f"override {pattern!r} matches some experts of {ours}: those of a block share a scheme"
        )
    return all(found)


def _inputs(scheme: QuantConfig) -> tuple[int, bool, bool]:
    return min(scheme.a_bits, FLOAT_BITS), scheme.a_symmetric, scheme.a_full_range


def _differ(own: QuantConfig, scheme: QuantConfig) -> bool:
    return own.uniform() != scheme.uniform() or _inputs(own) != _inputs(scheme)


def _block(
    scheme: QuantConfig, wanted: Mapping[str, QuantConfig | None], names: list[str]
) -> dict[str, QuantConfig]:
    """Return the schemes of one block's linears that differ from that of all.

    Its linears round their inputs alike: norms and attention feed several of them.
    """
    schemes = {name: wanted.get(name, scheme) for name in names}
    rounded = {name: own for name, own in schemes.items() if own is not None}
    first, inputs = next(iter(rounded.items()), ("", QuantConfig(FLOAT_BITS, FLOAT_BITS)))
    for name, own in rounded.items():
        if _inputs(own) != _inputs(inputs):
            raise ConfigError(
                f"{first} with A{inputs.a_bits} and {name} with A{own.a_bits}: the linears of a block share "
                f"their inputs' bits: override the whole block, or give both the same"
            )
    skipped = replace(inputs, w_bits=FLOAT_BITS, group_size=None, w_symmetric=False, overrides=())
    every = {name: skipped if own is None else own for name, own in schemes.items()}
    return {name: own for name, own in every.items() if _differ(own, scheme)}
