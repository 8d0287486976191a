"""The blocks and settings of a calibration step that is measured."""

from __future__ import annotations

from omniquant.models.spec import BlockSpec

TOKENS = 512
BLOCKS = {
    "SmolLM2-135M": BlockSpec(576, 1536, 9, 3, 64),
    "1.1B": BlockSpec(2048, 5632, 32, 4, 64),
    "LLaMA-2-7B": BlockSpec(4096, 11008, 32, 32, 128),
}
QUICK = ("SmolLM2-135M",)
SETTINGS = (("W3A16", "omniquant"), ("W4A4", "omniquant"), ("W4A4", "affinequant"))
