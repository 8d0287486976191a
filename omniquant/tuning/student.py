"""A quantized model whose scales and gains are trained: forward through all blocks, and back to them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from omniquant import _core
from omniquant.blockfile import BlockState, dequantized
from omniquant.config.target import scale_bits
from omniquant.errors import NotFiniteError
from omniquant.forward import (
    F32,
    I32,
    ForwardModel,
    Head,
    Weights,
    activation_of,
    block_parts,
    rope_or_empty,
)
from omniquant.quantized import QuantizedModel
from omniquant.tuning.factors import Entry, Factors

# Float in every result and format; those of norms behind linears are constants of the backward pass.
_GAINS = ("norm1.weight", "norm2.weight")
# At the scales' rate they undo on SmolLM2 what scales gain: 0.1475 -> 0.1478 nats, at a tenth -> 0.1443.
_GAIN_RATE = 0.1


class Student:
    """The quantized model with the scales and gains of the moment.

    Parameters
    ----------
    model : QuantizedModel
    reference : ForwardModel
        The model in full precision.
    threads : int
    exact : bool
        To learn from float32 products too, rather than from the fastest of this machine; so it is where those
        would drown the scheme's error.

    Attributes
    ----------
    factors : Factors
    """

    def __init__(
        self, model: QuantizedModel, reference: ForwardModel, threads: int, *, exact: bool = False
    ) -> None:
        self._model, self._threads = model, threads
        self._states = [model.state(index) for index in range(model.num_layers)]
        self._head = Head(model)
        self._reference = Head(reference, like=self._head)
        machine = _core.runtime_info()
        exact = exact or model.scheme.finer_than_bytes
        self._in_parts = machine["products"] == "bfloat16"
        self._bfloat16 = self._in_parts and not exact
        self._byte_gradients = machine["gradients"] == "int8" and not exact
        self.factors = Factors(self._entries())

    def _entries(self) -> Iterator[Entry]:
        target = self._model.options.target
        for index, state in enumerate(self._states):
            for name, linear in self._model.scheme.block(index).items():
                if f"{name}.scale" in state.folded:
                    bits = scale_bits(target, linear.symmetric)
                    yield Entry(index, f"{name}.scale", state.folded[f"{name}.scale"], bits)
            for name in _GAINS:
                if name in state.folded:
                    yield Entry(index, name, state.folded[name], 0, _GAIN_RATE)

    def digest(self) -> str:
        """Return the sha256 of all blocks as calibration left them."""
        found = hashlib.sha256()
        for state in self._states:
            for name, values in sorted(state.folded.items()):
                found.update(f"{name} {values.shape}".encode())
                found.update(np.ascontiguousarray(values).data)
        return found.hexdigest()

    def state(self, index: int) -> BlockState:
        """Return a block with the scales and gains of the moment."""
        state = self._states[index]
        learned = {name: self.factors.get(index, name) for name in self.factors.names(index)}
        return replace(state, folded=state.folded | learned)

    def _weights(self, index: int) -> Weights:
        return dequantized(self.state(index).folded, self._model.scheme.block(index))

    def forward(self, window: I32, *, learn: bool = False) -> list[F32]:
        """Return the hidden states [T, H] before every block of one window [T], and behind the last.

        To learn from, products take what is fastest, as calibration's; to judge by, float.
        """
        states = [self._model.embed(window)]
        for index in range(self._model.num_layers):
            ((_, y),) = block_parts(
                self._model,
                index,
                self._weights(index),
                states[-1][None],
                activation=activation_of(self._model, index),
                in_parts=self._in_parts,
                bfloat16=self._bfloat16 and learn,
                threads=self._threads,
            )
            states.append(y[0])
        return states

    def at_the_head(self, hidden: F32, reference: F32, *, learn: bool = False) -> tuple[float, F32]:
        """Return the mean divergence of hidden states [T, H] from the reference's, nats, and its gradient."""
        kl, gradient = self._head.divergence(
            hidden,
            self._reference,
            reference,
            self._threads,
            in_parts=self._in_parts,
            bfloat16=self._bfloat16 and learn,
        )
        return float(kl.mean()), gradient

    def divergence(self, window: I32, reference: F32) -> float:
        """Return the mean divergence of one window [T] from the reference's hidden states [T, H]."""
        return self.at_the_head(self.forward(window)[-1], reference)[0]

    def gradients(self, window: I32, reference: F32) -> tuple[float, F32]:
        """Return the same and its gradient by factors.theta [total]."""
        states = self.forward(window, learn=True)
        kl, d = self.at_the_head(states.pop(), reference, learn=True)
        dtheta = np.zeros_like(self.factors.theta)
        for index in reversed(range(self._model.num_layers)):
            d = self._back_through(index, states.pop(), d, dtheta)
        if not (np.isfinite(kl) and np.isfinite(dtheta).all()):
            raise NotFiniteError(f"{self._model.name}: the divergence is {kl}, or its gradient is not finite")
        return kl, dtheta

    def _back_through(self, index: int, x: F32, dy: F32, dtheta: F32) -> F32:
        """Return the gradient of a block's input [T, H]; those of its factors are added to dtheta."""
        dx, gradients = _core.block_backward(
            self._model.spec_of(index).to_core(),
            self._weights(index),
            x,
            dy,
            *rope_or_empty(self._model, len(x), index),
            activation=activation_of(self._model, index),
            bfloat16=self._bfloat16,
            byte_gradients=self._byte_gradients,
            threads=self._threads,
        )
        for name in self.factors.names(index):
            gradient = gradients[name] if name in _GAINS else self._by_scale(index, name, gradients)
            self.factors.add_gradient(dtheta, index, name, gradient)
        return dx

    def _by_scale(self, index: int, name: str, gradients: Weights) -> F32:
        """Return the gradient of a linear's scales [out, groups] from that of its weights."""
        linear, folded = name.removesuffix(".scale"), self._states[index].folded
        return _core.dequantize_backward(
            folded[f"{linear}.codes"],
            folded[f"{linear}.zero_point"],
            gradients[f"{linear}.weight"],
            group_size=self._model.scheme.block(index)[linear].group_size or 0,
            threads=self._threads,
        )
