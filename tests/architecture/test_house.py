"""The figures that tell whether this stayed a good house to live in."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
# Left to right; a level includes itself and what has a smaller number.
ORDER = [
    {"base"},
    {"math"},
    {"quant", "transform"},
    {"kernels"},
    {"block"},
    {"calibrate", "runtime"},
    {"python"},
]
# What kernels may see: of quant the grid and the bit streams, of math the bytes' products.
KERNELS_SEE = ("base/", "quant/pack.h", "quant/quantizer.h", "math/onednn.h")
LEVELS = {name: level for level, names in enumerate(ORDER) for name in names}
MEDIAN_LINES, MOST_LINES, FILE_LINES, C_COLUMNS = 25, 80, 500, 120


class Function(NamedTuple):
    """Where a function lies and how many lines it has."""

    path: Path
    name: str
    lines: int

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}: {self.name} has {self.lines} lines"


def c_files() -> list[Path]:
    return sorted([*CSRC.rglob("*.c"), *CSRC.rglob("*.h")])


def python_files() -> list[Path]:
    folders = [ROOT / name for name in ("omniquant", "tests", "benchmarks")]
    return sorted([*(path for folder in folders for path in folder.rglob("*.py")), ROOT / "setup.py"])


def blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match.group())


def code_of(text: str) -> str:
    """C without comments, literals and preprocessor lines, at the same line numbers."""
    text = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.S)
    return re.sub(r"^[ \t]*#(?:\\\n|[^\n])*", blank, text, flags=re.M)


def c_functions(path: Path, text: str) -> Iterator[Function]:
    """Every body at the outermost level whose head ends with a parenthesis."""
    code, depth, head = code_of(text), 0, 0
    for match in re.finditer(r"[{};]", code):
        mark, at = match.group(), match.start()
        if mark == "{":
            depth += 1
            if depth == 1:
                opened = at
        elif mark == "}":
            depth -= 1
        if depth == 0 and mark == "}":
            signature = code[head:opened]
            if signature.rstrip().endswith(")"):
                first = head + len(signature) - len(signature.lstrip())
                names = re.findall(r"(\w+)\s*\(", signature)
                name = next((n for n in names if n not in ("__attribute__", "OQ_PRINTF")), "?")
                yield Function(path, name, code.count("\n", first, at) + 1)
        if depth == 0:
            head = at + 1


def python_functions(path: Path) -> Iterator[Function]:
    """Lines without the docstring, which is as long as it has to be."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                string = node.body[0]
                assert string.end_lineno is not None
                lines -= string.end_lineno - string.lineno + 1
            yield Function(path, node.name, lines)


def all_functions(language: str) -> list[Function]:
    if language == "C":
        return [f for path in c_files() for f in c_functions(path, path.read_text(encoding="utf-8"))]
    return [f for path in python_files() for f in python_functions(path)]


def test_the_counting_itself() -> None:
    text = (
        "/* { */\n#define X \\\n    {\nstatic int a = 1;\nOQ_VECTORIZED static int f(int x) {\n    if (x) {\n"
        '        g("}");\n    }\n}\nstruct s {\n    int y;\n};\nint\ng(void)\n{\n}\n'
    )
    assert [(f.name, f.lines) for f in c_functions(ROOT, text)] == [("f", 5), ("g", 4)]
    gemm = CSRC / "math" / "gemm.c"
    assert "oq_gemm" in {f.name for f in c_functions(gemm, gemm.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("language", ["C", "Python"])
def test_functions_are_short(language: str) -> None:
    functions = all_functions(language)
    assert len(functions) > 50
    middle = median(f.lines for f in functions)
    longest = sorted(functions, key=lambda f: -f.lines)[:5]
    assert middle <= MEDIAN_LINES, f"median {middle} lines; longest: " + "; ".join(map(str, longest))
    too_long = [str(f) for f in functions if f.lines > MOST_LINES]
    assert not too_long, "\n".join(too_long)


def test_files_are_short() -> None:
    files = [*c_files(), *python_files()]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    too_long = [f"{path.relative_to(ROOT)}: {n} lines" for path, n in lengths.items() if n > FILE_LINES]
    assert not too_long, "\n".join(too_long)


def test_lines_of_c_are_short() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)} columns"
        for path in c_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > C_COLUMNS
    ]
    assert not too_long, "\n".join(too_long)


