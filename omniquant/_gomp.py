"""Load the core with OpenMP threads that sleep while they wait.

libgomp's threads spin for milliseconds at each barrier by default. That gains microseconds on an idle machine
and costs factors on a busy one: measured with other work on both cores, a calibration took 25 s spinning and
2 s sleeping. libgomp reads the setting once, when it is loaded, so this module loads the core itself. What
the user has set (OMP_WAIT_POLICY or GOMP_SPINCOUNT) stays, and the environment is left as it was.
"""

import os

_VARIABLE = "GOMP_SPINCOUNT"
_UNSET = _VARIABLE not in os.environ and "OMP_WAIT_POLICY" not in os.environ

if _UNSET:
    os.environ[_VARIABLE] = "0"
try:
    from omniquant import _core as _core
except ImportError as error:
    if "cannot import name '_core'" not in str(error):
        raise
    raise ImportError(
        "omniquant's C core is not built in this folder: run Python elsewhere, or pip install --editable ."
    ) from None
finally:
    if _UNSET:
        del os.environ[_VARIABLE]
