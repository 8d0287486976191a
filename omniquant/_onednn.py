"""Find the installed libdnnl and hand it to the core.

The wheel puts the library into the prefix's ``lib`` folder, which lies elsewhere for ordinary, ``--user`` and
``--target`` installs; its list of files knows where.
"""

import importlib.metadata
import os
import warnings
from pathlib import Path

from omniquant import _core
from omniquant.errors import BackendError, UnsupportedError

VARIABLE = "OMNIQUANT_ONEDNN"
"""Environment variable: the path of a libdnnl.so.3 to load instead, or "none" for the reference kernels."""

_DISTRIBUTION = "onednn-cpu-gomp"


def find_library(search_path: list[str] | None = None) -> Path | None:
    """Return the path of the installed libdnnl, or None.

    Parameters
    ----------
    search_path
        Folders to look for the distribution in; ``sys.path`` when None.
    """
    options = {} if search_path is None else {"path": search_path}
    for distribution in importlib.metadata.distributions(name=_DISTRIBUTION, **options):
        for file in distribution.files or []:
            if not file.name.startswith("libdnnl.so"):
                continue
            # A --target install moves the wheel's data folder to another place than its list of files says.
            root = Path(str(distribution.locate_file("")))
            for path in (Path(str(file.locate())), root / "lib" / file.name):
                if path.exists():
                    return path.resolve()
    return None


def load() -> None:
    """Load oneDNN into the core; warn when there is none and the slower reference kernels have to serve."""
    wanted = os.environ.get(VARIABLE)
    if wanted is not None and wanted.lower() in ("", "none"):
        return
    path = Path(wanted) if wanted is not None else find_library()
    if path is None:
        reason = f"the distribution {_DISTRIBUTION} is not installed"
    else:
        try:
            _core.load_onednn(os.fspath(path))
            return
        except (BackendError, UnsupportedError) as error:
            reason = str(error)
    warnings.warn(
        f"oneDNN could not be loaded ({reason}); using the slower reference kernels, which give the same answers. "
        f"Set {VARIABLE} to the path of a libdnnl.so.3, or to 'none' to silence this.",
        RuntimeWarning,
        stacklevel=3,
    )
