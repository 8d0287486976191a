"""compressed-tensors: integer weights for transformers and vLLM.

`pack-quantized` holds weights alone: a dense little-endian bit stream a row in int32 words, zero points
packed along the outputs. `int-quantized` holds one byte a weight, for schemes whose activations are integers
too; those carry no tensors, the runtime takes their scales from each token.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant.checkpoint.atomic import atomic_write_bytes
from omniquant.config.scheme import FLOAT_BITS, ROUTERS, QuantConfig
from omniquant.export.bits import bit_stream
from omniquant.export.card import model_card
from omniquant.export.content import Content, Linear
from omniquant.export.folder import Tensors
from omniquant.export.huggingface import write_common, write_tensors
from omniquant.models.experts import EXPERT, stored_shapes

_LOAD = """\
```python
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

model = AutoModelForCausalLM.from_pretrained(".", {how}dtype="float32")
```"""
# transformers builds packed modules without zero points; dequantizing while it loads does without them.
_DEQUANTIZE = "quantization_config=CompressedTensorsConfig(dequantize=True), "


def write(content: Content, folder: Path) -> None:
    """Write the folder."""
    scheme = content.scheme
    write_common(content, folder, quantization_config(content))
    tensors_of = packed if scheme.weight_only else as_bytes
    write_tensors(content, folder, lambda linear, _: tensors_of(linear))
    how = "" if scheme.w_symmetric or not scheme.weight_only else _DEQUANTIZE
    title = f"compressed-tensors {_layout(scheme)}"
    card = model_card(content, title, "transformers", _LOAD.format(how=how))
    atomic_write_bytes(folder / "README.md", card.encode())


def routers(content: Content) -> list[str]:
    """Return the names of the linears that choose experts, which stay in float."""
    refs = [content.refs(index, "safetensors") for index in range(content.result.header.num_layers)]
    return [
        ref.key.removesuffix(".weight")
        for of_block in refs
        for name, ref in of_block.items()
        if name.partition(".")[0] in ROUTERS
    ]


def quantization_config(content: Content) -> dict[str, Any]:
    """Return config.json's quantization_config: a group for each scheme, linears left in float ignored."""
    scheme = content.scheme
    groups, ignored = [_group(scheme, ["Linear"])], ["lm_head", *routers(content)]
    if scheme.overrides:
        targets = _targets(content)
        ignored += [name for own, names in targets.items() if not own.quantizes_weights for name in names]
        groups = [_group(own, names) for own, names in targets.items() if own.quantizes_weights]
    return {
        "quant_method": "compressed-tensors",
        "format": _layout(scheme),
        "quantization_status": "compressed",
        "ignore": ignored,
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
    }


def _targets(content: Content) -> dict[QuantConfig, list[str]]:
    """Return the modules of every scheme in a mixed one, by name: a name cannot match two groups."""
    targets: dict[QuantConfig, list[str]] = {}
    for index in range(content.result.architecture.num_layers):
        refs = content.refs(index, "safetensors")
        for linear in stored_shapes(content.result.architecture.spec):
            own = replace(content.scheme.of_linear(index, linear.partition(EXPERT)[0]), overrides=())
            name = refs[f"{linear}.weight"].key.removesuffix(".weight")
            if name not in targets.setdefault(own, []):  # of fused linears the second
                targets[own].append(name)
    return targets


def _group(scheme: QuantConfig, targets: list[str]) -> dict[str, Any]:
    """Return the config group of the modules of one scheme."""
    weights = {
        "num_bits": scheme.w_bits,
        "type": "int",
        "symmetric": scheme.w_symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
        "dynamic": False,
    }
    activations = None
    if scheme.a_bits < FLOAT_BITS:
        activations = {
            "num_bits": scheme.a_bits,
            "type": "int",
            "symmetric": scheme.a_symmetric,
            "strategy": "token",
            "dynamic": True,
        }
    return {"targets": targets, "weights": weights, "input_activations": activations}


def _layout(scheme: QuantConfig) -> str:
    return "pack-quantized" if scheme.weight_only else "int-quantized"


def packed(linear: Linear) -> Tensors:
    """Return the tensors of `pack-quantized`."""
    tensors: dict[str, npt.NDArray[Any]] = {
        "weight_packed": bit_stream(linear.codes, linear.bits),
        "weight_scale": linear.scale,
        "weight_shape": np.array(linear.codes.shape, np.int64),
    }
    if not linear.symmetric:
        columns = np.ascontiguousarray(linear.zero_point.T)
        tensors["weight_zero_point"] = np.ascontiguousarray(bit_stream(columns, linear.bits).T)
    return tensors


def as_bytes(linear: Linear) -> Tensors:
    """Return the tensors of `int-quantized`: codes around zero."""
    middle = 1 << (linear.bits - 1)
    tensors: dict[str, npt.NDArray[Any]] = {
        "weight": (linear.codes.astype(np.int16) - middle).astype(np.int8),
        "weight_scale": linear.scale,
    }
    if not linear.symmetric:
        tensors["weight_zero_point"] = (linear.zero_point.astype(np.int16) - middle).astype(np.int8)
    return tensors
