"""What a scheme and a method mean for one model: maps, run-time cost, bits a weight."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from omniquant.config import CalibrationOptions, QuantConfig
from omniquant.config.core import core_qk_map
from omniquant.config.scheme import LinearScheme
from omniquant.models.rotated import rotation_cost
from omniquant.models.spec import BlockSpec, quantized_shapes

_SCALE_BITS = 32  # scales are stored as float32
_ZERO_POINT_BITS = 8


def counted(count: int, noun: str) -> str:
    """Return "1 epoch", "20 epochs"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# What a line about a method tells where it is not the method's default, which no scheme changes.
_NOTED = (
    "rounding", "start", "rotation", "input_map", "lac", "loss", "sinks", "look_ahead",
    "embedding_bits", "head_bits", "target",
)  # fmt: skip


def described_choices(options: CalibrationOptions) -> str:
    """Return what a method does beyond its defaults, as " (rounding learned, start search)"."""
    usual = CalibrationOptions.for_method(options.method, QuantConfig.parse("W4A16"))
    have = ((name, getattr(options, name)) for name in _NOTED)
    text = ", ".join(f"{name} {value}" for name, value in have if value != getattr(usual, name))
    return f" ({text})" if text else ""


@dataclass(frozen=True)
class MapDescription:
    """One kind of rotation or learned map.

    Parameters
    ----------
    site : str
        Where it stands.
    map : str
        What it is.
    exact : bool
        Whether the block computes the same with it while nothing is quantized.
    multiply_adds : int
        What it adds to a block at run time, a token; 0: it folds into the weights.
    """

    site: str
    map: str
    exact: bool
    multiply_adds: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        cost = (
            f", online: {self.multiply_adds} multiply-adds a token and block, an operator of its own"
            if self.multiply_adds
            else ", folded"
        )
        return f"{self.site}: {self.map}, {'exact' if self.exact else 'APPROXIMATE'}{cost}"


_QK_NAMES = {
    "tied": "one scale a frequency pair and key/value head",
    "rotation": "2 x 2 blocks that commute with the rotations, a key/value head",
    "scale": "one scale a channel and key/value head",
    "full": "a full matrix a key/value head",
}


def describe_rotations(options: CalibrationOptions, spec: BlockSpec) -> list[MapDescription]:
    """Return the fixed rotations of a calibration; `spec` is the rotated model's."""
    maps = []
    heads, d = spec.num_heads, spec.head_dim
    if options.rotation != "none":
        maps.append(MapDescription("residual stream", "a rotation", True))
        maps.append(MapDescription("v -> o", "a rotation of each head", True))
    if spec.rotate_qk:
        cost = (heads + spec.num_kv_heads) * rotation_cost(d)
        maps.append(MapDescription("q and k", "a rotation of each head", True, cost))
    if spec.rotate_heads:
        maps.append(MapDescription("before o", "a rotation over the heads", True, d * rotation_cost(heads)))
    if spec.rotate_down:
        maps.append(MapDescription("before down", "a rotation", True, rotation_cost(spec.ffn_size)))
    return maps


def describe_maps(options: CalibrationOptions, spec: BlockSpec) -> list[MapDescription]:
    """Return every rotation and every learned map of a calibration."""
    hidden, norms = spec.hidden_size, 1 if spec.residual == "shared" else 2
    maps = describe_rotations(options, spec)
    if options.norm_map == "diagonal":
        maps.append(MapDescription("norm -> linears", "one scale a channel", True))
    if options.norm_map == "online":
        # One product with the inverse behind each norm.
        maps.append(MapDescription("norm -> linears", "a full matrix", True, norms * hidden * hidden))
    if options.input_map == "kronecker":
        cost = sum(a * b * (a + b) for a, b in spec.input_factors().values())
        maps.append(MapDescription("inputs of linears", "a Kronecker product of two matrices", True, cost))
    if options.vo_map != "none":
        what, each = (
            ("one scale a channel", " and") if options.vo_map == "diagonal" else ("a full matrix", " a")
        )
        maps.append(MapDescription("v -> o", f"{what}{each} key/value head", True))
    qk = core_qk_map(options, spec.rope, spec.head_norms)
    if qk != "none":
        exact = not spec.rope or qk in ("tied", "rotation")
        maps.append(MapDescription("q <-> k", _QK_NAMES[qk], exact))
    if options.up_down and spec.mlp == "gated" and not spec.num_experts:
        maps.append(MapDescription("up -> down", "one scale a channel", True))
    return maps


def linear_parameters(spec: BlockSpec) -> int:
    """Return the number of weights of the linears of a block, routers aside, which stay in float."""
    return sum(rows * columns for rows, columns in quantized_shapes(spec).values())


def bits_per_weight(scheme: QuantConfig, spec: BlockSpec, num_layers: int) -> float:
    """Return the bits a weight of the linears takes, scales (32 bits) and zero points (8 bits) counted.

    Weights in float count 32 bits.
    """
    shapes = quantized_shapes(spec)
    bits = sum(
        linear_bits(linears[name], *shape)
        for linears in map(scheme.block, range(num_layers))
        for name, shape in shapes.items()
    )
    return bits / (num_layers * linear_parameters(spec))


def describe_linears(
    scheme: QuantConfig, spec: BlockSpec, num_layers: int
) -> dict[str, dict[str, str | float]]:
    """Return scheme, bits of the codes (or "float") and all bits a weight of every linear, by our names."""
    described: dict[str, dict[str, str | float]] = {}
    for layer in range(num_layers):
        linears = scheme.block(layer)
        for name, (rows, columns) in quantized_shapes(spec).items():
            described[f"layers.{layer}.{name}"] = {
                "scheme": scheme.of_linear(layer, name).text,
                "bits": str(linears[name].bits) if linears[name].quantized else "float",
                "bits_per_weight": linear_bits(linears[name], rows, columns) / (rows * columns),
            }
    return described


def linear_bits(linear: LinearScheme, rows: int, columns: int) -> int:
    """Return the bits one linear takes."""
    if not linear.quantized:
        return 32 * rows * columns
    extra = _SCALE_BITS + (0 if linear.symmetric else _ZERO_POINT_BITS)
    return rows * (columns * linear.bits + linear.groups(columns) * extra)
