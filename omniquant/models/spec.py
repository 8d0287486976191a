"""The shape of one transformer block, all the C core needs to know of a model family."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from omniquant.config.scheme import ROUTERS
from omniquant.errors import ConfigError

Norm = Literal["rms", "layer"]
Mlp = Literal["gated", "plain"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Residual = Literal["sequential", "parallel", "shared"]

_SIZES = ("hidden_size", "ffn_size", "num_heads", "num_kv_heads", "head_dim")
_CHOICES = {"norm": Norm, "mlp": Mlp, "activation": Activation, "residual": Residual}


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
    rotary_dim
        Dims of each head that rotate, the first ones; 0: all.
    residual
        What the MLP reads: "sequential", norm2 of x plus the attention; "parallel", norm2 of x; "shared",
        norm1 of x, as q, k and v do.
    head_norms
        A norm of every head of q and k, behind the linear and before the rotation: "q_norm" and "k_norm" [d].
    post_norms
        A norm of what the attention and the MLP add: "post1" and "post2" [H].
    attention_scale
        Of the products of q and k; 0: 1 / sqrt(d).
    score_cap
        Scores become cap tanh(score / cap); 0: they stay.
    window
        Tokens a token sees, itself included; 0: all before it.
    alibi
        Scores fall with the distance, by a slope a head (Press et al. 2022, arXiv 2108.12409).
    num_experts, experts_per_token
        E MLPs of F in place of one, of which a token takes the likeliest few by the softmax of a router in
        float (Shazeer et al. 2017, arXiv 1701.06538); 0: one MLP. Their matrices are stacked by rows.
    normalized_experts
        The probabilities of those a token takes are made to sum to 1.
    shared_ffn_size
        Width of an MLP beside them that all tokens take, by the sigmoid of a router of its own; 0: none.
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
    rotary_dim: int = 0
    residual: Residual = "sequential"
    head_norms: bool = False
    post_norms: bool = False
    attention_scale: float = 0.0
    score_cap: float = 0.0
    window: int = 0
    alibi: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    normalized_experts: bool = False
    shared_ffn_size: int = 0
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
        if self.rope and (self.rotary % 2 or not 0 < self.rotary <= self.head_dim):
            name = "rotary_dim" if self.rotary_dim else "head_dim"
            raise ConfigError(f"{name} is {self.rotary}, rotary positions need an even one within the head")
        _check_experts(self)
        for field in ("attention_scale", "score_cap", "window"):
            value = getattr(self, field)
            if isinstance(value, bool) or not (0 <= value < 2**31):
                raise ConfigError(f"{field} is {value!r}, expected a number of at least 0")

    @property
    def rotary(self) -> int:
        """Dims of each head that rotate."""
        return self.rotary_dim or self.head_dim

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Return (out, in) of every linear, in the order of the forward pass."""
        hidden, ffn = self.hidden_size, self.ffn_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
        stacked = max(1, self.num_experts)
        shapes["gate"] = shapes["up"] = (stacked * ffn, hidden)
        shapes["down"] = (stacked * hidden, ffn)
        if self.num_experts:
            shapes["router"] = (self.num_experts, hidden)
        if self.shared_ffn_size:
            shared = self.shared_ffn_size
            shapes |= {"shared_gate": (shared, hidden), "shared_up": (shared, hidden)}
            shapes |= {"shared_down": (hidden, shared), "shared_router": (1, hidden)}
        if self.mlp == "plain":
            shapes = {name: shape for name, shape in shapes.items() if name not in ("gate", "shared_gate")}
        return shapes

    def norm_widths(self) -> dict[str, int]:
        """Return the width of every norm."""
        names = ["norm1"] if self.residual == "shared" else ["norm1", "norm2"]
        names += ["post1", "post2"] if self.post_norms else []
        heads = ("q_norm", "k_norm") if self.head_norms else ()
        return dict.fromkeys(names, self.hidden_size) | dict.fromkeys(heads, self.head_dim)

    def map_facts(self) -> dict[str, bool]:
        """Return what decides which maps a block permits, as :func:`omniquant.config.core_options` asks."""
        return {
            "rope": self.rope,
            "gated": self.mlp == "gated",
            "head_norms": self.head_norms,
            "experts": self.num_experts > 0,
        }

    def extras(self) -> dict[str, object]:
        """Return the fields in which the block differs from LLaMA's kind."""
        return {k: v for k, v in asdict(self).items() if k in _EXTRAS and v != _EXTRAS[k]}

    def input_factors(self) -> dict[str, tuple[int, int]]:
        """Return the sizes (a, b) of the factors of a Kronecker map on each input of linears, a b its width.

        Heads and their width before `o`, elsewhere the divisors nearest to the root.
        """
        norm, down = _factors(self.hidden_size), _factors(self.ffn_size)
        second = {} if self.residual == "shared" else {"norm2": norm}
        return {"norm1": norm, "o": (self.num_heads, self.head_dim), **second, "down": down}

    def to_core(self) -> dict[str, int | float | bool | str]:
        """Return the fields as the plain dict the C core takes; what a block does without is left out."""
        off = _EXTRAS | dict.fromkeys(_ROTATIONS, False)
        return {k: v for k, v in asdict(self).items() if k not in off or v != off[k]}


_ROTATIONS = ("rotate_qk", "rotate_heads", "rotate_down")
# Fields of blocks beyond LLaMA's kind, and what they are in one of that kind.
_EXTRAS = {
    "rotary_dim": 0,
    "residual": "sequential",
    "head_norms": False,
    "post_norms": False,
    "attention_scale": 0.0,
    "score_cap": 0.0,
    "window": 0,
    "alibi": False,
    "num_experts": 0,
    "experts_per_token": 0,
    "normalized_experts": False,
    "shared_ffn_size": 0,
}

MOST_EXPERTS = 4096
# Those of which every expert has one.
EXPERTS = ("gate", "up", "down")


def quantized_shapes(spec: BlockSpec) -> dict[str, tuple[int, int]]:
    """Return (out, in) of every linear but routers, in the order of the forward pass."""
    return {name: shape for name, shape in spec.linear_shapes().items() if name not in ROUTERS}


def _check_experts(spec: BlockSpec) -> None:
    for field in ("num_experts", "experts_per_token", "shared_ffn_size"):
        value = getattr(spec, field)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            raise ConfigError(f"{field} is {value!r}, expected an integer of at least 0")
    if spec.num_experts > MOST_EXPERTS:  # a table of tensors as long as a file pleases would be made
        raise ConfigError(f"num_experts is {spec.num_experts}, expected at most {MOST_EXPERTS}")
    least = min(1, spec.num_experts)
    if not least <= spec.experts_per_token <= spec.num_experts:
        raise ConfigError(
            f"experts_per_token is {spec.experts_per_token}, "
            f"expected {least} to num_experts {spec.num_experts}"
        )
    if spec.shared_ffn_size and not spec.num_experts:
        raise ConfigError(f"shared_ffn_size is {spec.shared_ffn_size} in a block without experts")


def _factors(width: int) -> tuple[int, int]:
    left = max(a for a in range(1, math.isqrt(width) + 1) if width % a == 0)
    return left, width // left
