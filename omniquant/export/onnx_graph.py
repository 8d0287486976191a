"""ONNX: the decoder with its weights as integers, by one of two operators.

`matmul-nbits` (default) is ``com.microsoft.MatMulNBits`` of onnxruntime: 2, 4 or 8 bits, blocks of a power of
two, at least 16, its computing in float32 (accuracy_level 0). `dequantize-linear` is the standard's operator
of opset 21 in blocks: codes up to 4 bits in UINT4, others in UINT8; any engine of that opset runs it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from omniquant import _core
from omniquant._version import __version__
from omniquant.checkpoint.atomic import atomic_write_bytes
from omniquant.checkpoint.graphs import ONNX_NAME
from omniquant.export.bits import nibbles
from omniquant.export.card import model_card
from omniquant.export.content import U8, Content, Linear
from omniquant.export.decoder import DESCRIPTION, Node, Values, build
from omniquant.export.huggingface import write_common
from omniquant.runtime.matrix import HALF, Matrix

_OPSET, _IR = 21, 10
_INLINE_BYTES = 1 << 30  # protobuf holds 2 GiB; larger models keep their weights in a second file

_LOAD = (
    """\
```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

session = onnxruntime.InferenceSession("model.onnx")
ids = np.array([Tokenizer.from_file("tokenizer.json").encode("Return the").ids])
feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.size)[None]}
for entry in session.get_inputs():
    if entry.name.startswith("past"):  # no keys and values yet
        feed[entry.name] = np.zeros((1, entry.shape[1], 0, entry.shape[3]), np.float32)
(logits,) = session.run(["logits"], feed)  # [1, tokens, vocabulary]
```

