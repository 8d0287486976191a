"""PyTorch, which is optional: a transformers model in, calibrated, and back into the module.

>>> model = omniquant.torch.load_model(module, tokenizer=tokenizer)  # doctest: +SKIP
>>> result = omniquant.calibrate(model, windows, "W4A8KV16")  # doctest: +SKIP
>>> omniquant.torch.write_weights(result, module, weights_only=True)  # doctest: +SKIP
>>> omniquant.torch.swap_linears(result, module)  # doctest: +SKIP
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("omniquant.torch needs torch: pip install 'omniquant-c[torch]'") from error

from omniquant.torch.linears import PackedLinear, swap_linears
from omniquant.torch.load import load_model
from omniquant.torch.weights import write_weights

__all__ = ["PackedLinear", "load_model", "swap_linears", "write_weights"]
