"""The quantized block and its loss written plainly in torch, double precision: what the C core is held to.

Rounding is straight-through by detach.  W [out, in], x [T, H]; a linear is y = x W^T + b.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from random_blocks import Case, linear_shapes, map_kinds
from rotations import fixed_rotation
from torch import Tensor
from torch.nn import functional

Tensors = dict[str, Tensor]

torch.set_num_threads(1)  # the blocks are tiny


def fake_quantize_group(
    x: Tensor,
    bits: int,
    symmetric: bool,
    full: bool,
    clip: tuple[Tensor, Tensor] | None,
    offset: Tensor | None = None,
) -> Tensor:
    """Quantize the rows of x [rows, n], one grid each; clip holds LWC's logits [rows] of max and min.

    offset [rows, n] is added inside round().
    """
    zero = torch.zeros((), dtype=x.dtype)
    hi, lo = x.amax(1), x.amin(1)
    hi, lo = torch.where(hi > 0, hi, zero), torch.where(lo < 0, lo, zero)  # 0 is always in the range
    if clip:
        hi, lo = torch.sigmoid(clip[0]) * hi, torch.sigmoid(clip[1]) * lo
    top = 2**bits - 1
    if symmetric:
        h = torch.where(hi >= -lo, hi, -lo) / (top / 2 if full else 2 ** (bits - 1) - 1)
    else:
        h = (hi - lo) / top
    h = torch.where(h == 0, torch.ones_like(h), h)
    z = torch.full_like(h, 2 ** (bits - 1)) if symmetric else (-lo / h).round().clamp(0, top)
    h, z = h[:, None], z.detach()[:, None]
    u = x / h if offset is None else x / h + offset
    raw = (u.round() + z).detach()
    q = raw.clamp(0, top)
    through = torch.where(raw == q, u - u.detach(), 0.0)  # 0, with the gradient of u inside the range
    return (through + (q - z)) * h


def fake_quantize(x: Tensor, bits: int, symmetric: bool, *, full: bool = False, group: int = 0,
                  clip: tuple[Tensor, Tensor] | None = None,
                  offset: Tensor | None = None) -> Tensor:  # fmt: skip
    """Quantize x [rows, width] in groups of columns; the last may be shorter.  clip [rows, groups]."""
    if bits >= 16:
        return x
    parts = x.split(group or x.shape[1], dim=1)
    clips = [(clip[0][:, i], clip[1][:, i]) if clip else None for i in range(len(parts))]
    offsets = [None] * len(parts) if offset is None else offset.split(group or x.shape[1], dim=1)
    done = [
        fake_quantize_group(part, bits, symmetric, full, c, v)
        for part, c, v in zip(parts, clips, offsets, strict=True)
    ]
    return torch.cat(done, dim=1)


def mask(n: int, epoch: int, epochs: int, stability: float) -> Tensor:
    """Return the gradual mask [n, n]."""
    band = n - 1 if epoch >= epochs - 1 else (n - 1) * epoch // (epochs - 1)
    distance = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    open_ = torch.full((n, n), stability, dtype=torch.float64) * (distance <= band)
    return open_.fill_diagonal_(1)


def site_map(case: Case, site: str, learnables: Tensors) -> Tensor | None:
    """Return A [blocks, n, n] of a site, None where it has no map."""
    kind, options = map_kinds(case)[site], case.options
    if kind == "none":
        return None
    p = learnables[f"{site}.map"]
    if kind in ("diagonal", "scale"):
        return torch.diag_embed(p)
    if kind in ("tied", "rotation"):
        first, second = pairs(case.spec)
        a, b = (p, torch.zeros_like(p)) if kind == "tied" else (p[0], p[1])
        paired = torch.zeros(a.shape[0], 2 * len(first), 2 * len(first), dtype=torch.float64)
        paired[:, first, first], paired[:, first, second] = a, -b
        paired[:, second, first], paired[:, second, second] = b, a
        return paired
    n = p.shape[-1]
    masked = p * mask(n, case.epoch, options["epochs"], options["stability"])
    if options["parametrization"] == "absolute":
        return masked
    diagonal = torch.diagonal(p, dim1=1, dim2=2)
    off = masked - torch.diag_embed(diagonal)
    return diagonal[..., None] * off + torch.diag_embed(diagonal)


def rotated_input(case: Case, name: str, rows: Tensor) -> Tensor:
    """Return rows [.., in] of the input of o or down behind its online rotation."""
    spec = case.spec
    if name == "down" and spec["rotate_down"]:
        return rows @ torch.from_numpy(fixed_rotation(spec["ffn_size"]))
    if name == "o" and spec["rotate_heads"]:
        mixing = torch.from_numpy(np.kron(fixed_rotation(spec["num_heads"]), np.eye(spec["head_dim"])))
        return rows @ mixing
    return rows


def pairs(spec: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the channels of every pair of a head: those that rotate together, then halves of the rest."""
    d = spec["head_dim"]
    r = spec.get("rotary_dim") or d
    i, j = torch.arange(r // 2), torch.arange((d - r) // 2)
    return torch.cat([i, r + j]), torch.cat([i + r // 2, r + (d - r) // 2 + j])


def per_head(a: Tensor, heads: int) -> Tensor:
    """Return the block-diagonal matrix of the maps, each repeated for the heads that share it."""
    return torch.block_diag(*a.repeat_interleave(heads // a.shape[0], dim=0))


class TransformedBlock:
    """A block's weights under its learnables: maps, shifts, then LWC's quantizer."""

    def __init__(self, case: Case, learnables: Tensors) -> None:
        self.case, self.learnables = case, learnables
        self.mlp_norm = "norm1" if case.spec.get("residual") == "shared" else "norm2"
        self.original = {key: torch.from_numpy(value).double() for key, value in case.weights.items()}
        self.maps = {site: site_map(case, site, learnables) for site in map_kinds(case)}
        self.weight, self.bias = {}, {}
        for name in linear_shapes(case.spec):
            self.weight[name] = self.quantize(name, self.transformed(name, self.original[f"{name}.weight"]))
            self.bias[name] = self.shifted_bias(name)

    def consumer_map(self, name: str) -> Tensor | None:
        """Return A on the columns of a linear (from its input's side)."""
        if name == "shared_down":
            return None
        sites = {"q": "norm1", "k": "norm1", "v": "norm1", "o": "vo", "down": "up_down"}
        site = sites.get(name, self.mlp_norm)
        a = self.maps[site]
        if a is None:
            return None
        return per_head(a, self.case.spec["num_heads"]) if site == "vo" else a[0]

    def producer_map(self, name: str) -> Tensor | None:
        """Return the matrix on the rows of a linear: A for k, A^-T for q, v and up."""
        site = {"q": "qk", "k": "qk", "v": "vo", "up": "up_down"}.get(name, "")
        a = self.maps.get(site)
        if a is None:
            return None
        if name == "k":
            return per_head(a, a.shape[0])
        inverse = torch.linalg.inv(a).transpose(1, 2)
        return per_head(inverse, self.case.spec["num_heads"] if name == "q" else a.shape[0])

    def transformed(self, name: str, weight: Tensor) -> Tensor:
        """Return W~ = P W A^T."""
        columns, rows = self.consumer_map(name), self.producer_map(name)
        if columns is not None:  # a map stands before the rotation
            weight = rotated_input(self.case, name, rotated_input(self.case, name, weight) @ columns.T)
        weight = weight if rows is None else rows @ weight
        factors = self.factors({"o": "o", "down": "down", "gate": "norm2", "up": "norm2"}.get(name, "norm1"))
        return weight if factors is None else weight @ factors.T

    def factors(self, name: str) -> Tensor | None:
        """Return the Kronecker map of an input, None where there is none."""
        left, right = self.maps[f"{name}_left"], self.maps[f"{name}_right"]
        return None if left is None or right is None else torch.kron(left[0], right[0])

    def mapped(self, name: str, x: Tensor) -> Tensor:
        """Return an input x [T, width] behind its Kronecker map."""
        factors = self.factors(name)
        return x if factors is None else x @ torch.linalg.inv(factors)

    def quantize(self, name: str, weight: Tensor) -> Tensor:
        """Return W^."""
        o = self.case.options
        if "router" in name:
            return weight
        clip = None
        if f"{name}.lwc_max" in self.learnables:
            clip = self.learnables[f"{name}.lwc_max"], self.learnables[f"{name}.lwc_min"]
        offset, group = self.learnables.get(f"{name}.offset"), o["group_size"]
        return fake_quantize(weight, o["w_bits"], o["w_symmetric"], group=group, clip=clip, offset=offset)

    def shifted_bias(self, name: str) -> Tensor | None:
        """Return b~ = P (b + W delta_in - delta_out)."""
        bias = self.original.get(f"{name}.bias")
        if bias is None:
            return None
        mlp = self.mlp_norm
        sites = {"q": "norm1", "k": "norm1", "v": "norm1", "o": "vo", "down": "", "shared_down": ""}
        site = sites.get(name, mlp)
        delta = self.learnables.get(f"{site}.shift")
        if delta is not None:
            if site == "vo":
                delta = delta.repeat_interleave(self.case.spec["num_heads"] // delta.shape[0], dim=0)
            bias = bias + rotated_input(self.case, name, self.original[f"{name}.weight"]) @ delta.flatten()
        if name == "v" and "vo.shift" in self.learnables:
            bias = bias - self.learnables["vo.shift"].flatten()
        rows = self.producer_map(name)
        return bias if rows is None else rows @ bias

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Return x W^^T + b~."""
        return functional.linear(x, self.weight[name], self.bias[name])

    def plain_norm(self, name: str, x: Tensor) -> Tensor:
        """Return the norm of x over its last axis; x itself where the block has no such norm."""
        eps = self.case.spec["norm_eps"]
        if f"{name}.weight" not in self.original:
            return x
        if self.case.spec["norm"] == "layer":
            x = x - x.mean(-1, keepdim=True)
        y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * self.original[f"{name}.weight"]
        return y + self.original.get(f"{name}.bias", torch.zeros(()).double())

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Return the norm of x [T, H] behind its map: (norm(x) - delta) A^-1."""
        y = self.plain_norm(name, x)
        if f"{name}.shift" in self.learnables:
            y = y - self.learnables[f"{name}.shift"][0]
        a = self.maps[name]
        return self.mapped(name, y if a is None else y @ torch.linalg.inv(a[0]))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [T, heads, d] with the pairs (i, i + r / 2) of its first r dims rotated."""
    r = 2 * cos.shape[1]
    low, high = x[..., :r].chunk(2, dim=2)
    cos, sin = cos[: len(x), None], sin[: len(x), None]
    return torch.cat([low * cos - high * sin, high * cos + low * sin, x[..., r:]], dim=2)


def alibi_slopes(heads: int) -> list[float]:
    """Return the slopes of the paper's own code: a geometric row, filled up from the one of twice as many."""
    closest = 2 ** int(np.floor(np.log2(heads)))
    start = 2.0 ** (-8 / closest)
    slopes = [start ** (i + 1) for i in range(closest)]
    return slopes if closest == heads else slopes + alibi_slopes(2 * closest)[0::2][: heads - closest]


def shaped(spec: dict[str, Any], scores: Tensor) -> Tensor:
    """Return scores [heads, T, T] capped, falling with the distance, and masked."""
    T = scores.shape[1]
    distance = (torch.arange(T)[:, None] - torch.arange(T)).double()
    if spec.get("score_cap"):
        scores = spec["score_cap"] * torch.tanh(scores / spec["score_cap"])
    if spec.get("alibi"):
        slopes = torch.tensor(alibi_slopes(len(scores)), dtype=torch.float64)
        scores = scores - slopes[:, None, None] * distance
    hidden = (distance < 0) | (distance >= (spec.get("window") or T))
    return scores.masked_fill(hidden, -torch.inf)


ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}


def mlp(block: TransformedBlock, prefix: str, x: Tensor, quantize: Any, expert: int = 0) -> Tensor:
    """Return an MLP of x [T, H]: the shared one, or one of those whose matrices are stacked."""
    spec, act = block.case.spec, ACTIVATIONS[block.case.spec["activation"]]
    gate, up, down = (f"{prefix}{name}" for name in ("gate", "up", "down"))

    def linear(name: str, x: Tensor, width: int) -> Tensor:
        rows = slice(expert * width, (expert + 1) * width)
        bias = block.bias[name]
        return functional.linear(x, block.weight[name][rows], None if bias is None else bias[rows])

    ffn = spec["shared_ffn_size" if prefix else "ffn_size"]
    u = linear(up, x, ffn)
    u = act(linear(gate, x, ffn)) * u if spec["mlp"] == "gated" else act(u)
    return linear(down, quantize(u), spec["hidden_size"])


def experts(block: TransformedBlock, plain: Tensor, h: Tensor, quantize: Any) -> Tensor:
    """Return what a mixture of experts makes of h [T, H]; routers read `plain`, before its quantizer."""
    spec = block.case.spec
    p = block.linear("router", plain).softmax(dim=1)
    share, chosen = p.topk(spec["experts_per_token"], dim=1)
    if spec.get("normalized_experts"):
        share = share / share.sum(1, keepdim=True)
    rows = []
    for t in range(len(h)):
        outputs = [mlp(block, "", h[t : t + 1], quantize, expert)[0] for expert in chosen[t].tolist()]
        rows.append(share[t] @ torch.stack(outputs))
    y = torch.stack(rows)
    if spec.get("shared_ffn_size"):
        y = y + block.linear("shared_router", plain).sigmoid() * mlp(block, "shared_", h, quantize)
    return y


def forward(block: TransformedBlock, x: Tensor) -> Tensor:
    """Return the quantized block's output on one window x [T, H]."""
    spec, activation = block.case.spec, block.case.options["activation"]
    T, n, m, d = len(x), spec["num_heads"], spec["num_kv_heads"], spec["head_dim"]

    def quantize(value: Tensor, key: str = "bits", name: str = "") -> Tensor:
        symmetric, full = activation["symmetric"], activation["full_range"]
        logits, clip = block.learnables.get(f"{name}.lac"), None
        if logits is not None:
            clip = logits[0].expand(len(value), 1), logits[1].expand(len(value), 1)
        return fake_quantize(value, activation[key], symmetric, full=full, clip=clip)

    plain = block.norm("norm1", x)
    h = quantize(plain, name="norm1")
    q, k, v = (block.linear(name, h).view(T, -1, d) for name in ("q", "k", "v"))
    q, k = block.plain_norm("q_norm", q), block.plain_norm("k_norm", k)
    if spec["rope"]:
        cos, sin = (torch.from_numpy(table).double() for table in (block.case.cos, block.case.sin))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if spec["rotate_qk"]:
        turn = torch.from_numpy(fixed_rotation(d))
        q, k = q @ turn, k @ turn
    first = activation.get("sink_tokens", 0)
    pairs = ((q, "q_bits", 0), (k, "k_bits", first), (v, "v_bits", first))
    q, k, v = (
        torch.cat([value[:sinks], quantize(value[sinks:].reshape(-1, d), key).view(T - sinks, -1, d)])
        for value, key, sinks in pairs
    )
    k, v = k.repeat_interleave(n // m, dim=1), v.repeat_interleave(n // m, dim=1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * (spec.get("attention_scale") or d**-0.5)
    p = shaped(spec, scores).softmax(dim=2)
    attended = torch.einsum("hij,jhd->ihd", p, v).reshape(T, n * d)
    attended = block.mapped("o", rotated_input(block.case, "o", attended))
    x2 = x + block.plain_norm("post1", block.linear("o", quantize(attended, name="o")))
    residual = spec.get("residual", "sequential")
    if residual != "shared":
        plain = block.norm("norm2", x2 if residual == "sequential" else x)
        h = quantize(plain, name="norm2")
    if spec.get("num_experts"):
        return x2 + experts(block, plain, h, lambda u: quantize(u, name="down"))
    act = ACTIVATIONS[spec["activation"]]
    up = block.linear("up", h)
    u = act(block.linear("gate", h)) * up if spec["mlp"] == "gated" else act(up)
    u = block.mapped("down", rotated_input(block.case, "down", u))
    return x2 + block.plain_norm("post2", block.linear("down", quantize(u, name="down")))


def loss(case: Case, learnables: Tensors) -> Tensor:
    """Return the mean over windows of the weighted squared error, with the auxiliary term where asked."""
    block = TransformedBlock(case, learnables)
    x_fp, x_q, targets = (torch.from_numpy(a).double() for a in (case.x_fp, case.x_q, case.targets))
    total: Any = 0
    for i in range(len(x_q)):
        energy = torch.ones(x_q.shape[1]).double()
        if case.options["loss"] == "token":
            energy = (targets[i] - x_fp[i]).square().mean(1).clamp(min=1e-12)
        if case.options["loss"] == "relative":
            energy = targets[i].square().mean(1).clamp(min=1e-12)
        y = forward(block, x_q[i])
        total = total + ((y - targets[i]).square().mean(1) / energy).mean()
        if case.aug_targets is not None:
            aug = torch.from_numpy(case.aug_targets[i]).double()
            total = total + ((y - aug).square().mean(1) / energy).mean()
    return total / len(x_q)
