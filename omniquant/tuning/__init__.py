"""Tuning a quantized model's steps end to end: the phase after calibration."""
