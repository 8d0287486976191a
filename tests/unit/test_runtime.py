"""Finding oneDNN, doing without it, forking after use, and leaving the processor's state alone."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from omniquant import _core, _onednn

PRODUCT = (
    "import numpy as np; from omniquant import _core;"
    "a = np.arange(2000, dtype='f4').reshape(40, 50) % 13 - 6;"
    "print(_core.runtime_info()['onednn'], int(_core.matmul(a, a, transpose_b=True).sum()))"
)
ANSWER = str(int(((x := np.arange(2000).reshape(40, 50) % 13 - 6) @ x.T).sum()))


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@pytest.mark.parametrize("value", ["none", ""])
def test_switched_off_on_purpose_is_silent_and_right(value: str) -> None:
    done = run(PRODUCT, OMNIQUANT_ONEDNN=value)
    assert done.stdout.split() == ["None", ANSWER]
    assert done.stderr == ""


def test_missing_warns_once_and_gives_the_same_answer() -> None:
    again = "import omniquant, importlib; importlib.import_module('omniquant');"
    done = run(again + PRODUCT, OMNIQUANT_ONEDNN="/nowhere/libdnnl.so.3")
    assert done.stdout.split() == ["None", ANSWER]
    assert done.stderr.count("RuntimeWarning") == 1
    assert "oneDNN could not be loaded" in done.stderr
    assert "/nowhere/libdnnl.so.3" in done.stderr


def test_distribution_missing_warns_with_its_name() -> None:
    hide = (
        "import importlib.metadata as m; found = m.distributions; none = m.PackageNotFoundError;"
        "m.distributions = lambda **k: iter(());"
        "m.distribution = lambda name: (_ for _ in ()).throw(none(name));"
    )
    done = run(hide + PRODUCT)
    assert done.stdout.split() == ["None", ANSWER]
    assert "the distribution onednn-cpu-gomp is not installed" in done.stderr


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    fake = tmp_path / "libdnnl.so.3"
    fake.write_bytes(b"not a library")
    assert "oneDNN could not be loaded" in run(PRODUCT, OMNIQUANT_ONEDNN=str(fake)).stderr


def test_a_library_that_is_not_onednn_is_refused() -> None:
    other = importlib.util.find_spec("numpy._core._multiarray_umath")
    assert other is not None
    assert other.origin is not None
    assert "dnnl_sgemm or dnnl_version is missing" in run(PRODUCT, OMNIQUANT_ONEDNN=other.origin).stderr


def test_installed_library_is_used() -> None:
    library = _onednn.find_library()
    if library is None:
        pytest.skip("onednn-cpu-gomp is not installed")
    assert run(PRODUCT, OMNIQUANT_ONEDNN=str(library)).stdout.split()[0].startswith("3.")
    assert run(PRODUCT).stdout.split()[0].startswith("3.")


def install(site: Path, library: Path, record: str) -> None:
    """Lay out what an installer leaves: metadata with a list of files, and the library."""
    info = site / "onednn_cpu_gomp-2023.2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onednn-cpu-gomp\nVersion: 2023.2.0\n")
    (info / "RECORD").write_text(f"{record},,\n{info.name}/METADATA,,\n")
    library.parent.mkdir(parents=True, exist_ok=True)
    library.write_bytes(b"")


@pytest.mark.parametrize(
    ("site", "library", "record"),
    [
        ("lib/python3.11/site-packages", "lib/libdnnl.so.3", "../../libdnnl.so.3"),
        ("target", "target/lib/libdnnl.so.3", "../libdnnl.so.3"),
        ("target", "target/libdnnl.so.3", "../libdnnl.so.3"),
    ],
    ids=["prefix or --user", "--target with lib", "--target, flat"],
)
def test_finder(tmp_path: Path, site: str, library: str, record: str) -> None:
    install(tmp_path / site, tmp_path / library, record)
    assert _onednn.find_library([str(tmp_path / site)]) == tmp_path / library


def test_finder_passes_over_an_install_without_its_library(tmp_path: Path) -> None:
    """Pip leaves a wheel's lib folder out of --target installs; another install further on still serves."""
    first, second = tmp_path / "target", tmp_path / "env/lib/python3.11/site-packages"
    install(first, tmp_path / "gone", "../libdnnl.so.3")
    assert _onednn.find_library([str(first)]) is None
    install(second, tmp_path / "env/lib/libdnnl.so.3", "../../libdnnl.so.3")
    assert _onednn.find_library([str(first), str(second)]) == tmp_path / "env/lib/libdnnl.so.3"
    assert _onednn.find_library([str(tmp_path)]) is None


def test_loading_twice_is_refused() -> None:
    if _core.runtime_info()["onednn"] is None:
        pytest.skip("oneDNN is not loaded")
    with pytest.raises(RuntimeError, match="already loaded"):
        _core.load_onednn("libdnnl.so.3")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("onednn", ["as installed", "none"])
def test_fork_after_use_does_not_hang(onednn: str) -> None:
    program = (
        "import os, numpy as np; from omniquant import _core;"
        "a = np.random.default_rng(0).standard_normal((1024, 256)).astype('f4');"
        "f = lambda: _core.matmul(a, a, transpose_b=True, threads=2).tobytes();"
        "g = lambda: _core.inverse(np.eye(300) * 2, threads=2).tobytes();"
        "before = f() + g(); child = os.fork();"
        "same = f() + g() == before;"
        "os._exit(0 if same else 3) if child == 0 else None;"
        "print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = run(program, **({"OMNIQUANT_ONEDNN": "none"} if onednn == "none" else {}))
    assert done.stdout.split() == ["True", "0"]


def test_import_and_products_leave_rounding_and_subnormals_alone() -> None:
    program = (
        "import numpy as np; tiny = np.float64(5e-324);"
        "third = lambda: (np.float64(1) / np.float64(3)).hex(); before = third();"
        "from omniquant import _core; a = np.ones((300, 300), 'f4');"
        "_core.matmul(a, a, threads=2); _core.inverse(np.eye(100), threads=2);"
        "assert third() == before; assert tiny * np.float64(1) == tiny;"
        "assert np.float32(1e-40) * np.float32(1) > 0;"
        "s = _core.matmul(np.full((2, 2), 1e-30, 'f4'), np.full((2, 2), 1e-10, 'f4'), by='reference');"
        "assert (s > 0).all(), s; print('unchanged')"
    )
    assert run(program).stdout == "unchanged\n"


def test_import_is_quick() -> None:
    """No longer than NumPy's own, on top of it: the best of a few, as others use the machine too."""
    program = (
        "import time; start = time.perf_counter(); import numpy; between = time.perf_counter(); "
        "import omniquant; print((time.perf_counter() - between) / (between - start))"
    )
    assert min(float(run(program).stdout) for _ in range(5)) <= 1


def test_runtime_info() -> None:
    info = _core.runtime_info()
    assert info.keys() == {"onednn", "cpu", "products", "gradients", "openmp", "threads", "real"}
    assert info["real"] == "float32"
    assert info["threads"] >= 1
