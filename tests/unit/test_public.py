"""The public names, what importing costs, and what it leaves alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import omniquant


@pytest.mark.parametrize("name", omniquant.__all__)
def test_every_public_name_is_there(name):
    assert getattr(omniquant, name) is not None
    assert name in dir(omniquant)


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = omniquant.quantise


def in_a_new_process(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PATH": "", **environment},
        check=True,
    )
    return done.stdout.strip()


def test_functions_are_functions_even_after_their_modules_were_imported():
    code = "import omniquant.calibration, omniquant.evaluate, omniquant; print(callable(omniquant.calibrate))"
    assert in_a_new_process(code) == "True"


def test_importing_is_cheap_and_leaves_the_environment_alone():
    code = (
        "import os, sys; before = dict(os.environ); import omniquant; "
        "late = ('tokenizers', 'tqdm', 'gguf', 'rich'); "
        "print(dict(os.environ) == before, [name for name in late if name in sys.modules])"
    )
    assert in_a_new_process(code) == "True []"
    assert in_a_new_process(code, OMP_WAIT_POLICY="active") == "True []"


def test_a_checkout_without_its_core_says_so(tmp_path: Path) -> None:
    here = Path(omniquant.__file__).parent
    shutil.copytree(
        here, tmp_path / "omniquant", ignore=shutil.ignore_patterns("*.so", "model", "__pycache__")
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import omniquant"
    # Without site-packages, whose finders of editable installs know where the core is.
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "ImportError: omniquant's C core is not built in this folder"
    )
