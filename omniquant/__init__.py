"""OmniQuant and AffineQuant: post-training quantization of language models, calibrated in a C core."""

from omniquant import _onednn
from omniquant._version import __version__

_onednn.load()

__all__ = ["__version__"]
