"""The C core. ``_core_double``, built for tests only, has the same functions in double precision."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Follower = tuple[Mapping[str, Any], Mapping[str, npt.ArrayLike], npt.ArrayLike, npt.ArrayLike]

# Wherever an array is taken: any layout; other dtypes are converted where NumPy's "same_kind" allows it
# (TypeError naming the argument otherwise). Inputs are never modified. Results are new C-contiguous arrays.

# --- runtime (csrc/python/py_runtime.c) ---

def load_onednn(path: str) -> None:
    """Load libdnnl from a path; errors.BackendError says why it cannot be used. Once, at import."""

def runtime_info() -> dict[str, Any]:
    """Keys: onednn (version or None), cpu, products, gradients (the fastest kinds), openmp, threads, real."""

def time_product(
    kind: str,
    m: int,
    n: int,
    k: int,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    a_bits: int = 8,
    b_bits: int = 8,
    own: bool = False,
    repeats: int = 3,
    threads: int = 1,
) -> npt.NDArray[np.float64]:
    """Seconds of a bare product [m, k] [k, n], one a repeat; UnsupportedError where a kind is missing.

    By oneDNN where it has the kind, or, own, as a step multiplies here, integers up to the floats they are.
    """

def matmul(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    threads: int = 1,
    by: Literal["best", "reference", "avx2", "bfloat16"] = "best",
) -> npt.NDArray[np.float32]:
    """op(a) [m, k] @ op(b) [k, n]; the same bits at any number of threads (0: all).

    bfloat16: of operands rounded to it, where that is faster than floats.
    """

def byte_product(
    left: npt.ArrayLike,
    right: npt.ArrayLike,
    *,
    by_rows: bool = False,
    often: bool = False,
    zero: int = 0,
    flip: int = 0,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """(left - zero) [m, k] @ right, exact sums of uint8 times the int8 whose bits uint8 right [n, k] holds.

    by_rows: right is [k, n], the bits of flip turned in every byte; often: it is laid out for several
    products first. UnsupportedError where products of floats are faster.
    """

def inverse(a: npt.ArrayLike, pivot: bool = False, threads: int = 1) -> npt.NDArray[np.float64]:
    """Inverse of a [n, n]; without pivoting for strictly diagonally dominant a. errors.SingularError."""

def _fail_allocation(n: int, persistent: bool) -> int:
    """Test hook: the n-th allocation from now fails (and all later ones); 0: off. Returns those since."""

# --- packed linear layers (csrc/python/py_kernels.c) ---

def linear_pack(
    codes: npt.ArrayLike,
    bits: int,
    group_size: int,
    scales: npt.ArrayLike,
    zero_points: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    activation_bits: int,
    symmetric: bool,
    full_range: bool,
    kernel: str | None,
    *,
    threads: int = 1,
) -> object:
    """Return a capsule; group_size 0: the whole row; activation_bits 16: float, else their grid as given."""

def linear_run(
    packed: object, x: npt.ArrayLike, *, threads: int = 1, out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Return y [..., N] of x [..., K]; the same bits for every kernel and any number of threads."""

def linear_info(packed: object) -> tuple[str, int]:
    """Return the kernel's name and the bytes of the packed layer."""

def kernel_names() -> list[str]:
    """Return the names of the kernels that run here, best first."""

# --- blocks and the head (csrc/python/py_block.c, py_head.c) ---
# spec: BlockSpec.to_core(); weights: {"q.weight": [n d, H], ...}; options: config.core_options().

def block_forward(
    spec: Mapping[str, Any],
    weights: Mapping[str, npt.ArrayLike],
    x: npt.ArrayLike,
    cos: npt.ArrayLike,
    sin: npt.ArrayLike,
    *,
    activation: Mapping[str, int | bool] | None = None,
    lengths: npt.ArrayLike | None = None,
    shared: npt.ArrayLike | None = None,
    in_parts: bool = False,
    bfloat16: bool = False,
    codes: Mapping[str, npt.ArrayLike] | None = None,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """One transformer block on windows x [N, T, H] -> [N, T, H]; activation None: nothing is quantized.

    in_parts: products of floats may be those of bfloat16 parts (AMX), 2^-16 from exact, three times as fast.
    bfloat16: products of the linears and of attention take operands rounded to it.
    codes {"q.codes": [n d, H], "q.scale": [n d, 1], "q.zero_point": [n d, 1], ...}: of linears with one grid
    a row, whose products with activations of at most 8 bits are then exact sums of integers.

    lengths [S], which sum to T: every window is S texts that do not see each other; row t of cos and sin is
    then that of token t's position in its text. shared [S]: how many tokens of the last text that shares none
    (0) a text begins with; its length counts its own.
    """

def block_backward(
    spec: Mapping[str, Any],
    weights: Mapping[str, npt.ArrayLike],
    x: npt.ArrayLike,
    dy: npt.ArrayLike,
    cos: npt.ArrayLike,
    sin: npt.ArrayLike,
    *,
    activation: Mapping[str, int | bool] | None = None,
    bfloat16: bool = False,
    byte_gradients: bool = False,
    threads: int = 1,
) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.float32]]]:
    """Return the gradients of x [T, H] and {"q.weight": [n d, H], "norm1.weight": [H], ...} from dy [T, H].

    Of norms, of those before linears.

    The forward pass is made again for it.

    bfloat16: products of the linears take operands rounded to it. byte_gradients: on the way back, to bytes,
    where no sum is too long for 32 bits.

    """