def binding_share() -> float:
    """Return the lines of the binding over those of the core."""
    lines = {True: 0, False: 0}
    for path in c_files():
        lines[path.is_relative_to(CSRC / "python")] += len(path.read_text(encoding="utf-8").splitlines())
    return lines[True] / lines[False]


def test_the_binding_is_a_quarter_of_the_core_at_most() -> None:
    assert binding_share() <= 0.25


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(encoding="utf-8"), re.M)


def test_includes_go_left_only() -> None:
    wrong = []
    for path in c_files():
        here = path.relative_to(CSRC).parts[0]
        for name in includes(path):
            there = name.split("/")[0]
            assert there in LEVELS, f"{path.relative_to(ROOT)} includes {name}: paths start at csrc"
            left = name.startswith(KERNELS_SEE) if here == "kernels" else LEVELS[there] < LEVELS[here]
            if here != there and not left:
                wrong.append(f"{path.relative_to(ROOT)} includes {name}")
    assert not wrong, "\n".join(wrong)


def test_no_include_cycles() -> None:
    graph = {str(path.relative_to(CSRC)): includes(path) for path in c_files()}

    def visit(name: str, trail: list[str]) -> None:
        assert name not in trail, "cycle: " + " -> ".join([*trail, name])
        assert name in graph, f"{trail[-1]} includes {name}, which does not exist"
        for other in graph[name]:
            visit(other, [*trail, name])

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize(
    ("what", "pattern", "allowed"),
    [
        ("Python or NumPy", r"Python\.h|numpy/|\bPy[A-Z_]\w+", {"python"}),
        ("printing or exiting", r"\b(?:f?printf|f?puts|putchar|perror|exit|_Exit|abort|assert)\s*\(", set()),
        ("malloc beside the one", r"\b(?:malloc|calloc|realloc|aligned_alloc|free)\s*\(", {"base/alloc.c"}),
        ("OpenMP beside the one", r"omp\.h|\bomp_\w+\s*\(|#\s*pragma\s+omp", {"base/parallel.c"}),
        ("dlopen", r"\bdlopen\s*\(", {"math/onednn.c", "kernels/onednn.c"}),
    ],
)
def test_the_core_leaves_alone(what: str, pattern: str, allowed: set[str]) -> None:
    wrong = []
    for path in c_files():
        name = path.relative_to(CSRC)
        if str(name) in allowed or name.parts[0] in allowed:
            continue
        text = re.sub(r"/\*.*?\*/", blank, path.read_text(encoding="utf-8"), flags=re.S)
        for match in re.finditer(pattern, text):
            line = text.count("\n", 0, match.start()) + 1
            wrong.append(f"csrc/{name}:{line}: {what}: {match.group()}")
    assert not wrong, "\n".join(wrong)


def test_onednn_headers_in_two_files_at_most() -> None:
    users = [str(p) for p in c_files() if re.search(r"include\s*[<\"].*dnnl", p.read_text(encoding="utf-8"))]
    assert 1 <= len(users) <= 2, users


def test_no_fast_math() -> None:
    unsafe = re.compile(r"-Ofast|fast-math|-funsafe-math|-ffinite-math|-fassociative-math|-freciprocal-math")
    files = [ROOT / name for name in ("setup.py", "pyproject.toml", "Makefile", ".ci/run")] + c_files()
    found = ((path, unsafe.search(path.read_text(encoding="utf-8"))) for path in files)
    wrong = [f"{path.relative_to(ROOT)}: {match.group()}" for path, match in found if match]
    assert not wrong, "\n".join(wrong)
