"""Builds the C core; everything else is in pyproject.toml.

Switches, by environment variable:
  OMNIQUANT_WERROR=1         all warnings, as errors
  OMNIQUANT_SANITIZE=LIST    e.g. address,undefined; OMNIQUANT_COVERAGE=1: gcov counters
  OMNIQUANT_OPENMP=0         one thread only (the default outside Linux)
  OMNIQUANT_DOUBLE=1         also the test-only module _core_double
"""

import importlib.metadata
import os
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def switch(name: str, default: str = "0") -> str:
    value = os.environ.get(f"OMNIQUANT_{name}", default)
    return "" if value == "0" else value


def onednn_headers() -> str | None:
    """The folder of dnnl.h: from the wheel of headers; None builds the reference products alone."""
    try:
        files = importlib.metadata.distribution("onednn-devel-cpu-gomp").files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    folders = [Path(str(file.locate())).resolve().parent for file in files if file.name == "dnnl.h"]
    return next((str(path) for path in folders if path.name == "include" and path.exists()), None)


def compile_flags() -> list[str]:
    flags = "-std=c11 -O3 -fno-math-errno -fno-trapping-math -ffp-contract=off -Wall -Wextra"
    if switch("WERROR"):
        flags += " -Wshadow -Wconversion -Werror"
    if switch("SANITIZE"):
        flags += " -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all"
    if switch("COVERAGE"):
        flags += " -O0 -g"
    # Python's and NumPy's own headers are not held to these warnings.
    system = [sysconfig.get_paths()["include"], numpy.get_include(), onednn_headers()]
    return [*flags.split(), "-fvisibility=hidden"] + [f"-isystem{path}" for path in system if path]


def both_flags() -> list[str]:
    """What compiler and linker must both be told."""
    flags = ["-fopenmp"] if switch("OPENMP", "1" if sys.platform == "linux" else "0") else []
    if switch("SANITIZE"):
        flags.append(f"-fsanitize={switch('SANITIZE')}")
    return flags + (["--coverage"] if switch("COVERAGE") else [])


def core(name: str, **macros: str | None) -> Extension:
    macros |= {
        "Py_LIMITED_API": "0x030b0000",
        "NPY_NO_DEPRECATED_API": "NPY_2_0_API_VERSION",
        "NPY_TARGET_VERSION": "NPY_2_0_API_VERSION",
    }
    if onednn_headers():
        macros["OQ_HAVE_DNNL_HEADERS"] = None
    return Extension(
        name,
        sources=sorted(glob("csrc/**/*.c", recursive=True)),
        depends=sorted(glob("csrc/**/*.h", recursive=True)),
        include_dirs=["csrc", numpy.get_include()],
        define_macros=list(macros.items()),
        extra_compile_args=compile_flags() + both_flags(),
        extra_link_args=both_flags(),
        libraries=[] if sys.platform == "win32" else ["m", "dl"],
        py_limited_api=True,
    )


class BuildCore(build_ext):
    """Compiles the files of a module side by side, each module in a folder of its own."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = None  # -j would build both modules at once, one's objects in the other's folder

    def build_extension(self, ext: Extension) -> None:
        folder, compile_all = self.build_temp, self.compiler.compile

        def compile_each(sources: list[str], **options: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [obj for [obj] in pool.map(lambda source: compile_all([source], **options), sources)]

        self.build_temp, self.compiler.compile = os.path.join(folder, ext.name), compile_each
        try:
            super().build_extension(ext)
        finally:
            self.build_temp, self.compiler.compile = folder, compile_all


modules = [core("omniquant._core")]
modules += [core("omniquant._core_double", OQ_DOUBLE=None)] if switch("DOUBLE") else []
tag = {"bdist_wheel": {"py_limited_api": "cp311"}}
setup(ext_modules=modules, cmdclass={"build_ext": BuildCore}, options=tag)