def token_nll(
    hidden: npt.ArrayLike,
    norm: str,
    norm_eps: float,
    norm_weight: npt.ArrayLike,
    norm_bias: npt.ArrayLike | None,
    lm_head: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    lm_head_bias: npt.ArrayLike | None = None,
    logit_cap: float = 0,
    threads: int = 1,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Nats of targets [M] after hidden states [M, H], lm_head [V, H], and the likeliest tokens [M].

    Logits get a bias [V] and become cap tanh(logit / cap); 0: they stay.
    """

def head_divergence(
    hidden: npt.ArrayLike,
    reference: npt.ArrayLike,
    norm: str,
    norm_eps: float,
    norm_weight: npt.ArrayLike,
    lm_head: npt.ArrayLike,
    reference_norm_weight: npt.ArrayLike,
    reference_lm_head: npt.ArrayLike,
    *,
    norm_bias: npt.ArrayLike | None = None,
    lm_head_bias: npt.ArrayLike | None = None,
    logit_cap: float = 0,
    in_parts: bool = False,
    bfloat16: bool = False,
    threads: int = 1,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Divergence [M] of the next tokens behind hidden [M, H] from those behind a reference's, nats.

    Both go through a norm and a head [V, H] of their own. Beside it its mean's gradient [M, H] by hidden.
    in_parts, bfloat16: as of :func:`block_forward`.
    """

def divergence(
    reference: npt.ArrayLike,
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    threads: int = 1,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Compare logits [M, V] with a reference's.

    Returns [M] each: sum_v P_v log(P_v / Q_v) with P the reference's, nats of the targets [M] under the
    reference and under the logits, and 1 where the likeliest token is the same.
    """

def judges(samples: int, tokens: int) -> list[int]:
    """Which of `samples` windows of `tokens` tell a block's loss: 8,192 tokens, 8 to 32 windows, evenly."""

def calibrate_block(
    spec: Mapping[str, Any],
    weights: Mapping[str, npt.ArrayLike],
    x_fp: npt.ArrayLike,
    x_q: npt.ArrayLike,
    targets: npt.ArrayLike,
    aug_targets: npt.ArrayLike | None,
    cos: npt.ArrayLike,
    sin: npt.ArrayLike,
    options: Mapping[str, Any],
    *,
    on_step: Callable[[int, int, float, float], object] | None = None,
    on_epoch: Callable[[int, dict[str, npt.NDArray[np.float32]]], object] | None = None,
    on_target: Callable[[int, npt.NDArray[np.float32]], object] | None = None,
    goals: npt.ArrayLike | None = None,
    followers: Sequence[Follower] | None = None,
    mapped: bool = False,
    threads: int = 1,
) -> dict[str, Any]:
    """Train, check and fold one block; streams [N, T, H].

    on_target(window, y [T, H]) is given the block's output on x_fp and has to put it where `targets` shows
    it; without it the targets are there already.
    goals [N, T, H] is what the followers (spec, weights, cos, sin), blocks behind this one in full precision,
    make of the targets in turn: the loss behind the last of them is added.
    mapped: the streams are read-only mappings of files, given back after use; else ValueError.
    on_step(epoch, step, loss, min_margin) and on_epoch(epoch, learnables) may raise: that ends the call.
    Keys: learnables, folded (dicts of arrays), trace float64 [epochs], loss_rtn, loss_initial, loss_final,
    kept, steps, rows_projected, steps_rejected, min_margin, max_condition, varah_bound (None without affine
    maps), worst_row, expert_tokens int32 [E]: tokens the full-precision stream sends to each expert.
    """

def fold_block(
    spec: Mapping[str, Any],
    weights: Mapping[str, npt.ArrayLike],
    options: Mapping[str, Any],
    learnables: Mapping[str, npt.ArrayLike],
    *,
    threads: int = 1,
) -> dict[str, npt.NDArray[Any]]:
    """Return "L.codes", "L.zero_point" uint8, "L.scale" of every linear (or "L.weight"), biases and norms."""

def block_loss(
    spec: Mapping[str, Any],
    weights: Mapping[str, npt.ArrayLike],
    x_fp: npt.ArrayLike,
    x_q: npt.ArrayLike,
    targets: npt.ArrayLike,
    aug_targets: npt.ArrayLike | None,
    cos: npt.ArrayLike,
    sin: npt.ArrayLike,
    options: Mapping[str, Any],
    learnables: Mapping[str, npt.ArrayLike],
    *,
    epoch: int = 0,
    goals: npt.ArrayLike | None = None,
    followers: Sequence[Follower] | None = None,
    threads: int = 1,
) -> tuple[float, dict[str, npt.NDArray[np.float32]]]:
    """Return the loss the training descends, over all windows, and its gradient for every learnable."""

# --- the quantizer (csrc/python/py_quant.c): rows along the last axis, one grid a group ---

def fake_quantize(
    x: npt.ArrayLike,
    *,
    bits: int,
    group_size: int = 0,
    symmetric: bool = False,
    full_range: bool = False,
    scale_bits: int = 0,
    max_logit: npt.ArrayLike | None = None,
    min_logit: npt.ArrayLike | None = None,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """X [..., K] -> the same shape; logits of LWC [..., groups]."""

def fake_quantize_backward(
    x: npt.ArrayLike,
    dout: npt.ArrayLike,
    *,
    bits: int,
    group_size: int = 0,
    symmetric: bool = False,
    full_range: bool = False,
    scale_bits: int = 0,
    max_logit: npt.ArrayLike | None = None,
    min_logit: npt.ArrayLike | None = None,
    threads: int = 1,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None, npt.NDArray[np.float32] | None]:
    """Dx [..., K] and, with LWC, dmax_logit and dmin_logit [..., groups]."""

def quantize(
    x: npt.ArrayLike,
    *,
    bits: int,
    group_size: int = 0,
    symmetric: bool = False,
    full_range: bool = False,
    scale_bits: int = 0,
    max_logit: npt.ArrayLike | None = None,
    min_logit: npt.ArrayLike | None = None,
    threads: int = 1,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Codes [..., K], scale and zero_point [..., groups]."""

def dequantize(
    codes: npt.ArrayLike,
    scales: npt.ArrayLike,
    zero_points: npt.ArrayLike,
    *,
    group_size: int = 0,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """(q - z) h, the very bits fake_quantize gives."""

def dequantize_backward(
    codes: npt.ArrayLike,
    zero_points: npt.ArrayLike,
    dout: npt.ArrayLike,
    *,
    group_size: int = 0,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """Return the gradient of the scales [..., G]: sum (q - z) dout over each group."""

def round_scales(scales: npt.ArrayLike, scale_bits: int) -> npt.NDArray[np.float32]:
    """Return scales as a format holds them that has so many significant bits for each; 0: as they are."""

def pack(codes: npt.ArrayLike, bits: int) -> npt.NDArray[np.uint8]:
    """Codes [..., K] of 1 to 8 bits -> [..., ceil(K bits / 8)]."""

def unpack(packed: npt.ArrayLike, bits: int, width: int) -> npt.NDArray[np.uint8]:
    """Packed [..., ceil(width bits / 8)] -> codes [..., width]."""

# --- transforms (csrc/python/py_transform.c): matrices [..., n, n] ---

def let_forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    scale: npt.ArrayLike,
    shift: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    threads: int = 1,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """X [..., K], weight [M, K], scale, shift [K], bias [M] -> (x - shift) / scale, W scale, b + W shift."""

def let_backward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    scale: npt.ArrayLike,
    dx_transformed: npt.ArrayLike,
    dweight_transformed: npt.ArrayLike,
    shift: npt.ArrayLike | None = None,
    dbias_transformed: npt.ArrayLike | None = None,
    *,
    threads: int = 1,
) -> tuple[
    npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32] | None
]:
    """Dx, dweight, dscale and, with a shift, dshift."""

def affine_forward(
    parameters: npt.ArrayLike,
    *,
    band: int = -1,
    stability: float = 1.0,
    parametrization: str = "relative",
    threads: int = 1,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return A and its inverse from parameters [n, n] or [blocks, n, n]; band -1: fully open."""

def affine_backward(
    parameters: npt.ArrayLike,
    da: npt.ArrayLike | None,
    dinverse: npt.ArrayLike | None,
    *,
    band: int = -1,
    stability: float = 1.0,
    parametrization: str = "relative",
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """Gradient of the parameters."""

def hadamard(x: npt.ArrayLike, *, threads: int = 1) -> npt.NDArray[np.float32]:
    """X [.., n, stride] times the fixed symmetric orthogonal matrix T_n along n."""

def gradual_mask(width: int, epoch: int, epochs: int, stability: float = 1.0) -> npt.NDArray[np.float64]:
    """Return the mask [width, width] of an epoch counted from 0."""

def dominance_margins(a: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """|A_ii| - sum |A_ij| of every row of A [n, n] or [blocks, n, n]."""

def varah_bound(a: npt.ArrayLike) -> Any:
    """1 / smallest margin, infinity without dominance: np.float64, or [blocks]."""

def project_dominant(a: npt.ArrayLike, tau: float = 0.05) -> tuple[npt.NDArray[np.float64], int]:
    """Return a copy whose rows have margins of at least tau |A_ii|, and how many rows changed."""

# --- one linear layer (csrc/python/py_linear.c) ---

def calibrate_linear(
    weight: npt.ArrayLike,
    x: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    options: Mapping[str, Any],
    *,
    on_step: Callable[[int, int, float, float], object] | None = None,
    on_epoch: Callable[[int, dict[str, npt.NDArray[np.float32]]], object] | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Weight [M, K], x [..., K]; norm_map of the options is the map of the input. Keys as calibrate_block's.

    folded: codes, scale, zero_point (or weight), and where there are: bias, shift, map, map_inverse, margins.
    """

def linear_loss(
    weight: npt.ArrayLike,
    x: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    options: Mapping[str, Any],
    learnables: Mapping[str, npt.ArrayLike],
    *,
    epoch: int = 0,
    threads: int = 1,
) -> tuple[float, dict[str, npt.NDArray[np.float32]]]:
    """Return the loss over all rows and its gradient for every learnable."""

# --- running a model (csrc/python/py_decoder.c); float build only: see omniquant/runtime/engine.py ---
# A matrix is (kind, values, scales or None), both as bytes: runtime.matrix.Matrix.to_core().

Matrix = tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]

def model_create(
    spec: Mapping[str, Any],
    activation: Mapping[str, int | bool] | None,
    embedding: Matrix,
    lm_head: Matrix,
    norm: npt.ArrayLike,
    norm_bias: npt.ArrayLike | None,
    layers: int,
    kernel: str | None,
    *,
    embedding_scale: float = 0,
    embedding_norm: npt.ArrayLike | None = None,
    embedding_norm_bias: npt.ArrayLike | None = None,
    positions: npt.ArrayLike | None = None,
    lm_head_bias: npt.ArrayLike | None = None,
    logit_cap: float = 0,
) -> object:
    """Return a model without its blocks, in a capsule; matrices [V, H], norms [H]. kernel None: the best.

    The embedding's rows are scaled (0: not), normed and get positions [P, H] before the first block; logits
    get a bias [V] and are capped (0: not).
    """

def model_set_block(
    model: object,
    index: int,
    spec: Mapping[str, Any],
    rope_table: int,
    tensors: Mapping[str, npt.ArrayLike],
    linears: Mapping[str, Mapping[str, int | bool]],
    activation: Mapping[str, int | bool] | None,
    *,
    threads: int = 1,
) -> None:
    """Pack one block from the tensors of its file; each block once.

    linears: LinearScheme.to_core() of each; activation: of inputs alone, the rest is the model's. The spec
    may differ from the model's in window, scores and rotary positions; rope_table: which of a decoder's
    tables it takes.
    """

def model_facts(model: object, /) -> dict[str, Any]:
    """Keys: bytes (of the packed blocks), lanes, kernel."""

def decoder_create(
    model: object, capacity: int, cos: npt.ArrayLike | None, sin: npt.ArrayLike | None
) -> object:
    """Return an empty cache for that many tokens, in a capsule; cos and sin [tables, capacity, r / 2]."""

def decoder_feed(decoder: object, tokens: npt.ArrayLike, want: str, *, threads: int = 1) -> Any:
    """Run tokens [n] behind those it holds.

    Want "nothing": None, "last": logits [V], "all": logits [n, V], "nll": float64 [n - 1], nats of the next.
    """

def decoder_rewind(decoder: object, length: int) -> None:
    """Forget the tokens behind the first `length`."""

def decoder_facts(decoder: object, /) -> dict[str, Any]:
    """Keys: capacity, length, bytes, keys, values (how they are kept)."""
