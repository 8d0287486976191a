"""Zero-shot multiple choice by log-likelihood: the numbers lm-eval prints, with their intervals."""

from omniquant.zeroshot.evaluate import ZeroShot, zero_shot

__all__ = ["ZeroShot", "zero_shot"]
