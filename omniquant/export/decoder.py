"""A decoder of LLaMA's kind as a graph, written once over a few operations that ONNX and OpenVINO both have.

Inputs and outputs are those Hugging Face's exporters use, so their generation loops run it:

    input_ids [N, T], attention_mask [N, P + T], position_ids [N, T]   int64
    past_key_values.i.key, past_key_values.i.value                     float32 [N, heads, P, d], P = 0 first
    logits [N, T, V], present.i.key, present.i.value [N, heads, P + T, d]

Positions that are masked, and those after the query's own, get the lowest float before the softmax.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from omniquant.export.content import Block, Content, Linear
from omniquant.export.huggingface import floats_of
from omniquant.models.rotated import fixed_rotation
from omniquant.models.spec import BlockSpec
from omniquant.runtime.matrix import Matrix

Node = Any  # a name in ONNX, an output in OpenVINO
Values = npt.NDArray[Any]

# For the cards.
DESCRIPTION = """\
Inputs: input_ids, attention_mask, position_ids, past_key_values.i.key and .value. Outputs, by their names:
logits, and present.i.key and .value, which are the next call's past_key_values."""

_LOWEST = float(np.finfo(np.float32).min)


class Operations(Protocol):
    """What a graph is built with. Arrays are constants; every method returns the node of its result."""

    def input(self, name: str, dtype: type, shape: list[str | int]) -> Node:
        """Return an input; names in the shape are free sizes."""

    def output(self, name: str, node: Node, dtype: type, shape: list[str | int]) -> None:
        """Name a result."""

    def constant(self, values: Values) -> Node:
        """Return a constant."""

    def linear(self, x: Node, linear: Linear, name: str) -> Node:
        """Return x [.., K] times a quantized weight, [.., N]; without its bias."""

    def table(self, matrix: Matrix, name: str) -> Node:
        """Return embedding or head [V, H] as float32, stored as small as it is."""

    def apply(self, operation: str, *nodes: Node) -> Node:
        """Apply add, multiply, divide, matmul, where, sqrt, softmax and the like, by name."""

    def gather(self, table: Node, indices: Node) -> Node:
        """Return rows of a table."""

    def mean_last(self, x: Node) -> Node:
        """Return the mean over the last axis, which stays."""

    def reshape(self, x: Node, shape: list[int]) -> Node:
        """Reshape; 0 keeps an axis, -1 is what is left."""

    def transpose(self, x: Node, order: list[int]) -> Node:
        """Permute the axes."""

    def halves(self, x: Node, half: int) -> tuple[Node, Node]:
        """Return the first and second half of the last axis."""

    def causal(self, mask: Node, ids: Node) -> Node:
        """Return bool [N, 1, 1, T, P + T]: may query t look at key p, by order and by attention_mask."""


def build(content: Content, ops: Operations) -> None:
    """Put the whole model into a graph."""
    _Decoder(content, ops).build()


