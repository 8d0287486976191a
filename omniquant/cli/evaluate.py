"""``omniquant evaluate``: perplexity or zero-shot accuracy of a model or of a result."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any, cast

from omniquant.cli.common import (
    Commands,
    add_run_options,
    check_data,
    check_paths,
    command,
    emit,
    open_any,
    shown_progress,
)
from omniquant.errors import ConfigError

if TYPE_CHECKING:
    from omniquant.evaluate import Evaluation
    from omniquant.fidelity import Divergence
    from omniquant.models.model import Model
    from omniquant.quantized import QuantizedModel

_EXAMPLES = """\
  omniquant evaluate MODEL --data text.txt --seqlen 256       full precision, to compare with
  omniquant evaluate DIR --data text.txt --seqlen 256         the result of omniquant quantize
  omniquant evaluate DIR --data tokens.npy --max-tokens 24576 --json
  omniquant evaluate DIR --data text.txt --runtime integer    on packed integers
  omniquant evaluate DIR --data text.txt --against MODEL      and how far its predictions are from MODEL's
  omniquant evaluate DIR --tasks piqa,boolq --task-data FOLDER --against MODEL    zero-shot, paired

Perplexity: windows that do not overlap, exp of the mean cross entropy of each window's T - 1 predictions; no
beginning-of-sequence token. Results are evaluated fake-quantized: weights dequantized from their codes,
activations rounded on the way, all in float32; with --runtime integer on packed integers, as generate runs.
With --against the Kullback-Leibler divergence of its predictions from MODEL's too, in nats a token.