"""
    + DESCRIPTION
)

_NAMES = {
    "add": "Add", "multiply": "Mul", "divide": "Div", "matmul": "MatMul", "where": "Where", "sqrt": "Sqrt",
    "sigmoid": "Sigmoid", "relu": "Relu", "erf": "Erf", "tanh": "Tanh", "negative": "Neg",
    "less_equal": "LessOrEqual", "greater": "Greater", "and_": "And",
}  # fmt: skip


def write(content: Content, folder: Path) -> None:
    """Write the folder."""
    write_common(content, folder)
    ops = OnnxOperations(content.variant)
    build(content, ops)
    ops.save(folder / ONNX_NAME)
    card = model_card(content, f"ONNX ({content.variant})", "onnx", _LOAD)
    atomic_write_bytes(folder / "README.md", card.encode())


class OnnxOperations:
    """The operations of a graph, in ONNX."""

    def __init__(self, variant: str) -> None:
        self._onnx: Any = importlib.import_module("onnx")
        self._helper: Any = importlib.import_module("onnx.helper")
        self._variant = variant
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._count = 0

    def save(self, path: Path) -> None:
        """Check the graph and write it."""
        helper = self._helper
        graph = helper.make_graph(
            self._nodes, "omniquant", self._inputs, self._outputs, initializer=self._initializers
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR, producer_name="omniquant")
        model.producer_version = __version__
        large = sum(tensor.ByteSize() for tensor in self._initializers) > _INLINE_BYTES
        location = {"save_as_external_data": True, "location": f"{ONNX_NAME}.data"} if large else {}
        self._onnx.save(model, path, **location)

    def input(self, name: str, dtype: type, shape: list[str | int]) -> Node:
        """Return an input."""
        self._inputs.append(self._value(name, dtype, shape))
        return name

    def output(self, name: str, node: Node, dtype: type, shape: list[str | int]) -> None:
        """Name a result."""
        self._nodes.append(self._helper.make_node("Identity", [node], [name]))
        self._outputs.append(self._value(name, dtype, shape))

    def _value(self, name: str, dtype: type, shape: list[str | int]) -> Any:
        kind = self._helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self._helper.make_tensor_value_info(name, kind, shape)

    def _node(self, operator: str, inputs: list[Node], **attributes: Any) -> Node:
        self._count += 1
        name = f"{operator}_{self._count}"
        self._nodes.append(
            self._helper.make_node(operator, inputs, [name], name=f"node_{name}", **attributes)
        )
        return name

    def constant(self, values: Values) -> Node:
        """Return a constant."""
        self._count += 1
        name = f"constant_{self._count}"
        self._initializers.append(self._onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def _ints(self, *values: int) -> Node:
        return self.constant(np.array(values, np.int64))

    def apply(self, operation: str, *nodes: Node) -> Node:
        """Apply an operation."""
        if operation == "concat_last":
            return self._node("Concat", list(nodes), axis=-1)
        if operation == "concat_past":
            return self._node("Concat", list(nodes), axis=2)
        if operation == "softmax":
            return self._node("Softmax", list(nodes), axis=-1)
        return self._node(_NAMES[operation], list(nodes))

    def gather(self, table: Node, indices: Node) -> Node:
        """Return rows of a table."""
        return self._node("Gather", [table, indices], axis=0)

    def mean_last(self, x: Node) -> Node:
        """Return the mean over the last axis."""
        return self._node("ReduceMean", [x, self._ints(-1)], keepdims=1)

    def reshape(self, x: Node, shape: list[int]) -> Node:
        """Reshape."""
        return self._node("Reshape", [x, self._ints(*shape)])

    def transpose(self, x: Node, order: list[int]) -> Node:
        """Permute the axes."""
        return self._node("Transpose", [x], perm=order)

    def halves(self, x: Node, half: int) -> tuple[Node, Node]:
        """Return both halves of the last axis."""
        bounds = ((0, half), (half, 2 * half))
        first, second = (
            self._node("Slice", [x, self._ints(a), self._ints(b), self._ints(-1)]) for a, b in bounds
        )
        return first, second

    def causal(self, mask: Node, ids: Node) -> Node:
        """Return which keys a query sees: bool [N, 1, 1, T, P + T]."""
        zero, one = self.constant(np.array(0, np.int64)), self.constant(np.array(1, np.int64))
        total = self._node("Squeeze", [self._node("Shape", [mask], start=1, end=2)])
        length = self._node("Squeeze", [self._node("Shape", [ids], start=1, end=2)])
        keys = self._node("Range", [zero, total, one])
        queries = self._node("Range", [self._node("Sub", [total, length]), total, one])
        order = self.apply("less_equal", keys, self._node("Unsqueeze", [queries, self._ints(1)]))
        known = self.apply("greater", self._node("Unsqueeze", [mask, self._ints(1, 2, 3)]), zero)
        return self.apply("and_", order, known)

    def table(self, matrix: Matrix, name: str) -> Node:
        """Return embedding or head as float32."""
        if matrix.kind == HALF:
            half = self.constant(matrix.values)
            return self._node("Cast", [half], to=self._onnx.TensorProto.FLOAT)
        return self.constant(np.ascontiguousarray(matrix.rows(), np.float32))

    def linear(self, x: Node, linear: Linear, name: str) -> Node:
        """Return x W^T with W as integers."""
        if self._variant == "matmul-nbits":
            return self._matmul_nbits(x, linear)
        return self.apply("matmul", x, self.apply_transposed(linear))

    def apply_transposed(self, linear: Linear) -> Node:
        """Return W^T [K, N], dequantized by the graph."""
        weight = self._small(linear.codes, linear.bits)
        zero = self._small(linear.zero_point, linear.bits)
        scale = self.constant(linear.scale)
        dequantized = self._node("DequantizeLinear", [weight, scale, zero], axis=1, block_size=linear.group)
        return self.transpose(dequantized, [1, 0])

    def _small(self, values: U8, bits: int) -> Node:
        """Return codes as a constant of UINT4 or UINT8."""
        if bits > 4:
            return self.constant(values)
        self._count += 1
        name = f"constant_{self._count}"
        data = nibbles(values).tobytes()
        kind = self._onnx.TensorProto.UINT4
        self._initializers.append(self._helper.make_tensor(name, kind, values.shape, data, raw=True))
        return name

    def _matmul_nbits(self, x: Node, linear: Linear) -> Node:
        outputs, inputs = linear.codes.shape
        per_byte, groups = 8 // linear.bits, inputs // linear.group
        blocks = _core.pack(linear.codes, linear.bits).reshape(outputs, groups, linear.group // per_byte)
        zeros = _core.pack(linear.zero_point, linear.bits)
        return self._node(
            "MatMulNBits",
            [x, self.constant(blocks), self.constant(linear.scale), self.constant(zeros)],
            domain="com.microsoft",
            K=inputs,
            N=outputs,
            bits=linear.bits,
            block_size=linear.group,
            accuracy_level=0,
        )