class _Decoder:
    def __init__(self, content: Content, ops: Operations) -> None:
        self.content = content
        self.ops = ops
        self.spec: BlockSpec = content.result.architecture.spec

    def build(self) -> None:
        ops, model = self.ops, self.content.result.fold()
        ids = ops.input("input_ids", np.int64, ["batch", "length"])
        mask = ops.input("attention_mask", np.int64, ["batch", "total"])
        positions = ops.input("position_ids", np.int64, ["batch", "length"])
        cos, sin = model.rope_tables(model.max_positions)
        heads = [0, -1, 1, self.spec.head_dim // 2]  # one for every head
        self.cos = ops.reshape(ops.gather(ops.constant(cos), positions), heads)
        self.sin = ops.reshape(ops.gather(ops.constant(sin), positions), heads)
        self.allowed = ops.causal(mask, ids)
        embedding, head = model.matrices()
        table = ops.table(embedding, "embedding")
        x = ops.gather(table, ids)
        for index in range(model.num_layers):
            x = self.block(x, index)
        x = self.norm(x, model.ends().final_norm["weight"])
        weight = table if model.architecture.tied_embeddings else ops.table(head, "lm_head")
        logits = ops.apply("matmul", x, ops.transpose(weight, [1, 0]))
        ops.output("logits", logits, np.float32, ["batch", "length", model.vocab_size])

    def number(self, value: float) -> Node:
        return self.ops.constant(np.array([value], np.float32))

    def block(self, x: Node, index: int) -> Node:
        block = self.content.block(index)
        tensors = {name: values.astype(np.float32) for name, values in floats_of(block).items()}
        h = self.site(x, block, tensors, "norm1")
        x = self.ops.apply("add", x, self.attention(h, block, tensors, index))
        h = self.site(x, block, tensors, "norm2")
        gate = self.activation(self.linear(h, block, tensors, "gate", index))
        h = self.ops.apply("multiply", gate, self.linear(h, block, tensors, "up", index))
        if self.spec.rotate_down:
            h = self.turn(h, self.spec.ffn_size, 1)
        return self.ops.apply("add", x, self.linear(h, block, tensors, "down", index))

    def turn(self, x: Node, n: int, stride: int) -> Node:
        """Return x [N, T, n stride] times T_n along n: first by its power of two, then by its odd part."""
        ops, two = self.ops, n & -n
        if two > 1:
            x = ops.reshape(x, [0, -1, n // two, two, stride])
            x = ops.apply("matmul", ops.constant(fixed_rotation(two)), x)
        if n > two:
            x = ops.reshape(x, [0, -1, n // two, two * stride])
            x = ops.apply("matmul", ops.constant(fixed_rotation(n // two)), x)
        return ops.reshape(x, [0, -1, n * stride])

    def site(self, x: Node, block: Block, tensors: dict[str, Values], name: str) -> Node:
        h = self.norm(x, tensors[f"{name}.weight"])
        if name in block.online:  # the map that could not be folded
            h = self.ops.apply("matmul", h, self.ops.constant(np.ascontiguousarray(block.online[name])))
        return h

    def norm(self, x: Node, gain: Values) -> Node:
        ops = self.ops
        mean = ops.mean_last(ops.apply("multiply", x, x))
        root = ops.apply("sqrt", ops.apply("add", mean, self.number(self.spec.norm_eps)))
        return ops.apply("multiply", ops.apply("divide", x, root), ops.constant(gain))

    def linear(self, x: Node, block: Block, tensors: dict[str, Values], name: str, index: int) -> Node:
        ops = self.ops
        if name in block.linears:
            y = ops.linear(x, block.linears[name], f"{index}.{name}")
        else:
            y = ops.apply("matmul", x, ops.constant(np.ascontiguousarray(tensors[f"{name}.weight"].T)))
        bias = tensors.get(f"{name}.bias")
        return y if bias is None else ops.apply("add", y, ops.constant(bias))

    def rotate(self, x: Node) -> Node:
        """Rotate [N, T, heads, d] and return [N, heads, T, d]."""
        ops = self.ops
        first, second = ops.halves(x, self.spec.head_dim // 2)
        turned = ops.apply(
            "concat_last",
            ops.apply(
                "add",
                ops.apply("multiply", first, self.cos),
                ops.apply("negative", ops.apply("multiply", second, self.sin)),
            ),
            ops.apply("add", ops.apply("multiply", second, self.cos), ops.apply("multiply", first, self.sin)),
        )
        if self.spec.rotate_qk:
            turned = ops.apply("matmul", turned, ops.constant(fixed_rotation(self.spec.head_dim)))
        return ops.transpose(turned, [0, 2, 1, 3])

    def attention(self, h: Node, block: Block, tensors: dict[str, Values], index: int) -> Node:
        ops, spec = self.ops, self.spec
        kv, d = spec.num_kv_heads, spec.head_dim
        parts = {name: self.linear(h, block, tensors, name, index) for name in ("q", "k", "v")}
        q = self.rotate(ops.reshape(parts["q"], [0, -1, spec.num_heads, d]))
        k = self.rotate(ops.reshape(parts["k"], [0, -1, kv, d]))
        v = ops.transpose(ops.reshape(parts["v"], [0, -1, kv, d]), [0, 2, 1, 3])
        k = self.cached("key", k, index)
        v = self.cached("value", v, index)
        # Query heads that share a key head: q [N, kv, repeat, T, d] against k [N, kv, 1, P + T, d].
        q = ops.reshape(q, [0, kv, spec.num_heads // kv, -1, d])
        k = ops.reshape(k, [0, kv, 1, -1, d])
        v = ops.reshape(v, [0, kv, 1, -1, d])
        scores = ops.apply("matmul", q, ops.transpose(k, [0, 1, 2, 4, 3]))
        scores = ops.apply("multiply", scores, self.number(d**-0.5))
        masked = ops.apply("where", self.allowed, scores, self.number(_LOWEST))
        mixed = ops.apply("matmul", ops.apply("softmax", masked), v)
        mixed = ops.reshape(mixed, [0, spec.num_heads, -1, d])
        mixed = ops.reshape(ops.transpose(mixed, [0, 2, 1, 3]), [0, -1, spec.num_heads * d])
        if spec.rotate_heads:
            mixed = self.turn(mixed, spec.num_heads, d)
        return self.linear(mixed, block, tensors, "o", index)

    def cached(self, kind: str, new: Node, index: int) -> Node:
        heads, d = self.spec.num_kv_heads, self.spec.head_dim
        past = self.ops.input(f"past_key_values.{index}.{kind}", np.float32, ["batch", heads, "past", d])
        both = self.ops.apply("concat_past", past, new)
        self.ops.output(f"present.{index}.{kind}", both, np.float32, ["batch", heads, "total", d])
        return both

    def activation(self, x: Node) -> Node:
        ops, kind = self.ops, self.spec.activation
        if kind == "relu":
            return ops.apply("relu", x)
        if kind == "silu":
            return ops.apply("multiply", x, ops.apply("sigmoid", x))
        half = ops.apply("multiply", x, self.number(0.5))
        if kind == "gelu":
            inner = ops.apply("erf", ops.apply("multiply", x, self.number(0.5**0.5)))
        else:
            cube = ops.apply("multiply", ops.apply("multiply", x, x), x)
            bent = ops.apply("add", x, ops.apply("multiply", cube, self.number(0.044715)))
            scale = self.number((2 / np.pi) ** 0.5)
            inner = ops.apply("tanh", ops.apply("multiply", bent, scale))
        return ops.apply("multiply", half, ops.apply("add", inner, self.number(1.0)))
