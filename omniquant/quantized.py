"""A calibration's result, and the quantized model it folds into."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, Unpack

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from omniquant.blockfile import Array, BlockState, dequantized
from omniquant.checkpoint.text import shown
from omniquant.checkpoint.text_settings import TextSettings
from omniquant.config import CalibrationOptions, QuantConfig
from omniquant.errors import CheckpointError
from omniquant.evaluate import Evaluation, evaluate
from omniquant.forward import F32, Weights
from omniquant.manifest import Header
from omniquant.models.adapter import Architecture
from omniquant.models.ends import Ends
from omniquant.models.layered import Layered
from omniquant.models.model import Model
from omniquant.outer import StoredOuter
from omniquant.report import BlockReport
from omniquant.reprs import one_line_repr
from omniquant.runtime.engine import Engine, all_logits
from omniquant.runtime.generation import Generation, TextGenerator
from omniquant.runtime.matrix import Matrix
from omniquant.runtime.perplexity import Runtime, evaluate_on
from omniquant.runtime.prompt import Prompt, Wishes, start_text
from omniquant.state import BlockStore, StateDirectory
from omniquant.tuning.record import Tuning


class Outer(Protocol):
    """What a quantized model needs besides its blocks: the original model, or what was stored of it."""

    name: str
    architecture: Architecture

    @property
    def config(self) -> Mapping[str, object]:
        """The configuration, as config.json has it."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""

    @property
    def text(self) -> TextSettings:
        """Special tokens and chat template."""

    def embed(self, tokens: npt.NDArray[np.integer], positions: npt.NDArray[np.integer] | None = None) -> F32:
        """Return what the first block reads."""

    def matrices(self) -> tuple[Matrix, Matrix]:
        """Return embedding and head in the precision they came in."""

    def drop_pages(self) -> None:
        """Give back mapped memory that is not needed for now."""

    def embedding(self, tokens: npt.NDArray[np.integer]) -> F32:
        """Return the embedding's rows."""

    def ends(self) -> Ends:
        """Return what stands before the first block and behind the last one."""

    def lm_head(self) -> F32:
        """Return the output matrix."""


