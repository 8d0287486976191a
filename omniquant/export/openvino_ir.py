"""OpenVINO IR: the decoder with its weights as u4 or u8 constants that the graph dequantizes.

Run with an f32 precision hint and dynamic quantization off it computes in float32; with them, faster.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from omniquant.checkpoint.atomic import atomic_write_bytes
from omniquant.checkpoint.graphs import OPENVINO_NAME
from omniquant.export.bits import nibbles
from omniquant.export.card import model_card
from omniquant.export.content import U8, Content, Linear
from omniquant.export.decoder import DESCRIPTION, Node, Values, build
from omniquant.export.huggingface import write_common
from omniquant.runtime.matrix import HALF, Matrix

_LOAD = (
    """\
```python
import numpy as np
import openvino
from tokenizers import Tokenizer

# Without these OpenVINO may round floats to bfloat16, activations to bytes: faster, not what was measured.
exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
model = openvino.Core().compile_model("openvino_model.xml", "CPU", exact)
ids = np.array([Tokenizer.from_file("tokenizer.json").encode("Return the").ids])
feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.size)[None]}
for port in model.inputs:
    if port.any_name.startswith("past"):  # no keys and values yet
        _, heads, _, head_dim = port.partial_shape
        feed[port.any_name] = np.zeros((1, heads.get_length(), 0, head_dim.get_length()), np.float32)
logits = model(feed)["logits"]  # [1, tokens, vocabulary]
```

"""
    + DESCRIPTION
)

_NAMES = {
    "add": "add", "multiply": "multiply", "divide": "divide", "sqrt": "sqrt", "where": "select",
    "sigmoid": "sigmoid", "relu": "relu", "erf": "erf", "tanh": "tanh", "negative": "negative",
}  # fmt: skip


def write(content: Content, folder: Path) -> None:
    """Write the folder."""
    write_common(content, folder)
    ops = OpenvinoOperations()
    build(content, ops)
    ops.save(folder / OPENVINO_NAME)
    card = model_card(content, "OpenVINO IR", "openvino", _LOAD)
    atomic_write_bytes(folder / "README.md", card.encode())


class OpenvinoOperations:
    """The operations of a graph, in OpenVINO."""

    def __init__(self) -> None:
        self._openvino: Any = importlib.import_module("openvino")
        self._ops: Any = importlib.import_module("openvino.opset13")
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._kept: list[Any] = []  # a tensor of u4 does not own its bytes

    def save(self, path: Path) -> None:
        """Write the graph and its weights."""
        model = self._openvino.Model(self._outputs, self._inputs, "omniquant")
        self._openvino.save_model(model, path, compress_to_fp16=False)

    def input(self, name: str, dtype: type, shape: list[str | int]) -> Node:
        """Return an input."""
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        node = self._ops.parameter(sizes, dtype, name=name)
        node.output(0).get_tensor().set_names({name})
        self._inputs.append(node)
        return node

    def output(self, name: str, node: Node, dtype: type, shape: list[str | int]) -> None:
        """Name a result."""
        result = self._ops.result(node, name=f"{name}/result")
        result.output(0).get_tensor().set_names({name})
        self._outputs.append(result)

    def constant(self, values: Values) -> Node:
        """Return a constant."""
        return self._ops.constant(np.asarray(values))

    def apply(self, operation: str, *nodes: Node) -> Node:
        """Apply an operation."""
        ops = self._ops
        if operation == "matmul":
            return ops.matmul(*nodes, False, False)
        if operation == "concat_last":
            return ops.concat(list(nodes), -1)
        if operation == "concat_past":
            return ops.concat(list(nodes), 2)
        if operation == "softmax":
            return ops.softmax(*nodes, axis=-1)
        return getattr(ops, _NAMES[operation])(*nodes)

    def gather(self, table: Node, indices: Node) -> Node:
        """Return rows of a table."""
        return self._ops.gather(table, indices, self.constant(np.array(0, np.int64)))

    def mean_last(self, x: Node) -> Node:
        """Return the mean over the last axis."""
        return self._ops.reduce_mean(x, self.constant(np.array([-1], np.int64)), keep_dims=True)

    def reshape(self, x: Node, shape: list[int]) -> Node:
        """Reshape."""
        return self._ops.reshape(x, self.constant(np.array(shape, np.int64)), special_zero=True)

    def transpose(self, x: Node, order: list[int]) -> Node:
        """Permute the axes."""
        return self._ops.transpose(x, self.constant(np.array(order, np.int64)))

    def halves(self, x: Node, half: int) -> tuple[Node, Node]:
        """Return both halves of the last axis."""
        parts = self._ops.split(x, self.constant(np.array(-1, np.int64)), 2)
        return parts.output(0), parts.output(1)

    def causal(self, mask: Node, ids: Node) -> Node:
        """Return which keys a query sees: bool [N, 1, 1, T, P + T]."""
        ops, zero, one = self._ops, self.constant(np.array(0, np.int64)), self.constant(np.array(1, np.int64))
        total, length = (ops.gather(ops.shape_of(node), one, zero) for node in (mask, ids))
        keys = ops.range(zero, total, one, "i64")
        queries = ops.range(ops.subtract(total, length), total, one, "i64")
        order = ops.less_equal(keys, ops.unsqueeze(queries, one))
        known = ops.greater(ops.unsqueeze(mask, self.constant(np.array([1, 2, 3], np.int64))), zero)
        return ops.logical_and(order, known)

    def table(self, matrix: Matrix, name: str) -> Node:
        """Return embedding or head as float32."""
        if matrix.kind == HALF:
            return self._ops.convert(self.constant(matrix.values), "f32")
        return self.constant(np.ascontiguousarray(matrix.rows(), np.float32))

    def linear(self, x: Node, linear: Linear, name: str) -> Node:
        """Return x W^T with W as integers."""
        ops = self._ops
        outputs, inputs = linear.codes.shape
        groups = inputs // linear.group
        codes = ops.convert(self._small(linear.codes.reshape(outputs, groups, -1), linear.bits), "f32")
        zero = ops.convert(self._small(linear.zero_point[..., None], linear.bits), "f32")
        weight = ops.multiply(ops.subtract(codes, zero), self.constant(linear.scale[..., None]))
        weight = ops.reshape(weight, self.constant(np.array([outputs, inputs], np.int64)), special_zero=False)
        return ops.matmul(x, weight, False, True)

    def _small(self, values: U8, bits: int) -> Node:
        """Return codes as a constant of u4 or u8."""
        kind = self._openvino.Type
        if bits > 4:
            return self.constant(np.ascontiguousarray(values))
        data = nibbles(values)
        self._kept.append(data)
        tensor = self._openvino.Tensor(data, self._openvino.Shape(list(values.shape)), kind.u4)
        return self._ops.constant(tensor, shared_memory=False)
