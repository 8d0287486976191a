"""The shape of one transformer block, all the C core needs to know of a model family."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from omniquant.errors import ConfigError

Norm = Literal["rms", "layer"]
Mlp = Literal["gated", "plain"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]

_SIZES = ("hidden_size", "ffn_size", "num_heads", "num_kv_heads", "head_dim")
_CHOICES = {"norm": Norm, "mlp": Mlp, "activation": Activation}


@dataclass(frozen=True)
class BlockSpec:
    """One transformer block: sizes, norm, positions, MLP.

    Parameters
    ----------
    hidden_size, ffn_size
        H and F.
    num_heads, num_kv_heads, head_dim
        n, n_kv and d. n is a multiple of n_kv (grouped-query attention); H need not equal n d.
    norm, norm_eps
        RMSNorm or LayerNorm, and the constant under its root.
    rope
        Rotary positions on q and k, in halves as Hugging Face stores them; d must then be even.
    mlp, activation
        ``down(act(gate(x)) * up(x))`` or ``down(act(up(x)))``; gelu is the exact one, by erf.
    rotate_qk, rotate_heads, rotate_down
        Online rotations (``csrc/block/rotation.h``): of q and k behind their positions, over the heads before
        `o`, of the input of `down`. No checkpoint has them, a rotated model does.

    Raises
    ------
    ConfigError
        Naming the field and its value.
    """

    hidden_size: int
    ffn_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm: Norm = "rms"
    norm_eps: float = 1e-5
    rope: bool = True
    mlp: Mlp = "gated"
    activation: Activation = "silu"
    rotate_qk: bool = False
    rotate_heads: bool = False
    rotate_down: bool = False

    def __post_init__(self) -> None:
        for field in _SIZES:
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
                raise ConfigError(f"{field} is {value!r}, expected an integer from 1 to 2^31 - 1")
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in get_args(choices):
                expected = ", ".join(get_args(choices))
                raise ConfigError(f"{field} is {getattr(self, field)!r}, expected one of {expected}")
        if not (math.isfinite(self.norm_eps) and self.norm_eps > 0):
            raise ConfigError(f"norm_eps is {self.norm_eps!r}, expected a finite number above zero")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads is {self.num_heads}, no multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.rope and self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}, rotary positions need an even one")

    def to_core(self) -> dict[str, int | float | bool | str]:
        """Return the fields as the plain dict the C core takes."""
        return asdict(self)
