"""A conformance suite for adapters: what a family must do before its results mean anything."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant import _core
from omniquant.calibration import calibrate
from omniquant.checkpoint.source import F32
from omniquant.config import CalibrationOptions, QuantConfig, core_options
from omniquant.errors import OmniQuantError
from omniquant.forward import float_logits, rope_or_empty, run_block
from omniquant.models.adapter import FamilyAdapter
from omniquant.models.load import load_model
from omniquant.models.model import Model
from omniquant.models.registry import ADAPTERS

Logits = Callable[[npt.NDArray[np.int32]], npt.NDArray[np.floating]]

_WINDOWS, _LENGTH = 4, 24
_EPOCHS = 100
_OFF = QuantConfig.parse("W16A16")


class ConformanceError(OmniQuantError):
    """An adapter does not do what every family must."""


@dataclass
class _Suite:
    """One run of the suite over one checkpoint."""

    model: Model
    tokens: npt.NDArray[np.int32]
    rng: np.random.Generator

    def require(self, holds: bool, what: str) -> None:
        """Raise ConformanceError unless something holds."""
        if not holds:
            raise ConformanceError(f"{self.model.family}: {self.model.name}: {what}")

    def shapes(self) -> None:
        """Check that every tensor of every block has the shape its spec says, and is finite."""
        for layer in range(self.model.num_layers):
            spec = self.model.spec_of(layer)
            norms = {f"{name}.weight": (width,) for name, width in spec.norm_widths().items()}
            linears = {f"{name}.weight": shape for name, shape in spec.linear_shapes().items()}
            block = self.model.block(layer)
            for name, shape in {**norms, **linears}.items():
                found = block[name].shape if name in block else "missing"
                self.require(found == shape, f"block {layer}: {name} is {found}, expected {shape}")
            for name, values in block.items():
                self.require(bool(np.isfinite(values).all()), f"block {layer}: {name} is not finite")

    def logits(self, reference: Logits | None) -> None:
        """Check that logits are finite, causal, and the reference's to 1e-4 of their size."""
        ours = float_logits(self.model, self.tokens)
        self.require(bool(np.isfinite(ours).all()), "logits are not finite")
        changed = self.tokens.copy()
        changed[:, -1] = (changed[:, -1] + 1) % self.model.vocab_size
        prefix = float_logits(self.model, changed)[:, :-1]
        # Experts multiply the rows of their tokens together: other rows, other order of sums.
        least = 1e-6 * float(np.abs(ours).max()) if self.model.spec.num_experts else 0.0
        change = float(np.abs(ours[:, :-1] - prefix).max())
        self.require(change <= least, "a token changes logits before it")
        if reference is not None:
            theirs = np.asarray(reference(self.tokens), np.float64)
            error = float(np.abs(ours - theirs).max() / max(1.0, float(np.abs(theirs).max())))
            self.require(error <= 1e-4, f"logits differ from the reference's by {error:.2e}")

    def options(self, layer: int, scheme: QuantConfig, norm_map: str) -> dict[str, Any]:
        """Return the core's options with every exact map the block permits."""
        method = CalibrationOptions.for_method("affinequant", QuantConfig.parse("W4A4"))
        chosen = {
            "norm_map": norm_map,
            "qk_map": "exact",
            "vo_map": "affine",
            "up_down": True,
            "epochs": 0,
            "lwc": False,
        }
        options = CalibrationOptions.from_dict(method.to_dict() | chosen)
        return dict(core_options(scheme, options, block=layer, **self.model.spec_of(layer).map_facts()))

    def random_learnables(self, start: dict[str, F32]) -> dict[str, F32]:
        """Return learnables away from their start, with maps that stay dominant."""
        moved: dict[str, F32] = {}
        for name, values in start.items():
            noise = self.rng.uniform(-0.4, 0.4, values.shape).astype(np.float32)
            if name.endswith(".shift"):
                moved[name] = values + noise
            elif values.ndim == 3 and values.shape[0] != 2:
                moved[name] = values + noise / values.shape[-1]
            else:
                moved[name] = values * np.exp(noise)
        return moved

    def equivalence(self) -> None:
        """Check that with nothing quantized exact maps change no block and have no gradient."""
        x = self.model.embed(self.tokens)
        for layer in range(self.model.num_layers):
            weights = self.model.block(layer)
            y = run_block(self.model, layer, weights, x)
            for norm_map in ("diagonal", "online"):
                self._exact(layer, norm_map, weights, x, y)
            x = y

    def _exact(self, layer: int, norm_map: str, weights: dict[str, F32], x: F32, y: F32) -> None:
        spec, where = self.model.spec_of(layer).to_core(), f"block {layer}, norm_map {norm_map}"
        tables = rope_or_empty(self.model, x.shape[1], layer)
        options = self.options(layer, _OFF, norm_map)
        data = (spec, weights, x, x, y + np.float32(0.1) * x, None, *tables)
        start = dict(_core.calibrate_block(*data, options)["learnables"])
        moved = self.random_learnables(start)
        folded = _core.fold_block(spec, weights, options, moved)
        after = run_block(self.model, layer, folded, x)
        change = float(np.abs(after - y).max() / np.abs(y).max())
        self.require(change <= 1e-5, f"{where}: exact maps change the output by {change:.2e} of its size")
        # A loss that does not depend on the maps: what is left of its gradient is rounding.
        _, still = _core.block_loss(*data, options, moved)
        _, moving = _core.block_loss(*data, self.options(layer, QuantConfig.parse("W3A4"), norm_map), moved)
        sizes = [_norm({name: g[name] for name in moved}) for g in (still, moving)]
        self.require(sizes[0] <= 1e-2 * sizes[1], f"{where}: exact maps have a gradient of {sizes[0]:.2e}")

    def calibration(self) -> None:
        """Check that training lowers the loss of a block, at W4A4 and W3A16."""
        for scheme, method in (("W4A4", "affinequant"), ("W3A16", "omniquant")):
            # All windows a step: on a model this small, steps of single windows need not descend.
            result = calibrate(
                self.model, self.tokens, scheme, method=method, epochs=_EPOCHS, batch_size=_WINDOWS,
                best_iterate=True, progress=False, threads=1,
            )  # fmt: skip
            losses = [(block.loss_initial, block.loss_final) for block in result.blocks]
            self.require(
                any(final < initial for initial, final in losses),
                f"{scheme} {method}: no block's loss fell below its start: {losses}",
            )

    def runtime(self) -> None:
        """Check that the integer runtime and the exported folder compute what fake quantization does."""
        result = calibrate(self.model, self.tokens, "W4A32", method="rtn", progress=False, threads=1)
        expected = float_logits(result.fold(), self.tokens)
        scale = max(1.0, float(np.abs(expected).max()))
        error = float(np.abs(result.fold().logits(self.tokens, threads=1) - expected).max()) / scale
        self.require(error <= 1e-4, f"the integer runtime differs by {error:.2e}")
        with tempfile.TemporaryDirectory() as folder:
            path = result.export(Path(folder) / "plain", "huggingface", weights_only=True)
            found = float_logits(load_model(path), self.tokens)
        error = float(np.abs(found - expected).max()) / scale
        self.require(error <= 1e-5, f"the exported folder, read again, differs by {error:.2e}")


