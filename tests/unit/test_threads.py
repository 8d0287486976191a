"""Threads change nothing but the time: same bits, no deadlock after fork, Ctrl-C and callbacks end a call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_blocks import Array, Case, Draw

from omniquant import _core

HELPERS = str(Path(__file__).parents[1])
# Every loop is cut into several chunks: attention by heads, norms and quantizers by rows, MLPs by elements.
WIDE = {
    "hidden_size": 48,
    "ffn_size": 100,
    "head_dim": 8,
    "num_kv_heads": 2,
    "queries_per_kv": 3,
    "tokens": 150,
}


def wide(seed: int, **forced: Any) -> Case:
    """Return a block with work for several threads."""
    small = {"w_bits": 4, "bits": 4, "samples": 2, "epochs": 2, "dominance": "project"}
    return Draw(seed, **{**WIDE, **small, **forced}).case()


def flatten(value: Any) -> list[bytes]:
    """Return the bytes of everything in a nested result."""
    if isinstance(value, dict):
        return [part for key in sorted(value) for part in (key.encode(), *flatten(value[key]))]
    if isinstance(value, tuple | list):
        return [part for item in value for part in flatten(item)]
    return [np.asarray(value).tobytes() if isinstance(value, np.ndarray) else repr(value).encode()]


def nll(threads: int = 1) -> tuple[Array, Array]:
    """Return token_nll of a random head."""
    rng = np.random.default_rng(0)
    hidden, head = rng.standard_normal((140, 40)), rng.standard_normal((1500, 40))
    targets = rng.integers(0, 1500, 140, dtype=np.int32)
    gain, bias = rng.standard_normal((2, 40))
    arguments = hidden, "layer", 1e-5, gain, bias, head, targets
    return _core.token_nll(*arguments, threads=threads)


# ---- the same bits ------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_results_do_not_depend_on_the_number_of_threads(seed: int) -> None:
    case = wide(seed, batch_size=1 + seed % 2)
    calls: list[Callable[[int], Any]] = [
        lambda threads: case.calibrate(threads=threads),
        lambda threads: case.loss(_core, threads=threads),
        lambda threads: case.forward(
            _core, case.weights, case.x_q, activation=case.options["activation"], threads=threads
        ),
        nll,
    ]
    for call in calls:
        serial = flatten(call(1))
        assert all(flatten(call(threads)) == serial for threads in (2, 3, 4))


def test_repeated_calls_give_the_same_bits() -> None:
    case = wide(11)
    first = flatten(case.calibrate(threads=2))
    assert all(flatten(case.calibrate(threads=2)) == first for _ in range(5))


def test_seed_and_block_choose_the_order_of_windows() -> None:
    case = wide(12, samples=2, epochs=4, shuffle=True, tokens=20, lwc=True)
    results = {}
    for seed, block in ((0, 0), (0, 0), (1, 0), (0, 1), (5, 3), (6, 2)):
        case.options.update(seed=seed, block=block)
        results.setdefault((seed, block), []).append(tuple(flatten(case.calibrate()["learnables"])))
    assert len(set(results[0, 0])) == 1
    assert len({each[0] for each in results.values()}) > 1


def call_in_eight_threads(count: int) -> None:
    """Let eight Python threads call the core at once and compare all with serial calls."""
    cases = [Draw(seed, w_bits=4, epochs=1, dominance="project").case() for seed in range(16)]

    def call(i: int) -> list[bytes]:
        case = cases[i % len(cases)]
        if i % 4 == 0:
            return flatten(case.calibrate(threads=1 + i % 2, on_step=lambda *_: None))
        if i % 4 == 1:
            return flatten(case.loss(_core))
        return flatten(
            case.fold(_core) if i % 4 == 2 else case.forward(_core, case.weights, case.x_q, threads=2)
        )

    kinds = 64  # call(i) repeats after lcm(16, 4, 2) calls
    serial = [call(i) for i in range(kinds)]
    with ThreadPoolExecutor(8) as pool:
        for i, result in enumerate(pool.map(call, range(count))):
            assert result == serial[i % kinds], i


def test_concurrent_calls_equal_serial_ones() -> None:
    call_in_eight_threads(800)


@pytest.mark.slow
def test_eight_threads_of_a_thousand_calls() -> None:
    call_in_eight_threads(8000)


# ---- processes and signals ----------------------------------------------------


PRELUDE = """
    import os, sys, threading, time
    sys.path.insert(0, sys.argv[1])
    import numpy as np
    from omniquant import _core
    from random_blocks import Draw

    def many_windows(count, **options):
        case = Draw(0, hidden_size=32, ffn_size=64, head_dim=8, num_kv_heads=2, queries_per_kv=4, tokens=512,
                    samples=1, w_bits=4, bits=4, aug=False, dominance="project", **options).case()
        for name in ("x_fp", "x_q", "targets"):
            setattr(case, name, np.repeat(getattr(case, name), count, axis=0))
        return case
