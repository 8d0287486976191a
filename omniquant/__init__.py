"""OmniQuant and AffineQuant: post-training quantization of language models, calibrated in a C core.

>>> import omniquant
>>> model = omniquant.load_model("omniquant-tiny")
>>> windows = omniquant.calibration_windows(None, model, samples=16, seqlen=256)
>>> result = omniquant.calibrate(model, windows, "W4A4", method="affinequant")  # doctest: +SKIP
>>> omniquant.perplexity(result, omniquant.evaluation_windows(None, model, 256))  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from omniquant import _gomp as _gomp
from omniquant import _onednn
from omniquant._version import __version__

if TYPE_CHECKING:
    from omniquant.calibration import calibrate
    from omniquant.config import CalibrationOptions, QuantConfig
    from omniquant.data import calibration_windows, evaluation_windows
    from omniquant.errors import (
        BackendError,
        CheckpointError,
        ConfigError,
        DataError,
        NotDominantError,
        NotFiniteError,
        OmniQuantError,
        ScratchError,
        SingularError,
        UnsupportedError,
    )
    from omniquant.evaluate import perplexity
    from omniquant.fidelity import Divergence, divergence
    from omniquant.functional import (
        affine_backward,
        affine_forward,
        dequantize,
        dominance_margins,
        fake_quantize,
        fake_quantize_backward,
        gradual_mask,
        let_backward,
        let_forward,
        lwc_backward,
        lwc_forward,
        pack,
        project_dominant,
        quantize,
        unpack,
        varah_bound,
    )
    from omniquant.linear import LinearResult, calibrate_linear
    from omniquant.models.arrays import model_from_arrays
    from omniquant.models.conformance import check_model_adapter
    from omniquant.models.load import load_model
    from omniquant.models.model import Model
    from omniquant.progress import Callback, MapSnapshots
    from omniquant.quantized import CalibrationResult, QuantizedModel
    from omniquant.report import BlockReport
    from omniquant.tuning.record import Tuning
    from omniquant.tuning.tune import tune
    from omniquant.zeroshot import ZeroShot, zero_shot

_onednn.load()

# Where each public name lives; imported at first use, because tokenizers and readers take longer than NumPy.
_HOMES = {
    "calibrate": "calibration",
    "CalibrationOptions": "config",
    "QuantConfig": "config",
    "calibration_windows": "data",
    "evaluation_windows": "data",
    "perplexity": "evaluate",
    "Divergence": "fidelity",
    "divergence": "fidelity",
    "affine_backward": "functional",
    "affine_forward": "functional",
    "dequantize": "functional",
    "dominance_margins": "functional",
    "fake_quantize": "functional",
    "fake_quantize_backward": "functional",
    "gradual_mask": "functional",
    "let_backward": "functional",
    "let_forward": "functional",
    "lwc_backward": "functional",
    "lwc_forward": "functional",
    "pack": "functional",
    "project_dominant": "functional",
    "quantize": "functional",
    "unpack": "functional",
    "varah_bound": "functional",
    "LinearResult": "linear",
    "calibrate_linear": "linear",
    "model_from_arrays": "models.arrays",
    "check_model_adapter": "models.conformance",
    "load_model": "models.load",
    "Model": "models.model",
    "Callback": "progress",
    "MapSnapshots": "progress",
    "CalibrationResult": "quantized",
    "QuantizedModel": "quantized",
    "BlockReport": "report",
    "tune": "tuning.tune",
    "Tuning": "tuning.record",
    "ZeroShot": "zeroshot",
    "zero_shot": "zeroshot",
    "BackendError": "errors",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "NotDominantError": "errors",
    "NotFiniteError": "errors",
    "OmniQuantError": "errors",
    "ScratchError": "errors",
    "SingularError": "errors",
    "UnsupportedError": "errors",
}

__all__ = [
    "BackendError",
    "BlockReport",
    "CalibrationOptions",
    "CalibrationResult",
    "Callback",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Divergence",
    "LinearResult",
    "MapSnapshots",
    "Model",
    "NotDominantError",
    "NotFiniteError",
    "OmniQuantError",
    "QuantConfig",
    "QuantizedModel",
    "ScratchError",
    "SingularError",
    "Tuning",
    "UnsupportedError",
    "ZeroShot",
    "__version__",
    "affine_backward",
    "affine_forward",
    "calibrate",
    "calibrate_linear",
    "calibration_windows",
    "check_model_adapter",
    "dequantize",
    "divergence",
    "dominance_margins",
    "evaluation_windows",
    "fake_quantize",
    "fake_quantize_backward",
    "gradual_mask",
    "let_backward",
    "let_forward",
    "load_model",
    "lwc_backward",
    "lwc_forward",
    "model_from_arrays",
    "pack",
    "perplexity",
    "project_dominant",
    "quantize",
    "tune",
    "unpack",
    "varah_bound",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
