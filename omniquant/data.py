"""Token windows for calibration and evaluation, from text or from arrays of token ids."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from omniquant.checkpoint.text import one_line
from omniquant.checkpoint.tokenizer_file import encode
from omniquant.errors import DataError
from omniquant.models.model import Model, check_token_ids

Tokens = npt.NDArray[np.int32]
Source = str | os.PathLike[str] | npt.NDArray[np.integer] | None

_Part = Literal["calibration", "evaluation"]
# A window needs a token to predict from and one to predict.
_MIN_SEQLEN = 2


def calibration_windows(source: Source, model: Model, samples: int, seqlen: int) -> Tokens:
    """Return windows of tokens to calibrate with.

    Parameters
    ----------
    source
        A UTF-8 text file; a ``.npy`` file or an array of token ids, either one stream [L] or windows
        [N, T]; or None for the text that comes with the embedded model.
    model
        For its tokenizer, vocabulary and longest sequence. No BOS is added.
    samples, seqlen
        A stream is cut into windows of `seqlen` that do not overlap, spread evenly from its start to its
        end so that they see all of it: always the same ones. `samples` is the most there are; a short
        stream gives fewer. Windows [N, T] are used as they are, all of them, whatever these two say.

    Returns
    -------
    int32 [N, T]

    Raises
    ------
    DataError
        If the file is missing or is neither text nor integers, an id is outside the vocabulary, or there
        are fewer tokens than one window.
    """
    if samples < 1:
        raise DataError(f"samples is {samples}, expected at least 1")
    where, ids = _token_ids(source, model, "calibration")
    if ids.ndim == 2:
        return _windows_as_they_are(ids, model, where)
    count = min(samples, _count_windows(ids, seqlen, model, where))
    # Window i starts at i * slack / (count - 1) beyond the i windows before it, in exact integers.
    slack = ids.size - count * seqlen
    starts = [i * seqlen + (i * slack // (count - 1) if count > 1 else 0) for i in range(count)]
    return np.stack([ids[start : start + seqlen] for start in starts])


def evaluation_windows(source: Source, model: Model, seqlen: int, max_tokens: int | None = None) -> Tokens:
    """Return a stream cut into windows that do not overlap; what is left at the end is dropped.

    Parameters
    ----------
    source
        As in :func:`calibration_windows`; None is the embedded model's evaluation text.
    model
        For its tokenizer, vocabulary and longest sequence. No BOS is added.
    seqlen
        Tokens a window; windows [N, T] are used as they are.
    max_tokens
        Use this many tokens from the start at most.

    Returns
    -------
    int32 [N, T]

    Raises
    ------
    DataError
        As in :func:`calibration_windows`.
    """
    where, ids = _token_ids(source, model, "evaluation")
    if ids.ndim == 2:
        windows = _windows_as_they_are(ids, model, where)
        kept = len(windows) if max_tokens is None else max_tokens // windows.shape[1]
        if kept < 1:
            raise DataError(f"{where}: max_tokens is {max_tokens}, one window has {windows.shape[1]} tokens")
        return windows[:kept]
    stream = ids if max_tokens is None else ids[: max(0, max_tokens)]
    count = _count_windows(stream, seqlen, model, where)
    return stream[: count * seqlen].reshape(count, seqlen)


def _windows_as_they_are(ids: Tokens, model: Model, where: str) -> Tokens:
    if len(ids) < 1 or ids.shape[1] < _MIN_SEQLEN:
        raise DataError(f"{where}: windows are {list(ids.shape)}, expected at least [1, {_MIN_SEQLEN}]")
    model.check_seqlen(ids.shape[1])
    return ids


def _count_windows(stream: Tokens, seqlen: int, model: Model, where: str) -> int:
    if seqlen < _MIN_SEQLEN:
        raise DataError(f"seqlen is {seqlen}, expected at least {_MIN_SEQLEN}")
    model.check_seqlen(seqlen)
    if stream.size < seqlen:
        raise DataError(f"{where}: {stream.size} tokens, one window of seqlen {seqlen} needs {seqlen}")
    return stream.size // seqlen


def _token_ids(source: Source, model: Model, part: _Part) -> tuple[str, Tokens]:
    if isinstance(source, np.ndarray):
        return "tokens", _checked(source, model, "tokens")
    if source is None:
        where = f"built-in {part} text"
        return where, _encode(_builtin_text(part), model, where)
    path = Path(source)
    if path.suffix == ".npy":
        return str(path), _checked(_read_npy(path), model, str(path))
    return str(path), _encode(_read_text(path), model, str(path))


def _builtin_text(part: _Part) -> str:
    # Imported late: it collects documentation of many standard modules.
    from omniquant import embedded

    try:
        return embedded.calibration_text() if part == "calibration" else embedded.evaluation_text()
    except RuntimeError as error:
        raise DataError(f"built-in {part} text: {error}") from error


def _encode(text: str, model: Model, where: str) -> Tokens:
    ids = encode(model.tokenizer, text, f"{where}: {model.name}")
    return _checked(np.array(ids, np.int64), model, where)


def _checked(ids: npt.NDArray[np.generic], model: Model, where: str) -> Tokens:
    if ids.ndim not in (1, 2):
        raise DataError(f"{where}: token ids are {list(ids.shape)}, expected a stream [L] or windows [N, T]")
    check_token_ids(ids, model.vocab_size, where)
    return np.ascontiguousarray(ids, np.int32)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"{path}: cannot read: {one_line(error)}") from error


def _read_npy(path: Path) -> npt.NDArray[np.generic]:
    try:
        # Mapped, so a header that lies about its size allocates nothing; never pickle.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: cannot read: {one_line(error)}") from error
    except Exception as error:  # a damaged header gives ValueError, EOFError, TokenError, OverflowError...
        raise DataError(f"{path}: not an array of integers: {one_line(error)}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: not an array of integers")
    return array
