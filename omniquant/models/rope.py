"""Rotary position embeddings (Su et al. 2021): inverse frequencies and their cos and sin tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import F32
from omniquant.checkpoint.text import shown
from omniquant.errors import CheckpointError

F64 = npt.NDArray[np.float64]

_DEFAULT_THETA = 10000.0
_LLAMA3_POSITIONS = 8192  # what LLaMA 3 was trained with, before its later models stretched it


@dataclass(frozen=True)
class Llama3Scaling:
    """The wavelength-dependent stretching of LLaMA 3.1."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True)
class FrequencyFactors:
    """What each pair's frequency is divided by [d/2], as GGUF files store a scaling of any kind."""

    factors: tuple[float, ...]


@dataclass(frozen=True)
class Rope:
    """Rotary positions of a model.

    Parameters
    ----------
    theta
        The base of the geometric row of frequencies.
    scaling
        None, a factor that divides every frequency (linear), LLaMA 3's rule, or a factor a frequency.
    """

    theta: float = _DEFAULT_THETA
    scaling: float | Llama3Scaling | FrequencyFactors | None = None

    def inverse_frequencies(self, rotary_dim: int) -> F64:
        """Return the angle a position advances each of the r/2 pairs by: float64 [rotary_dim / 2]."""
        plain = self.theta ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
        if self.scaling is None:
            return plain
        if isinstance(self.scaling, Llama3Scaling):
            return _llama3(plain, self.scaling)
        if isinstance(self.scaling, FrequencyFactors):
            return plain / np.array(self.scaling.factors, np.float64)
        return plain / self.scaling


def _llama3(frequencies: F64, scaling: Llama3Scaling) -> F64:
    # Fast pairs stay, slow ones are stretched by the factor, in between the two are mixed.
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def rope_tables(inverse_frequencies: F64, positions: int) -> tuple[F32, F32]:
    """Return cos and sin of position times frequency, computed in double: float32 [positions, d / 2]."""
    angles = np.arange(positions, dtype=np.float64)[:, None] * inverse_frequencies[None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _llama3_scaling(section: Fields, max_positions: int) -> Llama3Scaling:
    scaling = Llama3Scaling(
        factor=section.positive("factor"),
        low_freq_factor=section.positive("low_freq_factor"),
        high_freq_factor=section.positive("high_freq_factor"),
        original_positions=section.integer("original_max_position_embeddings", max_positions),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise CheckpointError(
            f"{section.where}: high_freq_factor is {scaling.high_freq_factor}, "
            f"not above low_freq_factor {scaling.low_freq_factor}"
        )
    return scaling


def rope_from_factors(theta: float, factors: F32, head_dim: int, where: str) -> dict[str, object]:
    """Return the ``rope_parameters`` of a config.json for the factors a GGUF file divides frequencies by.

    LLaMA 3's rule is recognised by its values (its models differ in the factor alone), so that others read
    the configuration too; whatever else becomes the kind "factors", which is ours.

    Raises
    ------
    CheckpointError
        If they are not d/2 finite numbers above zero.
    """
    values = np.asarray(factors, np.float64)
    if values.shape != (head_dim // 2,) or not (np.isfinite(values) & (values > 0)).all():
        raise CheckpointError(f"{where} is no list of {head_dim // 2} finite numbers above zero")
    rule = Llama3Scaling(float(values.max()), 1.0, 4.0, _LLAMA3_POSITIONS)
    plain = Rope(theta).inverse_frequencies(head_dim)
    if np.allclose(plain / values, _llama3(plain, rule), rtol=1e-5, atol=0):
        return {
            "rope_theta": theta,
            "rope_type": "llama3",
            "factor": rule.factor,
            "low_freq_factor": rule.low_freq_factor,
            "high_freq_factor": rule.high_freq_factor,
            "original_max_position_embeddings": rule.original_positions,
        }
    return {"rope_theta": theta, "rope_type": "factors", "factors": values.tolist()}


def _frequency_factors(section: Fields, head_dim: int) -> FrequencyFactors:
    values = section.values.get("factors")
    numbers = isinstance(values, list) and all(
        isinstance(value, float | int) and 0 < value < 1e30 for value in values
    )
    if not isinstance(values, list) or not numbers or len(values) != head_dim // 2:
        raise section.fail("factors", f"{head_dim // 2} numbers above zero")
    return FrequencyFactors(tuple(float(value) for value in values))


def _scaling(
    section: Fields, max_positions: int, head_dim: int
) -> float | Llama3Scaling | FrequencyFactors | None:
    # Older configurations call the kind `type`.
    kind = section.text("rope_type", section.text("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return section.positive("factor")
    if kind == "llama3":
        return _llama3_scaling(section, max_positions)
    if kind == "factors":
        return _frequency_factors(section, head_dim)
    raise UnsupportedCheckpointError(
        f"{section.where}: rope_type is {shown(kind)}, supported are default, linear and llama3"
    )


def partial_rotary_factor(config: Fields, default: float = 1.0) -> float:
    """Return the share of each head that rotates."""
    for place in (config.section("rope_parameters"), config, config.section("rope_scaling")):
        for name in ("partial_rotary_factor", "rotary_pct"):
            if place is not None and place.has(name):
                return place.positive(name)
    return default


def rotary_dim_of(config: Fields, head_dim: int, default: float) -> int:
    """Return the dims of each head that rotate, as a spec has them: 0 where all do."""
    rotating = int(head_dim * partial_rotary_factor(config, default))
    return 0 if rotating == head_dim else rotating


def rope_from_config(config: Fields, max_positions: int, rotary_dim: int) -> Rope:
    """Read the rotary positions of a config.json.

    Newer ones hold everything in ``rope_parameters``, older ones ``rope_theta`` at the top and the rest
    in ``rope_scaling``; 10000 is the base where none is named.

    Raises
    ------
    UnsupportedCheckpointError
        If the scaling is of another kind than linear or llama3.
    CheckpointError
        If a field is missing or impossible, or the two places name different bases.
    """
    newer = config.section("rope_parameters")
    section = newer or config.section("rope_scaling") or Fields({}, config.where)
    thetas = [place.positive("rope_theta") for place in (config, newer) if place and place.has("rope_theta")]
    if len(set(thetas)) > 1:
        raise CheckpointError(
            f"{config.where}: rope_theta is {thetas[0]} at the top but {thetas[1]} in rope_parameters"
        )
    return Rope(thetas[0] if thetas else _DEFAULT_THETA, _scaling(section, max_positions, rotary_dim))
