"""The one error of this package that is not in :mod:`omniquant.errors`."""

from omniquant.errors import CheckpointError, UnsupportedError


class UnsupportedCheckpointError(CheckpointError, UnsupportedError):
    """A checkpoint asks, by name, for something not supported here (a model type, a number format)."""
