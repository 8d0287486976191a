"""Exceptions of omniquant: each says what went wrong, where, and with which value."""


class OmniQuantError(Exception):
    """Base class of every error this package raises on purpose."""


class CheckpointError(OmniQuantError, ValueError):
    """A checkpoint, state or tokenizer file is damaged, lies about itself or does not fit."""


class ConfigError(OmniQuantError, ValueError):
    """A quantization scheme, method or option makes no sense or does not fit the model."""


class DataError(OmniQuantError, ValueError):
    """Calibration or evaluation data is missing, too short or out of range."""


class ScratchError(OmniQuantError, OSError):
    """A scratch directory does not take what belongs there: the disk is full, or it cannot be written."""


class NotFiniteError(OmniQuantError, ValueError):
    """A NaN or infinity where only finite numbers can be quantized."""


class NotDominantError(OmniQuantError, ValueError):
    """An affine map is not strictly diagonally dominant (Levy-Desplanques)."""


class SingularError(OmniQuantError, ValueError):
    """A matrix could not be inverted."""


class BackendError(OmniQuantError, RuntimeError):
    """oneDNN refused a product or could not be loaded."""


class UnsupportedError(OmniQuantError, NotImplementedError):
    """The model or option is understood but not supported here."""


class Cancelled(OmniQuantError):
    """The computation was asked to stop; finished blocks are kept."""
