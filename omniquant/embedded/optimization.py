"""Optimization loop of the embedded model's training (development only)."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from omniquant.embedded.torch_llama import CausalLM

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """Hyperparameters of AdamW with linear warm-up and cosine decay."""

    steps: int = 5200
    batch: int = 8
    window: int = 256
    peak_rate: float = 3e-3
    final_rate: float = 3e-5
    warm_up: int = 200
    weight_decay: float = 0.1
    clip: float = 1.0
    report_every: int = 100
    evaluate_every: int = 500

    def rate(self, step: int) -> float:
        """Return the learning rate of a step counted from zero."""
        if step < self.warm_up:
            return self.peak_rate * (step + 1) / self.warm_up
        progress = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.final_rate + (self.peak_rate - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class TrainingRun:
    """Extent of a finished training."""

    tokens_seen: int
    epochs: float
    minutes: float


def _epoch_stream(documents: list[list[int]], boundary: list[int], generator: random.Random) -> Tensor:
    # Half of the borders are marked with special tokens: the model then knows both plain running text,
    # which perplexity is measured on, and the start of a document, which generation begins with.
    order = generator.sample(documents, len(documents))
    stream: list[int] = []
    for document in order:
        if generator.random() < 0.5:
            stream += boundary
        stream += document
    # A random start moves all window borders, so no two epochs train on the same windows.
    return torch.tensor(stream[generator.randrange(len(boundary) + 256) :])


def batches(
    documents: list[list[int]], boundary: list[int], schedule: Schedule, seed: int
) -> Iterator[Tensor]:
    """Yield batches (batch, window + 1) forever, reshuffled in every epoch.

    Parameters
    ----------
    documents
        Token ids of every document.
    boundary
        Special tokens set between some of the documents.
    schedule
        Gives the size of a batch.
    seed
        Seed of the order.

    Yields
    ------
    Tensor
        Token ids; inputs and targets are its first and last ``window`` columns.
    """
    generator = random.Random(seed)
    while True:
        stream = _epoch_stream(documents, boundary, generator)
        starts = list(range(0, len(stream) - schedule.window - 1, schedule.window))
        generator.shuffle(starts)
        for first in range(0, len(starts) - schedule.batch + 1, schedule.batch):
            chosen = starts[first : first + schedule.batch]
            yield torch.stack([stream[start : start + schedule.window + 1] for start in chosen])


def _optimizer(model: CausalLM, schedule: Schedule) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    gains = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": schedule.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.peak_rate, betas=(0.9, 0.95), fused=True)


def _step(model: CausalLM, optimizer: torch.optim.AdamW, batch: Tensor, schedule: Schedule) -> float:
    logits = model(batch[:, :-1])
    loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
    optimizer.step()
    return loss.item()


def optimize(
    model: CausalLM,
    data: Iterator[Tensor],
    schedule: Schedule,
    evaluate: Callable[[CausalLM], float],
) -> float:
    """Train a model in place.

    Parameters
    ----------
    model
        Model to train.
    data
        Endless batches.
    schedule
        Hyperparameters.
    evaluate
        Gives the perplexity to report now and then; it does not influence the training.

    Returns
    -------
    float
        Minutes taken.
    """
    optimizer = _optimizer(model, schedule)
    begin = time.monotonic()
    running = 0.0
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        model.train()
        running += _step(model, optimizer, next(data), schedule)
        done = step + 1
        if done % schedule.report_every == 0:
            speed = done * schedule.batch * schedule.window / (time.monotonic() - begin)
            _LOG.info("step %d loss %.4f tokens/s %.0f", done, running / schedule.report_every, speed)
            running = 0.0
        if done % schedule.evaluate_every == 0:
            _LOG.info("step %d evaluation perplexity %.3f", done, evaluate(model))
    return (time.monotonic() - begin) / 60
