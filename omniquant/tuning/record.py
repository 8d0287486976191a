"""What a manifest says of a tuning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from omniquant.checkpoint.fields import Fields
from omniquant.describe import counted


@dataclass(frozen=True)
class Tuning:
    """How a result's scales and gains were tuned, and what came of it.

    Parameters
    ----------
    epochs, lr, seed
        As :func:`omniquant.tune` was called.
    samples, seqlen : int
        Windows, those that judged among them, and tokens of each.
    judges : int
        Windows that were not learned from but told whether it helped.
    tokens_sha256 : str
        Of all windows.
    kl_before, kl_after : float
        Mean divergence from the full-precision model on the judges, nats a token.
    """

    epochs: int
    lr: float
    seed: int
    samples: int
    seqlen: int
    judges: int
    tokens_sha256: str
    kl_before: float
    kl_after: float

    def __str__(self) -> str:
        learners = self.samples - self.judges
        return (
            f"{counted(self.epochs, 'epoch')} of {learners} windows of {self.seqlen} tokens; "
            f"divergence on {counted(self.judges, 'other')} "
            f"{self.kl_before:.4f} -> {self.kl_after:.4f} nats a token"
            f"{'' if self.helped else ': it did not help, all left as it was'}"
        )

    @property
    def helped(self) -> bool:
        """Whether anything was changed."""
        return self.kl_after < self.kl_before

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_fields(cls, values: Fields) -> Tuning:
        """Read an untrusted manifest's; CheckpointError names the field."""
        return cls(
            epochs=values.integer("epochs"),
            lr=values.positive("lr"),
            seed=values.integer("seed", minimum=0),
            samples=values.integer("samples"),
            seqlen=values.integer("seqlen"),
            judges=values.integer("judges"),
            tokens_sha256=values.text("tokens_sha256"),
            kl_before=values.positive("kl_before"),
            kl_after=values.positive("kl_after"),
        )
