"""Compile the C tests with the core they test, in several variants, and run them."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
MATH = ("gemm.c", "gemm_panels.c", "gemm_reference.c", "inverse.c", "onednn.c", "onednn_bf16.c")
MATH += (
    "amx_pack.c",
    "bf16.c",
    "bf16_avx512.c",
    "blocks.c",
    "byte_vectors.c",
    "gemm_amx.c",
    "igemm.c",
    "igemm_avx2.c",
    "igemm_avx512.c",
    "lay_out.c",
    "sgemm_avx2.c",
    "sliver.c",
    "transpose_bytes.c",
    "vector.c",
)
QUANT = (
    "byte_product.c",
    "fake_quantize.c",
    "gradient_products.c",
    "lwc.c",
    "pack.c",
    "quantizer.c",
    "ste_tape.c",
)
CORE = [path for level in ("base", "kernels") for path in sorted((CSRC / level).glob("*.c"))]
CORE += [CSRC / "math" / name for name in MATH]
CORE += [CSRC / "quant" / name for name in QUANT]
LIBRARIES = ["-lm", "-ldl", "-lpthread"]
FLAGS = ["-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Wshadow", "-fno-math-errno", "-ffp-contract=off"]
SANITIZE = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
VARIANTS = {
    "float": ["-Werror", "-fopenmp"],
    "double": ["-Werror", "-fopenmp", "-DOQ_DOUBLE"],
    "no OpenMP": ["-Werror"],
    "sanitized": SANITIZE,
}

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def build(program: Path, flags: list[str]) -> Path:
    sources = [str(path) for path in [*sorted(HERE.glob("*.c")), *CORE]]
    assert COMPILER is not None
    command = [COMPILER, *FLAGS, *flags, f"-I{CSRC}", *sources, "-o", str(program), *LIBRARIES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode and "-fsanitize" in " ".join(flags) and "cannot find" in done.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr
    return program


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("0 failed\n")


@pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS)
def test_c(tmp_path: Path, flags: list[str]) -> None:
    run([str(build(tmp_path / "tests", flags))])


@pytest.mark.slow
def test_c_under_valgrind(tmp_path: Path) -> None:
    """The plain build: valgrind knows no AVX-512."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.skip("no valgrind")
    program = build(tmp_path / "tests", ["-DOQ_NO_CLONES"])
    run([valgrind, "--quiet", "--leak-check=full", "--error-exitcode=9", str(program)])
