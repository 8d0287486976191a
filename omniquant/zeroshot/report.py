"""Zero-shot results as a table for people."""

from __future__ import annotations

from omniquant.zeroshot.evaluate import ZeroShot
from omniquant.zeroshot.statistics import Accuracy, Difference


def table(found: ZeroShot) -> str:
    """Return a line a task and metric: percent, standard error, 95 % interval, and the paired difference."""
    differences = found.differences()
    lines = [f"{'task':<14}{'metric':<10}{'n':>6}  {'%':>6} {'±':>5}  {'95 %':<14}" + _head(found)]
    for result in found.results:
        for name, right in result.metrics.items():
            share = Accuracy.of(right)
            interval = f"{100 * share.low:.1f} to {100 * share.high:.1f}"
            line = f"{result.task:<14}{name:<10}{len(right):>6}  {100 * share.value:>6.2f} "
            line += f"{100 * share.stderr:>5.2f}  {interval:<14}"
            lines.append(line + (_paired(differences[result.task][name]) if differences else ""))
    mean = found.to_dict()["mean_acc"]
    lines.append(f"{'mean':<14}{'acc':<10}{'':>6}  {100 * mean['value']:>6.2f} {100 * mean['stderr']:>5.2f}")
    if differences:
        paired = found.to_dict()["against"]["mean_acc"]
        low, high = (100 * end for end in paired["interval"])
        lines[-1] += f"{'':<16}{100 * paired['value']:>+8.2f}  {low:+.1f} to {high:+.1f}"
        flips = found.to_dict()["against"]["mean_flips"]
        lines.append(f"{100 * flips:.1f} % of the answers turned right or wrong (gained and lost)")
    return "\n".join(line.rstrip() for line in lines)


def _head(found: ZeroShot) -> str:
    return "" if found.against is None else f"{'paired':>8}  {'95 %':<16}{'gained':>6}{'lost':>6}{'p':>8}"


def _paired(difference: Difference) -> str:
    interval = f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
    return (
        f"{100 * difference.value:>+8.2f}  {interval:<16}"
        f"{difference.gained:>6}{difference.lost:>6}{difference.p_value:>8.2g}"
    )
