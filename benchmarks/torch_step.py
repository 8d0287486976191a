"""A calibration step as one would write it in torch: the core's maths, each piece in its plain best form.

One window x [T, H]; W [out, in]. Forward of the transformed, fake-quantized block, mean squared error,
backward by autograd, AdamW. Quantizers are one fused expression a tensor, attention is torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from omniquant.blockfile import linear_shapes
from omniquant.config import QuantConfig
from omniquant.models.spec import BlockSpec

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


def round_through(x: Tensor) -> Tensor:
    """Round with the gradient of the identity."""
    return (x.round() - x).detach() + x


def fake_quantize(x: Tensor, bits: int, clip: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Quantize rows of x [..., n] asymmetrically, one grid each; clip: LWC's logits of max and min."""
    if bits >= 16:
        return x
    hi, lo = x.amax(-1, keepdim=True).clamp(min=0), x.amin(-1, keepdim=True).clamp(max=0)
    if clip is not None:
        hi, lo = torch.sigmoid(clip[0]) * hi, torch.sigmoid(clip[1]) * lo
    top = 2**bits - 1
    h = ((hi - lo) / top).clamp(min=1e-8)
    z = (-lo / h).round().detach()
    return (torch.clamp(round_through(x / h) + z, 0, top) - z) * h


class Step:
    """A block, its learnables and its optimizer; calling it takes a step."""

    def __init__(
        self, spec: BlockSpec, scheme: QuantConfig, method: str, tokens: int, *, autocast: bool = False
    ) -> None:
        random = np.random.default_rng(0)
        self.spec, self.scheme, self.method, self.tokens = spec, scheme, method, tokens
        self.weights = {
            name: torch.from_numpy(
                random.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[1]))
            )
            for name, shape in linear_shapes(spec).items()
        }
        self.x = torch.from_numpy(random.standard_normal((tokens, spec.hidden_size), np.float32))
        self.target = self.x * 1.1
        half = spec.head_dim // 2
        angles = torch.arange(tokens)[:, None] / 10000 ** (torch.arange(half) / half)
        self.cos, self.sin = torch.cos(angles)[:, None], torch.sin(angles)[:, None]
        self.learned = self._learnables()
        self.optimizer = torch.optim.AdamW(self.learned.values(), lr=5e-3, weight_decay=0.0)
        self.context = (lambda: torch.autocast("cpu", dtype=torch.bfloat16)) if autocast else nullcontext
        self.loss: Callable[[], Tensor] = self._loss

    def compile(self) -> Step:
        """Let torch compile forward and backward."""
        self.loss = torch.compile(self._loss)
        return self

    def __call__(self) -> float:
        """Take a step and return its loss."""
        self.optimizer.zero_grad()
        with self.context():
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def _learnables(self) -> dict[str, Tensor]:
        spec = self.spec
        sizes: dict[str, tuple[int, ...]] = {}
        if not self.scheme.weight_only:
            sizes |= {"norm1": (spec.hidden_size,), "norm2": (spec.hidden_size,), "up_down": (spec.ffn_size,)}
            affine = (spec.num_kv_heads, spec.head_dim, spec.head_dim)
            sizes |= dict.fromkeys(("vo", "qk"), affine if self.method == "affinequant" else affine[:2])
        found = {
            name: torch.eye(size[-1]).repeat(size[0], 1, 1) if len(size) == 3 else torch.ones(size)
            for name, size in sizes.items()
        }
        for name, (out, _) in linear_shapes(spec).items():
            found |= {f"{name}.max": torch.full((out, 1), 4.0), f"{name}.min": torch.full((out, 1), 4.0)}
        return {name: value.requires_grad_() for name, value in found.items()}

    def _rows(self, w: Tensor, name: str, repeat: int, *, inverse: bool) -> Tensor:
        """Map the output channels of w [heads d, in] head by head."""
        a = self.learned[name].repeat_interleave(repeat, 0)
        heads = w.view(a.shape[0], self.spec.head_dim, -1)
        if a.ndim == 2:
            return (heads / a[..., None] if inverse else heads * a[..., None]).reshape(w.shape)
        a = torch.linalg.inv(a).transpose(1, 2) if inverse else a
        return (a @ heads).reshape(w.shape)

    def _columns(self, w: Tensor, name: str, repeat: int) -> Tensor:
        """Map the input channels of w [out, heads d] head by head."""
        a = self.learned[name].repeat_interleave(repeat, 0)
        heads = w.view(w.shape[0], a.shape[0], self.spec.head_dim)
        if a.ndim == 2:
            return (heads * a).reshape(w.shape)
        return torch.einsum("ohi,hji->ohj", heads, a).reshape(w.shape)

    def _transformed(self) -> dict[str, Tensor]:
        w = dict(self.weights)
        if not self.scheme.weight_only:
            repeat = self.spec.num_heads // self.spec.num_kv_heads
            for name in ("q", "k", "v"):
                w[name] = w[name] * self.learned["norm1"]
            for name in ("gate", "up"):
                w[name] = w[name] * self.learned["norm2"]
            w["q"] = self._rows(w["q"], "qk", repeat, inverse=True)
            w["k"] = self._rows(w["k"], "qk", 1, inverse=False)
            w["v"] = self._rows(w["v"], "vo", 1, inverse=True)
            w["o"] = self._columns(w["o"], "vo", repeat)
            w["up"] = w["up"] / self.learned["up_down"][:, None]
            w["down"] = w["down"] * self.learned["up_down"]
        return {
            name: fake_quantize(
                w[name], self.scheme.w_bits, (self.learned[f"{name}.max"], self.learned[f"{name}.min"])
            )
            for name in LINEARS
        }

    def _norm(self, x: Tensor, site: str) -> Tensor:
        y = functional.rms_norm(x, (x.shape[-1],), eps=self.spec.norm_eps)
        return fake_quantize(y / self.learned[site] if site in self.learned else y, self.scheme.a_bits)

    def _rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), -1)

    def _loss(self) -> Tensor:
        spec, bits, w = self.spec, self.scheme.a_bits, self._transformed()
        h = self._norm(self.x, "norm1")
        q, k, v = (
            functional.linear(h, w[name]).view(self.tokens, -1, spec.head_dim) for name in ("q", "k", "v")
        )
        q, k = self._rotate(q), self._rotate(k)
        q, k, v = (fake_quantize(t, bits).transpose(0, 1)[None] for t in (q, k, v))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        attended = attended[0].transpose(0, 1).reshape(self.tokens, -1)
        x = self.x + functional.linear(fake_quantize(attended, bits), w["o"])
        h = self._norm(x, "norm2")
        u = functional.silu(functional.linear(h, w["gate"])) * functional.linear(h, w["up"])
        y = x + functional.linear(fake_quantize(u, bits), w["down"])
        return functional.mse_loss(y.float(), self.target)