class QuantizedModel(Layered):
    """A quantized model, to run on its integers or fake-quantized.

    :meth:`generate`, :meth:`stream`, :meth:`logits` and :meth:`perplexity` run on packed integers. For the
    fake-quantized path it has the methods of :class:`omniquant.models.Model` that evaluation needs: weights
    dequantized a block at a time, and :attr:`activation` tells the core which activations to round. Get one
    from :meth:`CalibrationResult.fold` or :meth:`load`.
    """

    def __init__(self, header: Header, store: BlockStore, outer: Outer) -> None:
        self._header = header
        self._store = store
        self._outer = outer
        self._engines: dict[str | None, Engine] = {}
        self._packing = Lock()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> QuantizedModel:
        """Open a finished result directory; CheckpointError if it is unfinished, damaged or none."""
        return CalibrationResult.load(path).fold()

    @property
    def name(self) -> str:
        """The original model's name."""
        return self._outer.name

    @property
    def scheme(self) -> QuantConfig:
        """The quantization scheme."""
        return self._header.scheme

    @property
    def options(self) -> CalibrationOptions:
        """Method and options of the calibration."""
        return self._header.options

    @property
    def tuning(self) -> Tuning | None:
        """What tuning did to it; None: it was not tuned."""
        return self._header.tuning

    @property
    def config(self) -> Mapping[str, object]:
        """The configuration of the original model."""
        return self._outer.config

    @property
    def architecture(self) -> Architecture:
        """What the configuration says."""
        return self._outer.architecture

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the original model."""
        return self._outer.tokenizer

    def embed(self, tokens: npt.NDArray[np.integer], positions: npt.NDArray[np.integer] | None = None) -> F32:
        """Return what the first block reads [.., T, H] of tokens [.., T]; see :meth:`Model.embed`."""
        return self._outer.embed(tokens, positions)

    def embedding(self, tokens: npt.NDArray[np.integer]) -> F32:
        """Return the embedding's rows of token ids."""
        return self._outer.embedding(tokens)

    def state(self, index: int) -> BlockState:
        """Return a block as it is stored: integer codes, scales, zero points, and what was learned."""
        return self._store.get(index)

    def tensors(self, index: int) -> dict[str, Array]:
        """Return a block's tensors as they are stored: codes as bit streams a row."""
        return self._store.tensors(index, self.scheme.block(index))

    def matrices(self) -> tuple[Matrix, Matrix]:
        """Return embedding and head as they are stored; the same object where they are tied."""
        return self._outer.matrices()

    def block(self, index: int) -> Weights:
        """Return the dequantized weights of a block."""
        return dequantized(self._store.get(index).folded, self.scheme.block(index))

    @property
    def text(self) -> TextSettings:
        """Special tokens and chat template of the original model."""
        return self._outer.text

    def engine(self, *, kernel: str | None = None) -> Engine:
        """Return the model packed for integer kernels; made at first use, then kept.

        Parameters
        ----------
        kernel : str, optional
            "reference", "avx2", "avx512_vnni", "amx", "onednn"; None: the best this processor has.

        Raises
        ------
        CheckpointError
            If a block is damaged; names it.
        """
        with self._packing:
            if kernel not in self._engines:
                self._engines[kernel] = Engine(self, kernel=kernel)
                self._outer.drop_pages()
            return self._engines[kernel]

    def logits(self, tokens: npt.ArrayLike, *, threads: int | None = None) -> F32:
        """Run tokens through the integer kernels.

        Parameters
        ----------
        tokens : array_like of int, [T] or [N, T]
            Windows [N, T] do not see each other.
        threads : int, optional
            None: all processors this process may use. The result does not depend on it.

        Returns
        -------
        ndarray of float32 [T, V] or [N, T, V]
            After each token, of what comes next.

        Raises
        ------
        DataError
            If they are no tokens of the vocabulary, none, or more than the model takes.
        """
        return all_logits(self.engine(), tokens, threads)

    def perplexity(
        self,
        tokens: npt.ArrayLike,
        seqlen: int | None = None,
        *,
        runtime: Runtime = "integer",
        threads: int | None = None,
    ) -> float:
        """Return the perplexity on tokens, see :func:`omniquant.perplexity`.

        Parameters
        ----------
        tokens, seqlen, threads
            As there.
        runtime : {"integer", "fake"}
            On packed integers, or on weights and activations rounded in float32.
        """
        return evaluate_on(self, tokens, seqlen, runtime=runtime, threads=threads).perplexity

    def generate(
        self, prompt: Prompt, *, threads: int | None = None, **options: Unpack[Wishes]
    ) -> Generation:
        """Continue a text on the integer kernels.

        Parameters
        ----------
        prompt : str, or sequence of int, or sequence of {"role": ..., "content": ...}
            A text, its tokens, or a conversation for the model's chat template (needs jinja2).
        threads : int, optional
            None: all processors this process may use. The result does not depend on it.
        **options
            `max_new_tokens` (128), `temperature` (0: always the likeliest token), `top_k` (0: all), `top_p`
            (1), `seed` (0: same seed, same text), `stop` (strings that end the text, left out of it).

        Returns
        -------
        Generation
            Text, tokens, why it ended, and how long it took.

        Raises
        ------
        DataError
            If the prompt is empty, too long or outside the vocabulary.
        ConfigError
            If an option makes no sense.
        """
        return self.stream(prompt, threads=threads, **options).run()

    def stream(
        self, prompt: Prompt, *, threads: int | None = None, **options: Unpack[Wishes]
    ) -> TextGenerator:
        """Continue a text as :meth:`generate` does and return an iterator of its pieces.

        Its ``result`` grows along and is whole at the end.
        """
        return start_text(self, self.engine(), prompt, options, threads)

    def ends(self) -> Ends:
        """Return what stands before the first block and behind the last one, unquantized."""
        return self._outer.ends()

    def lm_head(self) -> F32:
        """Return the output matrix [V, H]."""
        return self._outer.lm_head()

    @one_line_repr
    def __repr__(self) -> str:
        what = f"{self.scheme} {self.options.method}{'' if self.tuning is None else ' tuned'}"
        return f"{shown(self.name)}, {what}, {self.num_layers} blocks"


