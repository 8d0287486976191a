"""Train the embedded model from scratch: ``python -m omniquant.embedded.train --output DIR``.

Needs torch, tokenizers and safetensors, which omniquant itself does not need at run time. The stages are
tokenizer, training, outlier rescale, export; each is a module of its own beside this one.
"""

from __future__ import annotations

import argparse
import logging
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omniquant.embedded import corpus
from omniquant.embedded.architecture import Architecture
from omniquant.embedded.outliers import PLANS, OutlierPlan, Weights, add_outliers

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from omniquant.embedded.export import Figures
    from omniquant.embedded.optimization import Schedule, TrainingRun
    from omniquant.embedded.torch_llama import CausalLM

_LOG = logging.getLogger(__name__)
_DROPOUT = 0.1
# Harm of round-to-nearest W4A4 that the outliers shall cause, as ratio of perplexities.
_TARGET_RATIO = 1.7


def _require_development_packages() -> None:
    try:
        import safetensors  # noqa: F401
        import tokenizers  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f"training the embedded model needs the development package {error.name!r}: "
            "pip install torch tokenizers safetensors (using the model needs none of them)"
        ) from error


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="omniquant.embedded.train", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps (default: full training)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and dropout")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: standard error)")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=None,
        help="file for the weights before the rescale; reused if present",
    )
    return parser.parse_args(argv)


def _tokens(tokenizer: Tokenizer, text: str) -> Tensor:
    import torch

    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)


def _train(
    arch: Architecture, schedule: Schedule, tokenizer: Tokenizer, evaluation: Tensor, seed: int
) -> tuple[CausalLM, TrainingRun]:
    import torch

    from omniquant.embedded.fake_quant import perplexity
    from omniquant.embedded.optimization import TrainingRun, batches, optimize
    from omniquant.embedded.torch_llama import CausalLM

    torch.manual_seed(seed)
    model = CausalLM(arch, _DROPOUT)
    texts = [text + corpus.SEPARATOR for text in corpus.training_documents()]
    documents = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    data = batches(documents, [arch.eos_token_id, arch.bos_token_id], schedule, seed)
    window = arch.max_position_embeddings
    minutes = optimize(model, data, schedule, lambda current: perplexity(current, evaluation, window))
    seen = schedule.steps * schedule.batch * schedule.window
    return model, TrainingRun(seen, seen / sum(map(len, documents)), minutes)


def _trained_or_stored(
    args: argparse.Namespace, arch: Architecture, tokenizer: Tokenizer, evaluation: Tensor
) -> tuple[CausalLM, TrainingRun]:
    import torch

    from omniquant.embedded.optimization import Schedule, TrainingRun
    from omniquant.embedded.torch_llama import CausalLM

    if args.checkpoint is not None and args.checkpoint.is_file():
        stored = torch.load(args.checkpoint, weights_only=True)
        if stored["tokenizer"] != tokenizer.to_str():
            raise SystemExit("the checkpoint was trained on the texts of another Python version")
        model = CausalLM(arch)
        model.load_state_dict(stored["weights"])
        return model, TrainingRun(**stored["run"])
    schedule = Schedule() if args.steps is None else Schedule(steps=args.steps)
    model, run = _train(arch, schedule, tokenizer, evaluation, args.seed)
    if args.checkpoint is not None:
        stored = {"weights": model.state_dict(), "run": vars(run), "tokenizer": tokenizer.to_str()}
        torch.save(stored, args.checkpoint)
    return model, run


def _load(arch: Architecture, weights: Weights) -> CausalLM:
    import torch

    from omniquant.embedded.torch_llama import CausalLM

    model = CausalLM(arch)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
    return model.eval()


def _check_same_function(before: CausalLM, after: CausalLM, sample: Tensor) -> None:
    import torch

    with torch.no_grad():
        difference = (before(sample) - after(sample)).abs().max().item()
    _LOG.info("largest difference of logits after the rescale: %g", difference)
    if difference > 1e-4:
        raise RuntimeError(f"the outlier rescale changed the logits by {difference}")


def _choose_outliers(
    arch: Architecture, weights: Weights, evaluation: Tensor, full: float
) -> list[tuple[OutlierPlan, float]]:
    """Return every plan tried with the perplexity of RTN W4A4 under it; the last is the one to take."""
    from omniquant.embedded.fake_quant import perplexity, round_to_nearest_w4a4

    trials: list[tuple[OutlierPlan, float]] = []
    for plan in PLANS:
        model = round_to_nearest_w4a4(_load(arch, add_outliers(weights, arch, plan)))
        quantized = perplexity(model, evaluation, arch.max_position_embeddings)
        trials.append((plan, quantized))
        _LOG.info("%s: RTN W4A4 %.3f, ratio %.2f", plan, quantized, quantized / full)
        if plan.norm_factors and quantized >= _TARGET_RATIO * full:
            break
    return trials


def _finish(
    arch: Architecture, model: CausalLM, run: TrainingRun, evaluation: Tensor
) -> tuple[Weights, Figures]:
    from omniquant.embedded.export import Figures
    from omniquant.embedded.fake_quant import perplexity

    model.eval()
    weights: Weights = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    full = perplexity(model, evaluation, arch.max_position_embeddings)
    _LOG.info("evaluation perplexity in full precision: %.3f", full)
    trials = _choose_outliers(arch, weights, evaluation, full)
    rescaled = add_outliers(weights, arch, trials[-1][0])
    _check_same_function(model, _load(arch, rescaled), evaluation[:256].view(1, -1))
    parameters = sum(tensor.size for tensor in weights.values())
    figures = Figures(
        parameters=parameters,
        python=".".join(platform.python_version_tuple()[:2]),
        full=full,
        trials=tuple(trials),
        target=_TARGET_RATIO,
        **vars(run),
    )
    return rescaled, figures


def main(argv: Sequence[str] | None = None) -> int:
    """Train, rescale and write the embedded model.

    Parameters
    ----------
    argv
        Command-line arguments; those of the process if None.

    Returns
    -------
    int
        Exit status.
    """
    args = _arguments(argv)
    _require_development_packages()
    import torch

    from omniquant.embedded.export import model_card, write_model
    from omniquant.embedded.tokenizer_training import train_tokenizer

    logging.basicConfig(filename=args.log, level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    arch = Architecture()
    tokenizer = train_tokenizer(corpus.training_text(), arch.vocab_size)
    evaluation = _tokens(tokenizer, corpus.evaluation_text())
    model, run = _trained_or_stored(args, arch, tokenizer, evaluation)
    weights, figures = _finish(arch, model, run, evaluation)
    write_model(args.output, arch, weights, tokenizer, model_card(arch, figures))
    _LOG.info("wrote %s", args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
