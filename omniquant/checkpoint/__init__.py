"""Reading and writing checkpoint files: safetensors, GGUF, durable writes. No pickle, ever."""

from omniquant.checkpoint.atomic import atomic_save_safetensors, atomic_write_bytes
from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.finite import check_finite
from omniquant.checkpoint.gguf_reader import GgufFile
from omniquant.checkpoint.safetensors_reader import SafetensorsFolder
from omniquant.checkpoint.source import TensorSource

__all__ = [
    "GgufFile",
    "SafetensorsFolder",
    "TensorSource",
    "UnsupportedCheckpointError",
    "atomic_save_safetensors",
    "atomic_write_bytes",
    "check_finite",
]
