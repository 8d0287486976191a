"""What exporting will make of a calibration, foreseen before it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from omniquant.config import CalibrationOptions, QuantConfig
from omniquant.describe import counted
from omniquant.errors import UnsupportedError
from omniquant.export.refusals import WholeGroups, Wish, inputs_of, short_groups
from omniquant.export.table import FORMATS, format_of, refuse
from omniquant.models.model import Model
from omniquant.models.spec import BlockSpec


def foresee(
    scheme: QuantConfig, options: CalibrationOptions, model: Model, say: Callable[[str], None]
) -> None:
    """Refuse what a calibration's target cannot hold; say what its export, or any where it names none, lacks.

    Raises
    ------
    UnsupportedError
        As :func:`refuse_target`.
    """
    if options.target == "any":
        for line in told_short_groups(scheme, model.spec):
            say(line)
        return
    needs = refuse_target(scheme, options, model)
    if needs:
        say(f"{options.target} has no place for all of {scheme}: exporting will need {needs}")


def told_short_groups(scheme: QuantConfig, spec: BlockSpec) -> list[str]:
    """Return a line for each group size under which rows end in a shorter group: who refuses them."""
    refusing = [
        name for name, each in FORMATS.items() if any(isinstance(check, WholeGroups) for check in each.checks)
    ]
    inputs, lines = inputs_of(spec), {}
    for each in scheme.schemes:
        short = short_groups(each, inputs)
        if short:
            name, columns = next(iter(short.items()))
            others = f" and {counted(len(short) - 1, 'other')} end" if len(short) > 1 else " ends"
            what = f"groups of {each.group_size}: {name} with {columns} inputs{others} in a shorter one"
            lines[each.group_size] = f"{what}, which {', '.join(refusing)} refuse"
    return list(lines.values())


def _takes(wish: Wish) -> bool:
    try:
        refuse(wish)
    except UnsupportedError:
        return False
    return True


def refuse_target(scheme: QuantConfig, options: CalibrationOptions, model: Model) -> str:
    """Raise UnsupportedError if the target of a calibration could not hold its result, before it begins.

    Returns
    -------
    str
        Options that exporting will need, where the target takes the weights but no activations, and where
        its usual variant takes neither; empty: none.
    """
    wish = Wish.of(model, options.target, "", scheme, options, weights_only=True)
    refuse(wish)
    needs = [] if _takes(replace(wish, weights_only=False)) else ["--weights-only"]
    variants = format_of(options.target)[0].variants
    able = [variant for variant in variants if _takes(replace(wish, variant=variant))]
    if able and able[0] != variants[0]:
        needs.append(f"--variant {able[0]}")
    return " ".join(needs)