"""


def start(body: str) -> subprocess.Popen[str]:
    """Run a script that knows the helpers; POSIX alone."""
    source = textwrap.dedent(PRELUDE) + textwrap.dedent(body)
    # A process started in the background may be told to ignore SIGINT; Python then installs no handler.
    prepare = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    arguments = [sys.executable, "-c", prepare + source, HELPERS]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_of_a_threaded_parent_does_not_hang() -> None:
    process = start("""
        case = many_windows(4, epochs=1)
        def run():
            return case.forward(_core, case.weights, case.x_q, threads=2).tobytes()
        before = run()
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                same = run() == before
                case.calibrate(threads=2)
                os._exit(0 if same else 1)
            children.append(child)
        states = [os.waitpid(child, 0)[1] for child in children]
        print(states, run() == before)
    """)
    try:
        out, error = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail("a child forked after threads were used hangs")
    assert out.strip() == "[0, 0, 0] True", error


WHERE = {
    "training": """
        case = many_windows(4, epochs=100000)
        case.calibrate(threads=2, on_step=lambda epoch, step, *_: step == 3 and print("now", flush=True))
    """,
    "training without a callback": """
        case = many_windows(1, epochs=10000000)
        threading.Timer(0.5, lambda: print("now", flush=True)).start()
        case.calibrate()
    """,
    "the losses before training": """
        case = many_windows(1500, epochs=1)
        threading.Timer(0.2, lambda: print("now", flush=True)).start()
        case.calibrate(on_step=lambda *_: os._exit(77))
    """,
    "block_forward": """
        case = many_windows(2000)
        threading.Timer(0.2, lambda: print("now", flush=True)).start()
        case.forward(_core, case.weights, case.x_q)
        os._exit(77)
    """,
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("where", WHERE)
def test_ctrl_c_ends_a_call_within_a_second(where: str) -> None:
    launched = time.monotonic()
    process = start(f"""
        try:
            {textwrap.indent(textwrap.dedent(WHERE[where]), " " * 12).strip()}
        except KeyboardInterrupt:
            print(time.monotonic(), flush=True)
            os._exit(42)
    """)
    assert process.stdout
    assert process.stdout.readline() == "now\n", process.communicate(timeout=60)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    try:
        out, error = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail("the call goes on after SIGINT")
    assert process.returncode == 42, error
    assert float(out) - sent < max(1.0, (sent - launched) / 2)  # more where everything takes longer


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_signals_during_products_harm_nothing() -> None:
    """A handler that starts inside one of oneDNN's kernels would write its frame over the heap."""
    process = start("""
        case = many_windows(1, epochs=200)
        before = case.calibrate()["trace"].tobytes()
        hits = []
        signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        same = case.calibrate()["trace"].tobytes() == before
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(same, len(hits) > 50)
    """)
    out, error = process.communicate(timeout=120)
    assert (process.returncode, out.strip()) == (0, "True True"), error


# ---- callbacks ----------------------------------------------------------------


class StopHereError(Exception):
    """Raised by a callback."""


@pytest.mark.parametrize("exception", [StopHereError, KeyboardInterrupt, SystemExit, MemoryError])
def test_a_callbacks_exception_stops_the_calibration_and_propagates(exception: type[BaseException]) -> None:
    case = wide(3, epochs=100, tokens=10)
    calls = []

    def on_step(epoch: int, step: int, loss: float, min_margin: float) -> None:
        calls.append((epoch, step, loss, min_margin))
        if step == 4:
            raise exception("enough")

    with pytest.raises(exception, match="enough"):
        case.calibrate(on_step=on_step, threads=2)
    assert [call[1] for call in calls] == [0, 1, 2, 3, 4]
    assert flatten(case.loss(_core)) == flatten(wide(3, epochs=100, tokens=10).loss(_core))


def test_the_callback_may_call_the_core() -> None:
    case = wide(5, tokens=12)
    plain, inner = flatten(case.calibrate(threads=2)), []
    nested = case.calibrate(threads=2, on_step=lambda *_: inner.append(flatten(case.loss(_core, threads=2))))
    assert flatten(nested) == plain
    assert len(inner) == 4
    assert all(each == inner[0] for each in inner)


def test_a_callback_that_cannot_be_called_is_an_error() -> None:
    with pytest.raises(TypeError, match="callable"):
        wide(3, tokens=5).calibrate(on_step=5)


@pytest.mark.parametrize("threads", [-1, -(2**31)])
def test_negative_threads_are_refused(threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        wide(3, tokens=5).calibrate(threads=threads)


def test_zero_threads_mean_all() -> None:
    case = wide(3, tokens=5)
    assert flatten(case.calibrate(threads=0)) == flatten(case.calibrate(threads=1))