Tasks: multiple choice by log-likelihood, worded, tokenized and scored as lm-eval does, without examples.
FOLDER holds TASK.jsonl of each: query, choices, gold (winogrande: context_options, continuation, gold), or
the fields of the data set; without it the datasets library is asked.
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "evaluate",
        run,
        usage="MODEL_OR_DIR (--data FILE | --tasks LIST [--task-data FOLDER]) [--against MODEL] [options]",
        help="measure the perplexity or zero-shot accuracy of a model or result",
        examples=_EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL_OR_DIR", help="a model, or the output of omniquant quantize")
    parser.add_argument(
        "--data", metavar="FILE", help="a text file, or a .npy of token ids (stream or windows)"
    )
    parser.add_argument("--seqlen", type=int, default=256, metavar="T", help="tokens a window, default 256")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="use the first N tokens only")
    parser.add_argument(
        "--runtime", choices=("fake", "integer"), default="fake", help="how a result is run, default fake"
    )
    parser.add_argument(
        "--against", metavar="MODEL", help="compare with its predictions, or with its answers"
    )
    group = parser.add_argument_group("zero-shot tasks, instead of perplexity")
    group.add_argument("--tasks", metavar="LIST", help="piqa, arc_easy, arc_challenge, boolq, winogrande")
    group.add_argument("--task-data", metavar="FOLDER", help="TASK.jsonl of each; else the datasets library")
    group.add_argument("--limit", type=int, metavar="N", help="the first N questions of each task")
    add_run_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate and report."""
    check_paths(arguments.model, arguments.against)
    _check_choice(arguments)
    if arguments.tasks is None:
        _perplexity(arguments)
    else:
        _zero_shot(arguments)


def _check_choice(arguments: argparse.Namespace) -> None:
    """Raise ConfigError where options of perplexity and of tasks are mixed."""
    if arguments.tasks is not None:
        if arguments.data is not None or arguments.max_tokens is not None:
            raise ConfigError("--tasks: perplexity and tasks are two runs, leave --data and --max-tokens out")
        return
    for option in ("task_data", "limit"):
        if getattr(arguments, option) is not None:
            raise ConfigError(f"--{option.replace('_', '-')} needs --tasks")


def _zero_shot(arguments: argparse.Namespace) -> None:
    """Answer the questions of tasks."""
    from omniquant.quantized import QuantizedModel
    from omniquant.zeroshot.data import known_tasks
    from omniquant.zeroshot.evaluate import zero_shot
    from omniquant.zeroshot.report import table

    known_tasks(arguments.tasks)  # before a model is read
    model = open_any(arguments.model)
    against = None if arguments.against is None else open_any(arguments.against)
    with shown_progress(arguments) as progress:
        found = zero_shot(
            model,
            arguments.tasks,
            arguments.task_data,
            limit=arguments.limit,
            against=against,
            runtime=arguments.runtime,
            threads=arguments.threads,
            progress=progress,
        )
    data: dict[str, Any] = {"model": model.name, "scheme": None, "method": None, **found.to_dict()}
    title = f"{model.name} ({_precision(model)})"
    if isinstance(model, QuantizedModel):
        data |= {"scheme": str(model.scheme), "method": model.options.method, "runtime": arguments.runtime}
        title = f"{model.name} ({model.scheme} {model.options.method})"
    if against is not None:
        data["against"]["model"] = arguments.against
        title += f" against {arguments.against}"
    emit(arguments, data, f"{title}, {found.seconds:.1f} s\n{table(found)}")


def _perplexity(arguments: argparse.Namespace) -> None:
    """Measure perplexity and, against another model, divergence."""
    from omniquant.data import evaluation_windows
    from omniquant.fidelity import divergence
    from omniquant.runtime.perplexity import evaluate_on
    from omniquant.threads import resolve_threads

    threads = resolve_threads(arguments.threads)
    model = open_any(arguments.model)
    check_data(arguments.data, model.name)
    facts, title = _facts(model, arguments.runtime)
    against = None if arguments.against is None else open_any(arguments.against)
    # Tokenizer, vocabulary and longest sequence are all that is asked of it.
    windows = evaluation_windows(arguments.data, cast("Model", model), arguments.seqlen, arguments.max_tokens)
    with shown_progress(arguments) as progress:
        if against is None:
            found = evaluate_on(model, windows, runtime=arguments.runtime, threads=threads, progress=progress)
            emit(arguments, found.to_dict() | facts, f"{title}: {_told(found)}")
            return
        far = divergence(
            model, against, windows, runtime=arguments.runtime, threads=threads, progress=progress
        )
    data = far.to_dict() | facts | {"against": arguments.against}
    emit(arguments, data, f"{title}: {_told(far.evaluation)}\n{_told_against(far, against)}")


def _facts(model: Model | QuantizedModel, runtime: str) -> tuple[dict[str, Any], str]:
    """Return what JSON says of a model, and a title for people."""
    from omniquant.quantized import QuantizedModel

    facts: dict[str, Any] = {"model": model.name, "scheme": None, "method": None, "fake_quantized": False}
    if isinstance(model, QuantizedModel):
        fake = runtime == "fake"
        facts |= {"scheme": str(model.scheme), "method": model.options.method, "fake_quantized": fake}
        facts["runtime"] = runtime
        how = "fake-quantized" if fake else "on integers"
        tuned = "" if model.tuning is None else ", tuned"
        return facts, f"{model.name} ({model.scheme} {model.options.method}{tuned}, {how})"
    if runtime == "integer":
        raise ConfigError(f"--runtime integer: {model.name} is no result of omniquant quantize")
    return facts, f"{model.name} ({_precision(model)})"


def _told(found: Evaluation) -> str:
    return (
        f"perplexity {found.perplexity:.4f} on {found.tokens} tokens "
        f"({found.windows} windows of {found.seqlen}), {found.seconds:.1f} s"
    )


def _told_against(far: Divergence, against: Model | QuantizedModel) -> str:
    return (
        f"against {_facts(against, 'fake')[1]}: perplexity {far.reference_perplexity:.4f}\n"
        f"KL divergence {far.kl:.4f} ± {far.kl_stderr:.4f} nats a token, 99th percentile {far.kl_99:.2f}; "
        f"the same likeliest token {far.same_top:.1%}"
    )


def _precision(model: object) -> str:
    """Return "full precision", or what a file held that was rounded before we read it."""
    source = str(getattr(model, "source", ""))
    return source if re.search(r"\bQ\d", source) else "full precision"  # GGUF's names of such types
