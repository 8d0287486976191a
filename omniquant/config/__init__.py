"""What to quantize (:class:`QuantConfig`) and how to calibrate it (:class:`CalibrationOptions`)."""

from omniquant.config.core import core_options
from omniquant.config.method import METHODS, CalibrationOptions
from omniquant.config.scheme import QuantConfig

__all__ = ["METHODS", "CalibrationOptions", "QuantConfig", "core_options"]
