"""Find the installed libdnnl and hand it to the core.

The wheel puts the library into the prefix's ``lib`` folder, which lies elsewhere for ordinary, editable,
``--user`` and ``--target`` installs; its list of files knows where.
"""

import importlib.metadata
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omniquant import _core
from omniquant.errors import BackendError, UnsupportedError

VARIABLE = "OMNIQUANT_ONEDNN"
"""Environment variable: the path of a libdnnl.so.3 to load instead, or "none" for the reference kernels."""

_DISTRIBUTION = "onednn-cpu-gomp"


def _candidates(search_path: list[str] | None) -> Iterator[Path]:
    options: dict[str, Any] = {} if search_path is None else {"path": search_path}
    for distribution in importlib.metadata.distributions(name=_DISTRIBUTION, **options):
        root = Path(str(distribution.locate_file("")))
        for file in distribution.files or []:
            if file.name.startswith("libdnnl.so"):
                yield Path(str(file.locate()))
                # --target moves a wheel's folders after its list of files was written.
                yield root / "lib" / file.name
                yield root / file.name


def find_library(search_path: list[str] | None = None) -> Path | None:
    """Return the path of the installed libdnnl, or None.

    Parameters
    ----------
    search_path
        Folders to look for the distribution in; ``sys.path`` when None.
    """
    return next((path.resolve() for path in _candidates(search_path) if path.is_file()), None)


def _why_missing() -> str:
    try:
        folder = importlib.metadata.distribution(_DISTRIBUTION).locate_file("")
    except importlib.metadata.PackageNotFoundError:
        return f"the distribution {_DISTRIBUTION} is not installed"
    return f"{_DISTRIBUTION} in {folder} lacks its library: pip leaves it out of --target installs"


def _load_from(path: Path | None) -> str | None:
    """Return None once loaded, or why it cannot be."""
    if path is None:
        return _why_missing()
    try:
        _core.load_onednn(os.fspath(path))
    except (BackendError, UnsupportedError) as error:
        return str(error)
    return None


def load() -> None:
    """Load oneDNN into the core; warn when there is none and the slower reference kernels have to serve."""
    wanted = os.environ.get(VARIABLE)
    if wanted is not None and wanted.lower() in ("", "none"):
        return
    reason = _load_from(find_library() if wanted is None else Path(wanted))
    if reason is not None:
        warnings.warn(
            f"oneDNN could not be loaded ({reason}); the reference kernels give the same answers, slower. "
            f"Set {VARIABLE} to the path of a libdnnl.so.3, or to 'none' to silence this.",
            RuntimeWarning,
            stacklevel=3,
        )
