"""The wheel: one for every Python from 3.11 on, with all that belongs into it and nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
PRODUCT = (
    "import numpy as np, omniquant; from omniquant import _core; a = np.ones((3, 4), 'f4');"
    "print(omniquant.__file__, int(_core.matmul(a, a, transpose_b=True).sum()))"
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("csrc", "omniquant"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.suffix in (".toml", ".py", ".md") or path.name == "LICENSE":
            shutil.copy(path, source)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMNIQUANT_")}
    command = [sys.executable, "-c", BUILD, str(folder)]
    subprocess.run(command, cwd=source, env=environment, check=True, timeout=600)
    (path,) = folder.glob("*.whl")
    return path


def test_serves_every_python_from_3_11_on(wheel: Path) -> None:
    assert wheel.name.startswith("omniquant_c-")
    assert "-cp311-abi3-" in wheel.name


def test_contents(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {name for name in names if name.startswith("omniquant/_core.")}
    assert modules == {"omniquant/_core.abi3.so", "omniquant/_core.pyi"} or sys.platform == "win32"
    wanted = ["py.typed", "embedded/model/config.json", "embedded/model/model.safetensors"]
    assert {f"omniquant/{name}" for name in wanted} <= names
    assert all(name.split("/")[0] == "omniquant" or ".dist-info/" in name for name in names)
    assert any(name.endswith("LICENSE") for name in names)
    assert not any("_core_double" in name for name in names)


def test_works_from_a_target_folder(wheel: Path, tmp_path: Path) -> None:
    """With oneDNN's headers or without them at build time: the answer is the same."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", PRODUCT]
    answer = subprocess.check_output(command, env=environment, cwd=tmp_path, text=True, timeout=120)
    file, total = answer.split()
    assert Path(file).is_relative_to(tmp_path)
    assert total == "36"
