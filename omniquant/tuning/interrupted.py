"""How far a tuning got: a file beside its output, for a run that is killed."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.numpy

from omniquant.checkpoint.atomic import atomic_save_safetensors, temporary_of
from omniquant.checkpoint.text import one_line
from omniquant.errors import CheckpointError
from omniquant.forward import F32
from omniquant.tuning.factors import Adam, Factors

_TENSORS = ("theta", "mean", "square")


class Interrupted:
    """The file OUTPUT.tuning; use :meth:`open`.

    Parameters
    ----------
    path : Path or None
        None: nothing is kept.
    identity : str
        Of the run.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self._path, self._identity = path, identity
        self._found: tuple[dict[str, F32], dict[str, str]] | None = None

    @classmethod
    def open(cls, output: Path | None, identity: str, *, resume: bool) -> Interrupted:
        """Return the file of an output, read where a run is resumed.

        Raises
        ------
        CheckpointError
            If it is there and the run is not resumed, or it is damaged or another run's.
        """
        path = None if output is None else output.with_name(f"{output.name}.tuning")
        kept = cls(path, identity)
        if path is None or not path.exists():
            return kept
        if not resume:
            raise CheckpointError(f"{path}: holds an interrupted run; go on with it by resume, or delete it")
        try:
            with safetensors.safe_open(path, "np") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
        except (OSError, safetensors.SafetensorError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: cannot be resumed: {one_line(error)}") from error
        if metadata.get("identity") != identity:
            raise CheckpointError(f"{path}: cannot be resumed: it is of another result, data or options")
        kept._found = tensors, metadata
        return kept

    def restore(self, factors: Factors, adam: Adam) -> float | None:
        """Bring both to where the run was, and return the divergence before it; None: it has not begun."""
        if self._found is None:
            return None
        tensors, metadata = self._found
        for name, to in zip(_TENSORS, (factors.theta, adam.mean, adam.square), strict=True):
            values = tensors[name]
            if values.dtype != to.dtype or values.shape != to.shape:
                raise CheckpointError(f"{self._path}: cannot be resumed: no {name} of {list(to.shape)}")
            to[:] = values
        try:
            adam.steps, before = int(metadata["steps"]), float.fromhex(metadata["before"])
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{self._path}: cannot be resumed: {one_line(error)}") from error
        return before

    def keep(self, factors: Factors, adam: Adam, before: float) -> None:
        """Make the run durable as it is."""
        if self._path is None:
            return
        tensors = dict(zip(_TENSORS, (factors.theta, adam.mean, adam.square), strict=True))
        about = {"identity": self._identity, "steps": str(adam.steps), "before": before.hex()}
        atomic_save_safetensors(self._path, tensors, about)

    def forget(self) -> None:
        """Remove the file, and what writing it left when it was killed: the output is whole."""
        if self._path is None:
            return
        self._path.unlink(missing_ok=True)
        for path in self._path.parent.iterdir():
            if temporary_of(path.name) == self._path.name:
                path.unlink(missing_ok=True)
