"""The calibration method: which maps are learned, and how they are trained.

Defaults follow OmniQuant (arXiv 2308.13137) and AffineQuant (arXiv 2403.12544); where one departs from them
(the stability factor under the relative parametrisation), the comment beside it says why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from omniquant.config.preset import PRESETS, preset_values
from omniquant.config.recipe import AUTO, recipe_for
from omniquant.config.scheme import FLOAT_BITS, QuantConfig
from omniquant.config.target import TARGETS
from omniquant.errors import ConfigError

METHODS = ("rtn", "smoothquant", "gptq", "awq", "omniquant", "affinequant")
UNTRAINED = ("rtn", "smoothquant", "gptq", "awq")

CHOICES: dict[str, tuple[str, ...]] = {
    "method": METHODS,
    "norm_map": ("none", "diagonal", "online"),
    "vo_map": ("none", "diagonal", "affine"),
    "qk_map": ("none", "exact", "scale", "full"),
    "input_map": ("none", "kronecker"),
    "start": ("paper", "search"),
    "rounding": ("nearest", "gptq", "learned"),
    "parametrization": ("relative", "absolute"),
    "dominance": ("project", "reject", "raise", "monitor"),
    "schedule": ("constant", "cosine"),
    "loss": ("mse", "token", "relative"),
    "sinks": ("kept", "out"),
    "rotation": ("none", "folded", "online"),
    "target": TARGETS,
    "products": ("auto", "float32", "integer", "bfloat16"),
    "gradients": ("auto", "float", "int8"),
}


_COSINE_FROM_EPOCHS = 10
MOST_AHEAD = 7  # blocks behind that a loss may look through


@dataclass(frozen=True)
class CalibrationOptions:
    """A method with every choice made; build one with :meth:`for_method`.

    Parameters
    ----------
    method : {"rtn", "smoothquant", "gptq", "awq", "omniquant", "affinequant"}
    lwc : bool
        Learnable weight clipping.
    norm_map : {"none", "diagonal", "online"}
        Map between a norm and the linears behind it; "online" is a full matrix multiplied at run time.
    vo_map : {"none", "diagonal", "affine"}
        Map between v and o, per key/value head.
    qk_map : {"none", "exact", "scale", "full"}
        Map between q and k, per key/value head. Under RoPE "scale" and "full" are approximate.
    input_map : {"none", "kronecker"}
        Map of every linear's input at run time, behind any rotation: a Kronecker product of two affine maps.
    lac : bool
        Learnable activation clipping: the shares of a token's largest and smallest value that each input of
        linears keeps.
    shift : bool
        Shifts, taken only where producer and consumer carry a bias.
    up_down : bool
        Scales between `up` and `down`.
    start : {"paper", "search"}
        Where clipping and scales start: at OmniQuant's sigma(4) and SmoothQuant's scales, or at the best of a
        grid by the error of each linear's output (AWQ, arXiv 2306.00978).
    rounding : {"nearest", "gptq", "learned"}
        "gptq": error feedback after the training (GPTQ, arXiv 2210.17323), unless the block then loses more.
        "learned": an offset a weight inside round(), trained with the rest (SignRound, arXiv 2309.05516).
    parametrization : {"relative", "absolute"}
        Affine maps as D(I + E) or as the matrix itself.
    dominance : {"project", "reject", "raise", "monitor"}
        What happens to a step that leaves strict diagonal dominance.
    margin : float
        Target margin of a projected row, relative to its diagonal.
    stability : float
        AffineQuant's stability factor: what an open off-diagonal is multiplied by.
    alpha : float
        Exponent of the SmoothQuant start of the scales; 0.85 for smoothquant itself, else 0.5.
    epochs, batch_size : int
        Passes over the calibration windows; windows an optimiser step.
    patience : int
        End a block's training after so many epochs in a row that lower the best training loss by less than a
        thousandth; 0: never.
    lr_lwc, lr_let : float
        Learning rates of clipping, and of scales, shifts and affine maps.
    lr_rounding : float
        What the offset of a weight's rounding moves a step, times the number of steps.
    damping : float
        Of GPTQ, relative to the mean of the Gram matrix's diagonal.
    act_order : bool
        Round the columns of the largest inputs first; grids do not depend on it (static groups).
    true_sequential : bool
        Gather each linear's inputs with the linears before it rounded.
    schedule : {"constant", "cosine"}
        Of all rates. By default a cosine from 10 epochs on (with lr_let 1e-2 for omniquant), else constant.
        Above 4 bits omniquant's are constant.
    shuffle : bool
        Draw the order of windows from (seed, block, epoch); the default but for omniquant above 4 bits.
    loss : {"mse", "token", "relative"}
        Mean squared error, or each token's error relative to the block's update of it, or to itself.
    aug_loss : bool
        Also match the full-precision block on the quantized stream.
    sinks : {"kept", "out"}
        Whether sink tokens, whose state is massive, count in the loss. They are found in the calibration.
    look_ahead : int
        How many of the blocks behind, in full precision, the loss also looks through: to that of the block's
        own output the same behind the last of them is added. The window of blocks slides by one (CBQ, arXiv
        2312.07950, trains all blocks of its window).
    products : {"auto", "float32", "integer", "bfloat16"}
        How a training step multiplies. "integer": quantized activations times quantized weights as exact sums
        of integers, the rest in float32; "bfloat16": the rest with operands rounded to bfloat16 and sums in
        float32, and where there is AMX passes in full precision with floats taken apart into bfloat16, 2^-16
        from exact. "auto" becomes the fastest kind of the processor when a calibration starts.
    gradients : {"auto", "float", "int8"}
        How a step multiplies on the way back through quantized linears. "float": as `products` says.
        "int8": the gradient rounded to 8 bits, one scale a token or an output, times the codes of weights or
        activations; where those have no grid a row, times them rounded to 8 bits too. "auto" becomes "int8"
        where products are not float32 and the processor is faster so.
    best_iterate : bool
        Keep the epoch of lowest training loss instead of the last one.
    seed : int
        Of the order of windows and of the signs of a rotation.
    rotation : {"none", "folded", "online"}
        The basis the model is calibrated in: its own; rotated where that folds into the weights; or also by
        operators at run time before `o` and `down` and, where they are quantized, on Q and K.
    target : str
        "any", or the export format whose arithmetic the calibration takes: scales are rounded as it stores
        them, so that exporting loses nothing.
    embedding_bits, head_bits : {16, 8, 4}
        8 rounds the embedding's or the head's rows, symmetric, a float16 scale every 32 inputs.

    Raises
    ------
    ConfigError
        If a value is out of range or the combination does not exist.
    """

    method: str
    lwc: bool
    norm_map: str
    vo_map: str
    qk_map: str
    shift: bool
    epochs: int
    stability: float
    aug_loss: bool
    look_ahead: int = 0
    sinks: str = "kept"
    up_down: bool = False
    start: str = "paper"
    rounding: str = "nearest"
    parametrization: str = "relative"
    dominance: str = "project"
    margin: float = 0.05
    alpha: float = 0.5
    batch_size: int = 1
    patience: int = 0
    lr_lwc: float = 1e-2
    lr_let: float = 5e-3
    lr_rounding: float = 1.0
    damping: float = 0.01
    act_order: bool = True
    true_sequential: bool = False
    schedule: str = "constant"
    shuffle: bool = True
    loss: str = "mse"
    products: str = "auto"
    gradients: str = "auto"
    best_iterate: bool = False
    seed: int = 0
    rotation: str = "none"
    input_map: str = "none"
    lac: bool = False
    target: str = "any"
    embedding_bits: int = FLOAT_BITS
    head_bits: int = FLOAT_BITS

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        _check_whole("epochs", self.epochs, 0, 1_000_000)
        _check_whole("batch_size", self.batch_size, 1, 1_000_000)
        _check_whole("patience", self.patience, 0, 1_000_000)
        _check_whole("look_ahead", self.look_ahead, 0, MOST_AHEAD)
        _check_whole("seed", self.seed, 0, 2**63 - 1)
        for name in ("embedding_bits", "head_bits"):
            if isinstance(getattr(self, name), bool) or getattr(self, name) not in (4, 8, FLOAT_BITS):
                raise ConfigError(f"{name} {getattr(self, name)!r} is not 4, 8 or {FLOAT_BITS} (float)")
        _check_real("stability", self.stability, 1e-6, 1e3)
        _check_real("margin", self.margin, 1e-6, 0.999)
        _check_real("alpha", self.alpha, 0.0, 1.0)
        _check_real("lr_lwc", self.lr_lwc, 0.0, 1e3)
        _check_real("lr_let", self.lr_let, 0.0, 1e3)
        _check_real("lr_rounding", self.lr_rounding, 0.0, 1e3)
        _check_real("damping", self.damping, 1e-9, 1e3)
        self._check_combination()

    def _check_combination(self) -> None:
        if self.method != "affinequant":
            for name, value in (("norm_map", "online"), ("vo_map", "affine"), ("input_map", "kronecker")):
                if getattr(self, name) == value:
                    raise ConfigError(f"{name} {value!r} is an affine map: it needs method 'affinequant'")
        if self.method in UNTRAINED and self.rounding == "learned":
            raise ConfigError(f"rounding 'learned' is trained: method {self.method!r} trains nothing")
        if self.input_map != "none" and self.norm_map == "online":
            raise ConfigError("norm_map 'online' beside input_map 'kronecker': the inputs have one map")
        if (self.method == "rtn" and self.rounding != "nearest") or (
            self.method == "gptq" and self.rounding != "gptq"
        ):
            raise ConfigError(f"rounding {self.rounding!r}: method {self.method!r} has its own")
        if self.method in UNTRAINED and self.qk_map != "none":
            raise ConfigError(f"qk_map {self.qk_map!r} is learned: method {self.method!r} has none")
        if self.method in ("rtn", "gptq") and self.norm_map != "none":
            raise ConfigError(
                f"norm_map {self.norm_map!r}: method {self.method!r} rounds the weights as they are"
            )

    @classmethod
    def for_method(
        cls,
        method: str,
        scheme: QuantConfig,
        *,
        preset: str = "default",
        online: bool = True,
        search: bool = True,
        samples: int | None = None,
        **overrides: Any,
    ) -> CalibrationOptions:
        """Return the defaults of `method` for `scheme`, with `overrides` applied.

        Parameters
        ----------
        method : str
            One of ``METHODS``; or "auto", the one of them, with options, that measured best for the scheme.
        scheme : QuantConfig
        preset : {"default", "fast"}
            The papers' budget of training, or a small one at higher rates that also learns the rounding.
        online : bool
            Whether "auto" may choose rotations and maps at run time.
        search : bool
            Whether "auto" may choose a searched start, which experts do not have.
        samples : int, optional
            Windows of the calibration, of which "auto" makes its epochs; None: few.
        **overrides
            Fields of this class; None means the default. Epochs are always 0 for rtn, smoothquant, gptq
            and awq, which train nothing.

        Returns
        -------
        CalibrationOptions

        Raises
        ------
        ConfigError
            For an unknown method, preset or option, a value out of range, or a combination that does not
            exist.
        """
        recipe: dict[str, Any] = {}
        if method == AUTO:
            target, epochs = overrides.get("target") or "any", overrides.get("epochs")
            method, recipe = recipe_for(scheme, target, online, search, samples, epochs)
        if method not in METHODS:
            raise ConfigError(f"method {method!r} is not one of {', '.join((*METHODS, AUTO))}")
        if preset not in PRESETS:
            raise ConfigError(f"preset {preset!r} is not one of {', '.join(PRESETS)}")
        if not scheme.quantizes_weights and scheme.weight_only and method != "rtn":
            raise ConfigError(f"scheme {scheme} quantizes nothing, so method {method!r} has nothing to learn")
        known = {field.name for field in fields(cls)} - {"method"}
        unknown = sorted(set(overrides) - known)
        if unknown:
            raise ConfigError(f"unknown option {unknown[0]!r}; known: {', '.join(sorted(known))}")
        trained = {} if method in UNTRAINED else preset_values(preset, scheme)
        values = _defaults(method, scheme) | trained | recipe
        values |= {k: v for k, v in overrides.items() if v is not None}
        if method in UNTRAINED:
            # GPTQ may have its clipping searched; there is no other clipping without training.
            searched = values.get("start") == "search" and method in ("gptq", "awq")
            values |= {"epochs": 0, "aug_loss": False, "lac": False, "lwc": values["lwc"] and searched}
        values.setdefault("stability", _default_stability(scheme, values.get("parametrization", "relative")))
        values = _default_schedule(method, scheme, values) | values
        return cls(method=method, **values)

    def with_seed(self, seed: int) -> CalibrationOptions:
        """Return the same options with another seed."""
        return replace(self, seed=seed)

    def with_products(self, scheme: QuantConfig, products: str, gradients: str) -> CalibrationOptions:
        """Return the same options with "auto" replaced by what is fastest of what serves the scheme.

        Parameters
        ----------
        scheme : QuantConfig
        products, gradients : str
            The processor's fastest kinds.
        """
        fine, chosen = scheme.finer_than_bytes, self
        if self.products == "auto":
            chosen = replace(chosen, products="integer" if products == "bfloat16" and fine else products)
        if self.gradients == "auto":
            exact = fine or chosen.products == "float32"
            chosen = replace(chosen, gradients="float" if exact else gradients)
        return chosen

    @property
    def trains(self) -> bool:
        """Whether anything is learned."""
        return self.epochs > 0

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CalibrationOptions:
        """Read what :meth:`to_dict` wrote; ConfigError names what does not fit."""
        # What results of before there was such an option were made with.
        former: dict[str, Any] = {
            "target": "any",
            "rounding": "nearest",
            "lr_rounding": 1.0,
            "rotation": "none",
            "start": "paper",
            "damping": 0.01,
            "act_order": True,
            "true_sequential": False,
            "patience": 0,
            "look_ahead": 0,
            "sinks": "kept",
            "input_map": "none",
            "lac": False,
            "gradients": "float",
            "embedding_bits": FLOAT_BITS,
            "head_bits": FLOAT_BITS,
        }
        values = former | dict(values)
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            odd = sorted(set(values) ^ names)
            raise ConfigError(f"options: {odd[0]!r} is {'missing' if odd[0] in names else 'unknown'}")
        return cls(**values)


def _defaults(method: str, scheme: QuantConfig) -> dict[str, Any]:
    """Clipping and LET for OmniQuant, matrices for AffineQuant.

    Two departures, both free at run time, exact, and better on every seed measured. The papers leave LET out
    where only weights are quantized (but for OPT): with it W2A16 went from 36.6 to 32.4 and 39.7 to 34.7,
    W3A16 from 7.35 to 7.19. And they have no scales between up and down: W4A4 went from 7.16 to 6.99. Between
    q and k, LET gains nothing for weights alone, and is no equivalence under RoPE.
    """
    values: dict[str, Any] = {
        "lwc": method in ("awq", "omniquant", "affinequant") and scheme.quantizes_weights,
        "norm_map": "none",
        "vo_map": "none",
        "qk_map": "none",
        "shift": False,
        "epochs": 0,
        "aug_loss": False,
    }
    if method == "smoothquant":
        values |= {"norm_map": "diagonal", "alpha": 0.85}  # its authors' alpha for the LLaMA family
    if method == "gptq":
        values["rounding"] = "gptq"
    if method == "awq":
        values |= {"norm_map": "diagonal", "vo_map": "diagonal", "up_down": True, "start": "search"}
    if method == "affinequant":
        values |= {"norm_map": "diagonal", "vo_map": "affine", "qk_map": "full", "shift": True}
        values["up_down"] = not scheme.weight_only
    if method == "omniquant":
        values |= {"norm_map": "diagonal", "vo_map": "diagonal", "shift": True, "up_down": True}
        values["qk_map"] = "none" if scheme.weight_only else "scale"
    if method in ("omniquant", "affinequant"):
        values["epochs"] = 40 if scheme.w_bits == 2 else 20
        values["aug_loss"] = scheme.a_bits <= 4 or scheme.w_bits == 2
    return values


def _default_schedule(method: str, scheme: QuantConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Take a cosine for long trainings and the papers' constant rates for short ones.

    Measured over seeds: on 640 steps a block a cosine ends lower at 3 and 4 bits; 40 steps are too few for
    it. LET's scales start at twice the papers' rate, so that the mean is theirs; affine maps do not gain.
    Above 4 bits OmniQuant keeps the papers' rates and order of windows: W6A6 4.829 over seven orders, with a
    cosine and drawn orders 4.838 over seven runs.
    """
    if values["epochs"] < _COSINE_FROM_EPOCHS or values.get("schedule", "cosine") != "cosine":
        return {}
    if method == "omniquant" and scheme.w_bits > 4 and "schedule" not in values:
        return {"shuffle": False}
    return {"schedule": "cosine"} | ({"lr_let": 1e-2} if method == "omniquant" else {})


def _default_stability(scheme: QuantConfig, parametrization: str) -> float:
    """AffineQuant publishes 0.1 (W4A4) and 0.01 (weight-only) for the matrix itself.

    Under D(I + E) with projection the off-diagonals are already relative to their row and cannot leave
    dominance, so the factor only slows them down: 1.
    """
    if parametrization == "relative":
        return 1.0
    return 0.01 if scheme.weight_only else 0.1


def config_hash(scheme: QuantConfig, options: CalibrationOptions) -> str:
    """Return the sha256 of everything a result depends on besides model and data."""
    described = {"scheme": scheme.text, "overrides": [[name, own.text] for name, own in scheme.overrides]}
    text = json.dumps({**described, "options": options.to_dict()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} {value!r} is not a whole number from {low} to {high}")


def _check_real(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and low <= value <= high):  # type: ignore[operator]  # NaN is in no range
        raise ConfigError(f"{name} {value!r} is not a number from {low:g} to {high:g}")