def _norm(gradients: dict[str, F32]) -> float:
    return float(np.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients.values())))


def check_model_adapter(
    adapter: FamilyAdapter, path: str | os.PathLike[str], *, reference: Logits | None = None, seed: int = 0
) -> list[str]:
    """Run every check a family must pass on a small checkpoint of it.

    Shapes; logits, causal and equal to a reference's (1e-4); exact maps that change no block (1e-5) and have
    no gradient while nothing is quantized; calibrations at W4A4 and W3A16 that end below their start; the
    integer runtime, and an export read again, equal to fake quantization.

    Parameters
    ----------
    adapter : FamilyAdapter
        It must be in the table of families (``omniquant.models.ADAPTERS``).
    path : path
        A checkpoint of a few small layers with random weights; calibrating it takes seconds.
    reference : callable, optional
        From tokens int32 [N, T] to the logits [N, T, V] another implementation computes.
    seed : int
        Of tokens and learnables.

    Returns
    -------
    list of str
        The names of the checks, all passed.

    Raises
    ------
    ConformanceError
        Naming the family, the checkpoint and what does not hold.
    """
    model = load_model(path)
    rng = np.random.default_rng(seed)
    length = min(_LENGTH, model.max_positions)
    suite = _Suite(model, rng.integers(0, model.vocab_size, (_WINDOWS, length)).astype(np.int32), rng)
    suite.require(adapter in ADAPTERS, "the adapter is not in the table of families")
    suite.require(
        model.family == adapter.name, f"the checkpoint is read by {model.family}, not {adapter.name}"
    )
    suite.shapes()
    suite.logits(reference)
    suite.equivalence()
    suite.calibration()
    suite.runtime()
    return ["shapes", "logits", "equivalence", "calibration", "runtime"]
