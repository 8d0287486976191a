"""The model card, README.md of an export: what it is, how it was made, what it costs, how to load it."""

from __future__ import annotations

from omniquant._version import __version__
from omniquant.describe import bits_per_weight, counted, describe_maps, described_choices
from omniquant.export.content import Content

_TEMPLATE = """\
---
library_name: {library}
tags: [{tags}]
---

# {model}, {scheme} by {method}

{model} ({source}) quantized after training by omniquant {version} and exported as {title}.

| | |
|---|---|
| scheme | {scheme}: {bits:.3f} bits a weight of the linears, scales counted |
| method | {method}{choices}, {epochs} on {samples} of {seqlen} tokens, seed {seed} |
{tuned}| arithmetic | {arithmetic} |
| activations | {activations} |
| at run time | {cost} |

{maps}{perplexity}
## Load

{load}
"""


def model_card(content: Content, title: str, library: str, load: str, half: str = "") -> str:
    """Return the text of the card.

    Parameters
    ----------
    content : Content
    title, library, load : str
        The format in words, the library that reads it, and lines that do.
    half : str
        The format's name if it keeps scales in float16.

    Returns
    -------
    str
    """
    result = content.result
    header, options = result.header, result.options
    return _TEMPLATE.format(
        library=library,
        tags=", ".join(dict.fromkeys(("quantized", "omniquant", options.method))),
        method=options.method,
        choices=described_choices(options),
        tuned="" if header.tuning is None else f"| tuned | {header.tuning} |\n",
        model=header.model["name"],
        source=header.model["source"],
        version=__version__,
        title=title,
        scheme=content.scheme,
        bits=bits_per_weight(content.scheme, result.architecture.spec, result.architecture.num_layers),
        epochs=counted(options.epochs, "epoch"),
        samples=counted(header.calibration["samples"], "window"),
        seqlen=header.calibration["seqlen"],
        seed=options.seed,
        arithmetic=_arithmetic(options.target, half),
        activations=_activations(content),
        cost=_cost(content),
        maps=_maps(content),
        perplexity=_perplexity(content),
        load=load,
    )


def _arithmetic(target: str, half: str) -> str:
    if target != "any":
        return f"calibrated in the arithmetic of {target}"
    if half:
        return f"scales rounded to float16 on export; calibrate with --target {half} to lose nothing"
    return "float32 scales"


def _activations(content: Content) -> str:
    if content.result.scheme.weight_only:
        return "in float"
    if content.weights_only:
        return f"in float here; calibrated as {content.result.scheme}, whose activations were left out"
    scheme = content.scheme
    kind = "symmetric" if scheme.a_symmetric else "asymmetric"
    return f"{scheme.a_bits} bits, {kind}, one scale a token, quantized at run time"


def _cost(content: Content) -> str:
    result = content.result
    maps = describe_maps(result.options, result.architecture.spec)
    adds = sum(entry.multiply_adds for entry in maps) * result.architecture.num_layers
    if not adds:
        return "nothing added: every learned map is folded into the weights"
    return f"{adds:,} multiply-adds a token added by online maps and rotations"


def _maps(content: Content) -> str:
    maps = describe_maps(content.result.options, content.result.architecture.spec)
    lines = "".join(f"- {entry}\n" for entry in maps)
    return f"Maps:\n\n{lines}\n" if lines else ""


def _perplexity(content: Content) -> str:
    if not content.perplexity:
        return ""
    rows = "".join(f"| {what} | {value:.4f} |\n" for what, value in content.perplexity.items())
    return f"| perplexity on | |\n|---|---|\n{rows}\n"
