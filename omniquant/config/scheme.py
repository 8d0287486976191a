"""The quantization scheme: how many bits weights, activations, queries, keys and values get."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from omniquant.errors import ConfigError

MAX_SINK_TOKENS = 64
FLOAT_BITS = 16  # this many bits or more: left in floating point
# Of a block: a plain MLP has no gate; beside experts there may be an MLP all tokens take.
LINEARS = ("q", "k", "v", "o", "gate", "up", "down", "shared_gate", "shared_up", "shared_down")
ROUTERS = ("router", "shared_router")  # these stay in float whatever the scheme

_SCHEME = re.compile(
    r"W(?P<w>\d+)(?P<w_mode>s?)A(?P<a>\d+)(?P<a_mode>(?:sf?)?)(?P<tail>(?:(?:KV|Q|K|V|SINK|G)\d+)*)",
    re.IGNORECASE | re.ASCII,
)
_TAIL = re.compile(r"(KV|Q|K|V|SINK|G)(\d+)", re.IGNORECASE | re.ASCII)
_ALLOWED = (
    "W<bits>[s]A<bits>[s|sf][KV<bits>][sink<tokens>][g<group>], bits 2 to 8 or 16 (activations also 32), "
    "s symmetric, such as W4A4, W4A4KV16, W8sA8sfKV16, W3A16 or W2A16g64"
)


@dataclass(frozen=True)
class LinearScheme:
    """What the weights of one linear are rounded to.

    Parameters
    ----------
    bits : int
        2 to 8; 16: left in floating point.
    group_size : int or None
        Consecutive inputs of a row that share a scale; None: one scale a row.
    symmetric : bool
        Without zero points.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = False

    @property
    def quantized(self) -> bool:
        """Whether the weights become integers."""
        return self.bits < FLOAT_BITS

    def groups(self, inputs: int) -> int:
        """Return the number of groups a row of `inputs` weights has (the last one may be shorter)."""
        return 1 if self.group_size is None else -(-inputs // self.group_size)

    def to_core(self, scale_bits: int = 0) -> dict[str, int | bool]:
        """Return the fields as the core takes them."""
        return {
            "bits": self.bits,
            "group_size": self.group_size or 0,
            "symmetric": self.symmetric,
            "scale_bits": scale_bits,
        }


BlockScheme = Mapping[str, LinearScheme]  # of every name of LINEARS


@dataclass(frozen=True)
class QuantConfig:
    """Bits and groups of one quantization scheme.

    Parameters
    ----------
    w_bits : int
        Bits of the weights, 2 to 8; 16 leaves them in floating point.
    a_bits : int
        Bits of the inputs of every linear, 2 to 8, quantized per token at run time; 16 or 32: float.
    group_size : int or None
        Consecutive inputs of a row that share a scale; None: one scale a row (per channel).
    w_symmetric, a_symmetric : bool
        Symmetric quantizers (no zero point).
    q_bits, k_bits, v_bits : int or None
        Bits of queries, keys (both after RoPE) and values; None: the activation bits.
    sink_tokens : int
        Keys and values of a text's first tokens that stay in float, at most 64: attention sinks, which nearly
        every token attends to (KVQuant, arXiv 2401.18079).
    a_full_range : bool
        Symmetric activations with step max|x| / (2^(bits-1) - 1/2), as compressed-tensors has it.
    overrides : tuple of (str, QuantConfig)
        Linears that get another scheme, by names such as "layers.0.q"; of it weights and, where it is that of
        a whole block, inputs. Made by :func:`omniquant.config.overrides.with_overrides`.

    Raises
    ------
    ConfigError
        If a number of bits or the group size makes no sense.
    """

    w_bits: int
    a_bits: int
    group_size: int | None = None
    w_symmetric: bool = False
    a_symmetric: bool = False
    q_bits: int | None = None
    k_bits: int | None = None
    v_bits: int | None = None
    a_full_range: bool = False
    sink_tokens: int = 0
    overrides: tuple[tuple[str, QuantConfig], ...] = ()

    def __post_init__(self) -> None:
        default = min(self.a_bits, FLOAT_BITS)
        for name in ("q_bits", "k_bits", "v_bits"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        _check_bits("weights", self.w_bits, (16,))
        _check_bits("activations", self.a_bits, (16, 32))
        for what in ("q", "k", "v"):
            _check_bits(what.upper(), getattr(self, f"{what}_bits"), (16,))
        _check_group(self.group_size, self.w_bits)
        _check_sinks(self.sink_tokens, quantized=min(self.k_bits or 0, self.v_bits or 0) < FLOAT_BITS)
        if self.a_full_range and not self.a_symmetric:
            raise ConfigError("a_full_range: only symmetric activations have a full-range step")

    @classmethod
    def parse(cls, text: str) -> QuantConfig:
        """Read a scheme such as ``W4A4``, ``W3A16``, ``W2A16g64``, ``W4A4KV16`` or ``W8sA8s``.

        ``W4A4`` alone quantizes Q, K and V at the activation bits, as the papers do. ``KV16`` leaves Q, K
        and V in floating point; ``KV8`` or ``KV4`` set K and V apart and keep Q at the activation bits
        (``Q8KV4`` sets all); ``sink4`` keeps K and V of a text's first 4 tokens in float. An ``s`` behind
        the bits makes the quantizer symmetric. ``str`` gives the canonical text back.

        Parameters
        ----------
        text : str
            The scheme; upper or lower case.

        Returns
        -------
        QuantConfig

        Raises
        ------
        ConfigError
            If the text is no scheme; the message names the text and what is allowed.
        """
        match = _SCHEME.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ConfigError(f"scheme {text!r} is not understood: expected {_ALLOWED}")
        try:
            return cls._from_match(match)
        except ConfigError as error:
            raise ConfigError(f"scheme {text!r}: {error}; allowed: {_ALLOWED}") from None

    @classmethod
    def _from_match(cls, match: re.Match[str]) -> QuantConfig:
        tail: dict[str, int] = {}
        for key, value in _TAIL.findall(match["tail"]):
            for name in ("K", "V") if key.upper() == "KV" else (key.upper(),):
                if name in tail:
                    raise ConfigError(f"{name} is given twice")
                tail[name] = int(value)
        all_float = tail.get("K") == tail.get("V") == FLOAT_BITS
        return cls(
            w_bits=int(match["w"]),
            a_bits=int(match["a"]),
            group_size=tail.get("G"),
            w_symmetric=bool(match["w_mode"]),
            a_symmetric=bool(match["a_mode"]),
            q_bits=tail.get("Q", FLOAT_BITS if all_float else None),
            k_bits=tail.get("K"),
            v_bits=tail.get("V"),
            sink_tokens=tail.get("SINK", 0),
            a_full_range=len(match["a_mode"]) > 1,
        )

    def __str__(self) -> str:
        return self.text + (" mixed" if self.overrides else "")

    @property
    def text(self) -> str:
        """The scheme without its overrides, as :meth:`parse` reads it."""
        a_mode = ("s" if self.a_symmetric else "") + ("f" if self.a_full_range else "")
        group = "" if self.group_size is None else f"g{self.group_size}"
        weights = f"W{self.w_bits}{'s' if self.w_symmetric else ''}"
        sinks = f"sink{self.sink_tokens}" if self.sink_tokens else ""
        return f"{weights}A{self.a_bits}{a_mode}{self._attention_text()}{sinks}{group}"

    def _attention_text(self) -> str:
        default = min(self.a_bits, FLOAT_BITS)
        if self.q_bits == self.k_bits == self.v_bits == default:
            return ""
        same = self.k_bits == self.v_bits
        q_default = FLOAT_BITS if same and self.k_bits == FLOAT_BITS else default
        q = "" if self.q_bits == q_default else f"Q{self.q_bits}"
        return q + (f"KV{self.k_bits}" if same else f"K{self.k_bits}V{self.v_bits}")

    @property
    def weight_only(self) -> bool:
        """Whether activations, Q, K and V all stay in floating point."""
        inputs = (scheme.a_bits for scheme in self.schemes)
        return all(bits is not None and bits >= FLOAT_BITS for bits in (*inputs, *self._attention_bits()))

    @property
    def finer_than_bytes(self) -> bool:
        """Whether operands of 8 bits would drown its error: weights above 4 bits, inputs in float."""
        bits = (scheme.w_bits for scheme in self.schemes if scheme.quantizes_weights)
        return self.weight_only and max(bits, default=0) > 4

    @property
    def quantizes_weights(self) -> bool:
        """Whether weights become integers, of all linears or of some."""
        return any(scheme.w_bits < FLOAT_BITS for scheme in self.schemes)

    @property
    def schemes(self) -> tuple[QuantConfig, ...]:
        """The scheme itself, and those of its overrides."""
        return (self, *(own for _, own in self.overrides))

    @cached_property
    def _own(self) -> dict[str, QuantConfig]:
        return dict(self.overrides)

    def of_linear(self, layer: int, name: str) -> QuantConfig:
        """Return the scheme of one linear: the one place where overrides are looked up."""
        return self._own.get(f"layers.{layer}.{name}", self)

    def block(self, layer: int) -> BlockScheme:
        """Return what the weights of every linear of a block are rounded to."""
        schemes = {name: self.of_linear(layer, name).uniform() for name in LINEARS}
        return schemes | dict.fromkeys(ROUTERS, LinearScheme(FLOAT_BITS))

    def uniform(self) -> LinearScheme:
        """Return what weights are rounded to where no override says otherwise."""
        return LinearScheme(self.w_bits, self.group_size, self.w_symmetric)

    def with_weights(self, bits: int) -> QuantConfig:
        """Return the scheme with other bits of the weights, and no overrides."""
        group = None if bits >= FLOAT_BITS else self.group_size
        return replace(self, w_bits=bits, group_size=group, overrides=())

    def _attention_bits(self) -> tuple[int | None, int | None, int | None]:
        return self.q_bits, self.k_bits, self.v_bits

    def activation(self, layer: int | None = None) -> dict[str, int | bool]:
        """Return the activation dict of the core (`block_forward`, `calibrate_block`).

        Parameters
        ----------
        layer : int, optional
            Of this block, whose inputs an override may round otherwise; None: as the scheme says.
        """
        q, k, v = (int(bits or FLOAT_BITS) for bits in self._attention_bits())
        inputs = self if layer is None else self.of_linear(layer, "q")  # all linears of a block agree
        return {
            "bits": inputs.a_bits,
            "q_bits": q,
            "k_bits": k,
            "v_bits": v,
            "symmetric": inputs.a_symmetric,
            "full_range": inputs.a_full_range,
            "sink_tokens": self.sink_tokens,
        }

    def groups(self, inputs: int) -> int:
        """Return the number of groups a row of `inputs` weights has (the last one may be shorter)."""
        return self.uniform().groups(inputs)


def _check_bits(what: str, bits: object, floats: tuple[int, ...]) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not (2 <= bits <= 8 or bits in floats):
        raise ConfigError(
            f"{what} cannot have {bits} bits (2 to 8, or {' or '.join(map(str, floats))} for float)"
        )


def _check_sinks(tokens: object, *, quantized: bool) -> None:
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= MAX_SINK_TOKENS:
        raise ConfigError(f"sink_tokens must be 0 to {MAX_SINK_TOKENS}, got {tokens}")
    if tokens and not quantized:
        raise ConfigError(f"sink_tokens is {tokens}, but K and V are in float already")


def _check_group(group_size: object, w_bits: int) -> None:
    if group_size is None:
        return
    if isinstance(group_size, bool) or not isinstance(group_size, int) or not 1 <= group_size < 2**31:
        raise ConfigError(f"group size {group_size} is not a positive number of weights")
    if w_bits >= FLOAT_BITS:
        raise ConfigError(f"group size {group_size} with weights left in float")