class CalibrationResult:
    """What :func:`omniquant.calibrate` returns: every block quantized, and a report of each.

    Parameters
    ----------
    header : Header
        Scheme, options, model and data.
    store : BlockStore
        The blocks, in memory or in a directory.
    outer : Model or StoredOuter
        What lies outside the blocks.
    seconds, peak_rss_mib : float
        Of the calibration; 0 where nobody knows.
    """

    def __init__(
        self,
        header: Header,
        store: BlockStore,
        outer: Model | StoredOuter,
        seconds: float = 0.0,
        peak_rss_mib: float = 0.0,
    ) -> None:
        self.header = header
        self.seconds = seconds
        self.peak_rss_mib = peak_rss_mib
        self._store = store
        self._outer = outer

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CalibrationResult:
        """Open what :meth:`save` or ``calibrate(output=...)`` wrote; the original model is not needed.

        Parameters
        ----------
        path : path
            The directory. An unfinished one can be looked at, but neither folded nor evaluated.

        Returns
        -------
        CalibrationResult

        Raises
        ------
        CheckpointError
            If it is no result directory or a file in it is damaged; names file and field.
        """
        directory = StateDirectory.open(Path(path))
        seconds, peak = directory.run_facts()
        return cls(directory.header, directory, directory.outer(), seconds, peak)

    @property
    def scheme(self) -> QuantConfig:
        """The quantization scheme."""
        return self.header.scheme

    @property
    def options(self) -> CalibrationOptions:
        """Method and options."""
        return self.header.options

    @property
    def method(self) -> str:
        """The method's name."""
        return self.header.options.method

    @property
    def architecture(self) -> Architecture:
        """What the model's configuration says."""
        return self._outer.architecture

    @property
    def blocks(self) -> list[BlockReport]:
        """A report of every finished block."""
        return self._store.reports()

    @property
    def complete(self) -> bool:
        """Whether every block is done."""
        return len(self.blocks) == self.header.num_layers

    @property
    def folder(self) -> Path | None:
        """The directory the result lives in; None while it is in memory."""
        return self._store.folder if isinstance(self._store, StateDirectory) else None

    def state(self, index: int) -> BlockState:
        """Return a finished block: integer codes, scales, zero points, and what was learned."""
        return self._store.get(index)

    def fold(self) -> QuantizedModel:
        """Return the quantized model; CheckpointError if blocks are missing."""
        if not self.complete:
            done = len(self.blocks)
            raise CheckpointError(
                f"{self.folder or self.header.model['name']}: unfinished, {done} of {self.header.num_layers} "
                "blocks are done; continue with --resume"
            )
        return QuantizedModel(self.header, self._store, self._outer)

    def evaluate(
        self, tokens: npt.ArrayLike, seqlen: int | None = None, *, threads: int | None = None
    ) -> Evaluation:
        """Measure the perplexity of the quantized model; see :func:`omniquant.perplexity`."""
        return evaluate(self.fold(), tokens, seqlen, threads=threads)

    def save(self, path: str | os.PathLike[str], *, resume: bool = False) -> None:
        """Write the result to a new directory, durably; CheckpointError if it cannot be or holds something.

        A result that was calibrated with ``output`` is on disk already. With `resume` the directory may hold
        what a killed call has left of this very result.
        """
        if not isinstance(self._outer, Model):
            raise CheckpointError(f"{self.folder}: is saved there already; copy the directory")
        begin = StateDirectory.resume if resume else StateDirectory.create
        directory = begin(Path(path), self.header, self._outer)
        for report in self.blocks:
            if not directory.finished(report.index):
                directory.put(report.index, self._store.get(report.index), report)
        directory.write_run(seconds=round(self.seconds, 3), peak_rss_mib=self.peak_rss_mib)

    def export(
        self,
        path: str | os.PathLike[str],
        format: str,
        *,
        variant: str | None = None,
        weights_only: bool = False,
        perplexity: Mapping[str, float] | None = None,
    ) -> Path:
        """Write a complete model folder that another engine loads.

        Parameters
        ----------
        path : path
            A new folder; it appears when it is complete.
        format : str
            "compressed-tensors", "gptq", "awq", "gguf", "onnx", "openvino" or "huggingface".
        variant : str, optional
            A layout of the format other than its default.
        weights_only : bool
            Leave the quantizers of activations out where the format cannot hold them.
        perplexity : mapping of str to float, optional
            Measured values for the model card.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        UnsupportedError
            If the format cannot hold this result (the reason and the nearest thing that works), or a package
            it needs is missing.
        ConfigError
            For an unknown format or variant.
        CheckpointError
            If blocks are missing, the folder exists or cannot be written.
        """
        from omniquant.export import export_result  # late: most results are never exported

        return export_result(
            self, path, format, variant=variant, weights_only=weights_only, perplexity=perplexity
        )

    def arrays(self, *, weights_only: bool = False) -> Weights:
        """Return the whole quantized model as arrays under their Hugging Face names, dequantized.

        Parameters
        ----------
        weights_only : bool
            Leave the quantizers of activations out.

        Returns
        -------
        dict of str to ndarray of float32
            What :func:`omniquant.model_from_arrays` takes. For integers, scales and zero points see
            :meth:`state`.

        Raises
        ------
        UnsupportedError
            If plain weights cannot say it: online maps, or quantized activations without `weights_only`.
        CheckpointError
            If blocks are missing.
        """
        from omniquant.export import result_arrays  # late: most results are never taken apart

        return result_arrays(self, weights_only)

    def summary(self) -> dict[str, Any]:
        """Return scheme, method, totals and every block's report, ready for JSON."""
        reports = self.blocks
        margins = [report.min_margin for report in reports if report.min_margin is not None]
        return {
            "model": self.header.model["name"],
            "scheme": str(self.scheme),
            "method": self.method,
            "complete": self.complete,
            "seconds": round(self.seconds, 3),
            "steps": sum(report.steps for report in reports),
            "peak_rss_mib": self.peak_rss_mib,
            "min_margin": min(margins) if margins else None,
            "blocks": [report.to_dict() for report in reports],
        }

    @one_line_repr
    def __repr__(self) -> str:
        where = "memory" if self.folder is None else repr(str(self.folder))
        what = f"{self.scheme} {self.method}{'' if self.header.tuning is None else ' tuned'}"
        done = f"{len(self.blocks)}/{self.header.num_layers} blocks"
        return f"{shown(self.header.model['name'])}, {what}, {done} in {where}"
