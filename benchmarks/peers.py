"""The others: each function returns a call that does one layer's product, or raises MissingError."""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.shapes import Shape, Weights, make_x
from omniquant import _core
from omniquant._onednn import find_library

Call = Callable[[], object]


class MissingError(Exception):
    """This peer is not installed, or cannot do this."""


def need(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingError(f"{name} is not installed") from error


# --- ONNX Runtime -----------------------------------------------------------------------------------------


def onnx_session(nodes: list[Any], initializers: list[Any], shape: Shape, threads: int) -> Call:
    onnx, ort = need("onnx"), need("onnxruntime")
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info("x", kind, [shape.m, shape.k])],
        [onnx.helper.make_tensor_value_info("y", kind, [shape.m, shape.n])], initializers,
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": make_x(shape)}
    return lambda: session.run(None, feed)


def matmul_nbits(shape: Shape, weights: Weights, threads: int, accuracy_level: int) -> Call:
    onnx = need("onnx")
    blocks, half = shape.k // weights.group, weights.group // 2
    codes = weights.codes.reshape(shape.n, blocks, half, 2)
    packed = codes[..., 0] | codes[..., 1] << 4
    zeros = np.pad(weights.zero_points, ((0, 0), (0, blocks % 2))).reshape(shape.n, -1, 2)
    arrays = {
        "b": packed,
        "s": weights.scales.reshape(-1),
        "z": (zeros[..., 0] | zeros[..., 1] << 4).reshape(-1),
    }
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", K=shape.k, N=shape.n, bits=4,
        block_size=weights.group, accuracy_level=accuracy_level,
    )  # fmt: skip
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return onnx_session([node], initializers, shape, threads)


def dynamic_quantize_matmul(shape: Shape, weights: Weights, threads: int) -> Call:
    onnx = need("onnx")
    arrays = {
        "b": np.ascontiguousarray(weights.codes.T),
        "s": weights.scales[:, 0],
        "z": weights.zero_points[:, 0],
    }
    node = onnx.helper.make_node("DynamicQuantizeMatMul", ["x", *arrays], ["y"], domain="com.microsoft")
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return onnx_session([node], initializers, shape, threads)


# --- OpenVINO -----------------------------------------------------------------------------------------------


def openvino(shape: Shape, weights: Weights, threads: int, rounded: int | None = None) -> Call:
    """Inputs become 8 bits in groups of `rounded`; None: of 32, its default; 0: they do not.

    They are multiplied in bfloat16 then, where the processor has it.
    """
    ov = need("openvino")
    ops = importlib.import_module("openvino.opset15")
    blocks, bits = shape.k // weights.group, weights.bits
    kind = ov.Type.u4 if bits == 4 else ov.Type.u8

    def constant(codes: Any, dims: list[int]) -> Any:
        flat = codes.reshape(-1)
        data = flat[0::2] | flat[1::2] << 4 if bits == 4 else flat
        return ops.constant(ov.Tensor(np.ascontiguousarray(data), ov.Shape(dims), kind), shared_memory=False)

    x = ops.parameter([shape.m, shape.k], ov.Type.f32, name="x")
    codes = ops.convert(constant(weights.codes, [shape.n, blocks, weights.group]), ov.Type.f32)
    zeros = ops.convert(constant(weights.zero_points, [shape.n, blocks, 1]), ov.Type.f32)
    w = ops.multiply(ops.subtract(codes, zeros), ops.constant(weights.scales[:, :, None]))
    w = ops.reshape(w, ops.constant(np.array([shape.n, shape.k])), False)
    model = ov.Model([ops.matmul(x, w, False, True)], [x], "g")
    config = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if rounded is not None:
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = rounded
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    feed = {0: make_x(shape)}
    return lambda: request.infer(feed, share_inputs=True, share_outputs=True)


# --- torch --------------------------------------------------------------------------------------------------


def torch_int4pack(shape: Shape, weights: Weights, threads: int) -> Call:
    torch = need("torch")
    torch.set_num_threads(threads)
    ops = torch.ops.aten
    packed = ops._convert_weight_to_int4pack_for_cpu(torch.from_numpy(weights.codes.astype(np.int32)), 1)
    zeros = (8 - weights.zero_points.astype(np.float32)) * weights.scales
    both = torch.from_numpy(np.stack([weights.scales.T, zeros.T], axis=-1)).to(torch.bfloat16).contiguous()
    x = torch.from_numpy(make_x(shape)).to(torch.bfloat16)
    return lambda: ops._weight_int4pack_mm_for_cpu(x, packed, weights.group, both)


def torch_int_mm(shape: Shape, weights: Weights, threads: int) -> Call:
    torch = need("torch")
    torch.set_num_threads(threads)
    w = torch.from_numpy((weights.codes.astype(np.int16) - 128).astype(np.int8)).t()
    x = torch.from_numpy(np.clip(make_x(shape) * 30, -127, 127).astype(np.int8))
    return lambda: torch._int_mm(x, w)


def torch_bf16(shape: Shape, weights: Weights, threads: int) -> Call:
    torch = need("torch")
    torch.set_num_threads(threads)
    w = torch.from_numpy(weights.w).to(torch.bfloat16)
    x = torch.from_numpy(make_x(shape)).to(torch.bfloat16)
    return lambda: torch.nn.functional.linear(x, w)


# --- plain products -----------------------------------------------------------------------------------------


def numpy_f32(shape: Shape, weights: Weights, threads: int) -> Call:
    if threads > 1:
        raise MissingError("the threads of NumPy's products are set before it is imported")
    x, w = make_x(shape), weights.w.copy()
    return lambda: x @ w.T


def onednn_f32(shape: Shape, weights: Weights, threads: int) -> Call:
    if _core.runtime_info()["onednn"] is None:
        raise MissingError("oneDNN is not loaded")
    x, w = make_x(shape), weights.w.copy()
    return lambda: _core.matmul(x, w, transpose_b=True, threads=threads)


def onednn_int8(shape: Shape, weights: Weights, threads: int) -> Call:
    """dnnl_gemm_u8s8s32 on integers made before: no scales, no zero points, the sums are left as they are."""
    path = find_library()
    if path is None:
        raise MissingError("oneDNN is not installed")
    library = ctypes.CDLL(os.fspath(path))
    library.omp_set_num_threads(threads)
    a = np.random.default_rng(1).integers(0, 256, (shape.m, shape.k)).astype(np.uint8)
    b = (weights.codes.astype(np.int16) - 128).astype(np.int8)
    c, offset = np.empty((shape.m, shape.n), np.int32), np.zeros(1, np.int32)
    m, n, k = (ctypes.c_int64(size) for size in (shape.m, shape.n, shape.k))
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    letters = [ctypes.c_char(letter) for letter in (b"N", b"T", b"F")]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (a, b, c, offset)]
    arguments = [
        *letters, m, n, k, one, pointers[0], k, ctypes.c_uint8(0), pointers[1], k, ctypes.c_int8(0), zero,
        pointers[2], n, pointers[3],
    ]  # fmt: skip
    keep = (a, b, c, offset)
    return lambda: (library.dnnl_gemm_u8s8s32(*arguments), keep)
