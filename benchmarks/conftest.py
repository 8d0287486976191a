"""Options, and the tables at the end."""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported

import pytest

from omniquant.threads import resolve_threads

RESULTS: list[str] = []
TABLES = {"times of the others over ours": RESULTS}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("omniquant")
    group.addoption("--full", action="store_true", help="all shapes: half an hour rather than three minutes")
    group.addoption("--seconds", type=float, default=2.0, help="of measuring a shape and kind (default: 2)")
    group.addoption("--threads", type=int, action="append", help="may be repeated (default: 1 and all)")


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    return float(request.config.getoption("--seconds"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from benchmarks.shapes import FULL, QUICK

    if "shape" in metafunc.fixturenames:
        shapes = FULL if metafunc.config.getoption("--full") else QUICK
        metafunc.parametrize("shape", shapes, ids=str)
    if "threads" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--threads") or sorted({1, resolve_threads(None)})
        metafunc.parametrize("threads", wanted, ids=lambda n: f"{n} thread{'s' if n > 1 else ''}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for title, lines in TABLES.items():
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.write_line(line)
