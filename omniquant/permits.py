"""Which learned maps a block permits: what follows from its spec and its biases, whatever the family."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import asdict, dataclass
from typing import Any

from omniquant.errors import UnsupportedError
from omniquant.models.adapter import Architecture
from omniquant.models.rotated import Rotation
from omniquant.models.spec import BlockSpec


@dataclass(frozen=True)
class Permission:
    """What a block permits at one site.

    Parameters
    ----------
    site : str
        Between which linears, or a norm and linears.
    exact : tuple of str
        Maps with which the block computes the same while nothing is quantized.
    approximate : tuple of str
        Maps that change what it computes, and are learned all the same.
    shift : bool
        A shift goes with the map: whatever makes the site's values has a bias, and so have all its readers.
    why : str
        Why there are no maps; empty where there are.
    """

    site: str
    exact: tuple[str, ...] = ()
    approximate: tuple[str, ...] = ()
    shift: bool = False
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.why:
            return f"{self.site}: none, {self.why}"
        maps = " or ".join(self.exact)
        about = f"; approximate: {' or '.join(self.approximate)}" if self.approximate else ""
        return f"{self.site}: {maps}{about}{'; with shifts' if self.shift else ''}"


_SCALES = "one scale a channel"
_NOT_BEHIND_NORM2 = ("q", "k", "v", "o", "down", "shared_down")


def permitted_maps(spec: BlockSpec, biases: Set[str]) -> list[Permission]:
    """Return what a block permits at every site, in the order of the forward pass.

    Parameters
    ----------
    spec : BlockSpec
    biases : set of str
        The linears and norms that have a bias, by our names.
    """
    mlp = [name for name in spec.linear_shapes() if name not in _NOT_BEHIND_NORM2]
    shared = spec.residual == "shared"
    sites = [_behind_norm("norm1", ["q", "k", "v", *(mlp if shared else ())], biases)]
    heads = ("one scale a channel and key/value head", "a full matrix a key/value head")
    sites += [_query_key(spec), Permission("v -> o", heads, shift={"v", "o"} <= biases)]
    if not shared:
        sites.append(_behind_norm("norm2", mlp, biases))
    return [*sites, _up_down(spec), _inputs(spec), _rotations(spec)]


def _behind_norm(norm: str, readers: list[str], biases: Set[str]) -> Permission:
    maps = (_SCALES, "a full matrix, online")
    return Permission(f"{norm} -> {', '.join(readers)}", maps, shift={norm, *readers} <= biases)


def _query_key(spec: BlockSpec) -> Permission:
    free = ("one scale a channel and key/value head", "a full matrix a key/value head")
    if spec.head_norms:
        return Permission("q <-> k", why="norms of the heads of q and k stand between")
    if not spec.rope:
        return Permission("q <-> k", free)
    exact = ("one scale a frequency pair and key/value head", "2 x 2 blocks that commute with the rotations")
    return Permission("q <-> k", exact, free)


def _up_down(spec: BlockSpec) -> Permission:
    if spec.num_experts:
        return Permission("up -> down", why="experts share no scales")
    if spec.mlp != "gated":
        return Permission("up -> down", why=f"{spec.activation} stands between")
    return Permission("up -> down", (_SCALES,))


def _inputs(spec: BlockSpec) -> Permission:
    site = "inputs of linears"
    if spec.residual == "shared":
        return Permission(site, why="the MLP shares its norm with the attention")
    if spec.num_experts:
        return Permission(site, why="experts have no maps of their own")
    return Permission(site, ("a Kronecker product of two matrices, online",))


def _rotations(spec: BlockSpec) -> Permission:
    site = "residual stream"
    if spec.norm == "layer":
        return Permission(site, why="a LayerNorm subtracts the mean, which no rotation keeps")
    if spec.post_norms:
        return Permission(site, why="norms stand behind the attention and the MLP")
    return Permission(site, ("a rotation",))


def permits_online(architecture: Architecture) -> bool:
    """Tell whether a model's blocks take rotations and Kronecker maps of their inputs."""
    if _inputs(architecture.spec).why:
        return False
    try:
        Rotation().architecture(architecture)
    except UnsupportedError:
        return False
    return True
