"""Small random transformer blocks with everything a calibration of one needs, drawn from a seed.

Every tensor holds float32 values, so that the float and the double build start from the same numbers.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from omniquant import _core

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
SITES = ("norm1", "norm2", "vo", "qk", "up_down")
INPUTS = ("norm1", "o", "norm2", "down")
EXPERT_FIELDS = ("num_experts", "experts_per_token", "normalized_experts", "shared_ffn_size")
FACTORS = tuple(f"{name}_{side}" for name in INPUTS for side in ("left", "right"))


def double_core() -> Any:
    """Return the double build of the core; the tests that need it are skipped by name where it is absent."""
    try:
        return importlib.import_module("omniquant._core_double")
    except ImportError:
        pytest.skip("the double build is absent: OMNIQUANT_DOUBLE=1 python setup.py build_ext --inplace")


@dataclass
class Case:
    """One block, its data and options: the arguments of calibrate_block and its relatives."""

    spec: dict[str, Any]
    weights: Arrays
    options: dict[str, Any]
    cos: Array
    sin: Array
    x_fp: Array
    x_q: Array
    targets: Array = field(default_factory=lambda: np.empty(0))
    aug_targets: Array | None = None
    learnables: Arrays = field(default_factory=dict)
    epoch: int = 0
    ahead: dict[str, Any] = field(default_factory=dict)  # goals and followers

    def data(self) -> tuple[Any, ...]:
        """Return the positional arguments from spec to options."""
        streams = self.x_fp, self.x_q, self.targets, self.aug_targets
        return self.spec, self.weights, *streams, self.cos, self.sin, self.options

    def loss(self, core: Any, learnables: Arrays | None = None, threads: int = 1) -> tuple[float, Arrays]:
        """Return block_loss at some learnables, the case's own unless given."""
        theta = self.learnables if learnables is None else learnables
        keywords = {"epoch": self.epoch, "threads": threads, **self.ahead}
        loss, gradients = core.block_loss(*self.data(), theta, **keywords)
        return float(loss), gradients

    def forward(self, core: Any, weights: Arrays, x: Array, **options: Any) -> Array:
        """Return the block's output on x under some weights."""
        return np.asarray(core.block_forward(self.spec, weights, x, self.cos, self.sin, **options))

    def fold(self, core: Any, learnables: Arrays | None = None) -> Arrays:
        """Return fold_block at some learnables."""
        theta = self.learnables if learnables is None else learnables
        return dict(core.fold_block(self.spec, self.weights, self.options, theta))

    def calibrate(self, core: Any = _core, **keywords: Any) -> dict[str, Any]:
        """Return calibrate_block's result."""
        return dict(core.calibrate_block(*self.data(), **self.ahead, **keywords))


def linear_shapes(spec: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return [out, in] of every linear the block has."""
    H, F, d = spec["hidden_size"], spec["ffn_size"], spec["head_dim"]
    q, kv = spec["num_heads"] * d, spec["num_kv_heads"] * d
    shapes = {"q": (q, H), "k": (kv, H), "v": (kv, H), "o": (H, q)}
    E, S = spec.get("num_experts", 0), spec.get("shared_ffn_size", 0)
    stacked = max(1, E)
    shapes |= {"gate": (stacked * F, H), "up": (stacked * F, H), "down": (stacked * H, F)}
    shapes |= {"router": (E, H)} if E else {}
    if S:
        shapes |= {"shared_gate": (S, H), "shared_up": (S, H), "shared_down": (H, S), "shared_router": (1, H)}
    plain = ("gate", "shared_gate") if spec["mlp"] == "plain" else ()
    return {name: shape for name, shape in shapes.items() if name not in plain}


def quantized_shapes(spec: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return [out, in] of every linear but the routers, which stay in float."""
    return {name: shape for name, shape in linear_shapes(spec).items() if "router" not in name}


def norm_widths(spec: dict[str, Any]) -> dict[str, int]:
    """Return the width of every norm the block has."""
    H, d = spec["hidden_size"], spec["head_dim"]
    widths = {"norm1": H} if spec.get("residual") == "shared" else {"norm1": H, "norm2": H}
    widths |= {"post1": H, "post2": H} if spec.get("post_norms") else {}
    return widths | ({"q_norm": d, "k_norm": d} if spec.get("head_norms") else {})


def map_kinds(case: Case) -> dict[str, str]:
    """Return the kind of map at each site."""
    options = case.options
    up_down = "diagonal" if options["up_down"] else "none"
    kinds = options["norm_map"], options["norm_map"], options["vo_map"], options["qk_map"], up_down
    all_kinds = dict(zip(SITES, kinds, strict=True)) | dict.fromkeys(FACTORS, options["input_map"])
    return all_kinds | ({"norm2": "none"} if case.spec.get("residual") == "shared" else {})


def input_factors(spec: dict[str, Any], name: str) -> tuple[int, int]:
    """Return the sizes of the factors of an input's Kronecker map."""
    if name == "o":
        return spec["num_heads"], spec["head_dim"]
    width = spec["ffn_size"] if name == "down" else spec["hidden_size"]
    left = max(a for a in range(1, width + 1) if a * a <= width and width % a == 0)
    return left, width // left


def site_geometry(spec: dict[str, Any], site: str) -> tuple[int, int]:
    """Return (blocks, width) of a site's map."""
    if site in FACTORS:
        name, side = site.split("_")
        return 1, input_factors(spec, name)[side == "right"]
    if site in ("vo", "qk"):
        return spec["num_kv_heads"], spec["head_dim"]
    return 1, spec["ffn_size"] if site == "up_down" else spec["hidden_size"]


def has_shift(case: Case, site: str) -> bool:
    """Return whether a site's shift is learned: producer and consumers carry bias slots."""
    mlp = " up gate router shared_up shared_gate shared_router"
    shared = mlp if case.spec.get("residual") == "shared" else ""
    consumers = {"norm1": "norm1 q k v" + shared, "norm2": "norm2" + mlp, "vo": "v o"}
    if not case.options["shift"] or map_kinds(case)[site] == "none" or site not in consumers:
        return False
    names = [name for name in consumers[site].split() if f"{name}.weight" in case.weights]
    return all(f"{name}.bias" in case.weights for name in names)


def scheme_of(options: dict[str, Any], name: str) -> tuple[int, int]:
    """Return bits and group size of a linear: its own, or those of all."""
    own = options.get("linears", {}).get(name)
    return (own["bits"], own["group_size"]) if own else (options["w_bits"], options["group_size"])


def learnable_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Return the shape of every learnable of the case."""
    shapes: dict[str, tuple[int, ...]] = {}
    schemes = {name: scheme_of(case.options, name) for name in quantized_shapes(case.spec)}
    rounded = {name: (*linear_shapes(case.spec)[name], g) for name, (bits, g) in schemes.items() if bits < 16}
    if case.options["lwc"]:
        for name, (out, width, group_size) in rounded.items():
            groups = -(-width // group_size) if group_size else 1
            shapes[f"{name}.lwc_max"] = shapes[f"{name}.lwc_min"] = (out, groups)
    for site, kind in map_kinds(case).items():
        blocks, n = site_geometry(case.spec, site)
        if kind in ("diagonal", "scale"):
            shapes[f"{site}.map"] = (blocks, n)
        elif kind == "tied":
            shapes[f"{site}.map"] = (blocks, n // 2)
        elif kind == "rotation":
            shapes[f"{site}.map"] = (2, blocks, n // 2)
        elif kind != "none":
            shapes[f"{site}.map"] = (blocks, n, n)
        if has_shift(case, site):
            shapes[f"{site}.shift"] = (blocks, n)
    if case.options["lac"] and case.options["activation"]["bits"] < 16:
        shared = case.spec.get("residual") == "shared"
        shapes |= {f"{name}.lac": (2,) for name in INPUTS if not (shared and name == "norm2")}
    if case.options["rounding"] == "learned":
        shapes |= {f"{name}.offset": shape[:2] for name, shape in rounded.items()}
    return shapes


def rope_tables(tokens: int, rotary_dim: int, base: float = 10000.0) -> tuple[Array, Array]:
    """Return cos and sin [T, d / 2]."""
    angles = np.arange(tokens)[:, None] * base ** (-np.arange(rotary_dim // 2) * 2 / rotary_dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


class Draw:
    """A seeded source of blocks; keywords force single choices of spec and options.

    With quirks the blocks also differ from LLaMA's kind: parallel, with partly rotated heads, more norms, ...
    """

    def __init__(self, seed: int, *, quirks: bool = False, **forced: Any) -> None:
        self.rng = np.random.default_rng(seed)
        self.later = np.random.default_rng((seed, 1))  # of choices added since: the others stay as they were
        self.forced = forced
        self.quirks = np.random.default_rng([seed, 1]) if quirks else None

    def pick(self, name: str, *values: Any) -> Any:
        """Return the forced value of a name, or one of the values."""
        drawn = values[int(self.rng.integers(len(values)))]
        return self.forced.get(name, drawn)

    def normal(self, *shape: int) -> Array:
        """Return standard normal float32 values."""
        return self.rng.standard_normal(shape).astype(np.float32)

    def spec(self) -> dict[str, Any]:
        """Return a block spec: norm kind, rotary or not, head counts, MLP."""
        rope = self.pick("rope", True, False)
        kv_heads = self.pick("num_kv_heads", 1, 2, 3)
        spec = {
            "hidden_size": self.pick("hidden_size", *range(5, 25)),
            "ffn_size": self.pick("ffn_size", *range(5, 33)),
            "num_heads": kv_heads * self.pick("queries_per_kv", 1, 2, 3),
            "num_kv_heads": kv_heads,
            "head_dim": self.pick("head_dim", *((2, 4, 6, 8) if rope else (2, 3, 4, 5, 8))),
            "norm": self.pick("norm", "rms", "layer"),
            "norm_eps": self.pick("norm_eps", 1e-5, 1e-6),
            "rope": rope,
            "mlp": self.pick("mlp", "gated", "plain"),
            "activation": self.pick("activation", "silu", "gelu", "gelu_tanh", "relu"),
            **{
                name: self.forced.get(name, bool(self.later.integers(4) == 0))
                for name in ("rotate_qk", "rotate_heads", "rotate_down")
            },
        }
        return spec | self.extras(spec)

    def extras(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Return fields of other kinds of blocks than LLaMA's, each off half the time."""
        if self.quirks is None:
            return {}
        d = spec["head_dim"]
        kinds: dict[str, tuple[Any, ...]] = {
            "rotary_dim": tuple(range(2, d + 1, 2)) if spec["rope"] else (0,),
            "residual": ("parallel", "shared"),
            "head_norms": (True,),
            "post_norms": (True,),
            "attention_scale": (0.3, 0.7),
            "score_cap": (0.7, 2.0),
            "window": (1, 2, 5),
            "alibi": (True,),
        }
        drawn = {
            name: values[int(self.quirks.integers(len(values)))]
            for name, values in kinds.items()
            if self.quirks.random() < 0.5
        }
        return drawn | {name: self.forced[name] for name in (*kinds, *EXPERT_FIELDS) if name in self.forced}

    def weights(self, spec: dict[str, Any]) -> Arrays:
        """Return weights with a few large channels, and all biases, some or none."""
        biases = self.pick("biases", "all", "some", "none")
        weights: Arrays = {}
        for name, (out, width) in linear_shapes(spec).items():
            weights[f"{name}.weight"] = self.normal(out, width) / np.float32(np.sqrt(width))
            if biases == "all" or (biases == "some" and self.rng.random() < 0.5):
                weights[f"{name}.bias"] = 0.2 * self.normal(out)
        for name, width in norm_widths(spec).items():
            weights[f"{name}.weight"] = np.exp(0.5 * self.normal(width))
            if biases == "all" or (biases == "some" and self.rng.random() < 0.5):
                weights[f"{name}.bias"] = 0.2 * self.normal(width)
        return weights

    def options(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Return options with every choice of quantizer, map and loss."""
        exact = ("tied", "rotation") if spec["head_dim"] % 2 == 0 else ()
        bits = {key: self.pick(key, 2, 3, 4, 6, 8, 16) for key in ("bits", "q_bits", "k_bits", "v_bits")}
        symmetric, full = self.pick("symmetric", True, False), self.pick("full_range", True, False)
        options = {
            "block": 3, "seed": 7,
            "w_bits": self.pick("w_bits", 2, 3, 4, 8, 16),
            "group_size": self.pick("group_size", 0, 3, 4, 7),
            "w_symmetric": self.pick("w_symmetric", True, False),
            "activation": {**bits, "symmetric": symmetric, "full_range": full},
            "lwc": self.pick("lwc", True, True, False),
            "norm_map": self.pick("norm_map", "none", "diagonal", "online"),
            "vo_map": self.pick("vo_map", "none", "diagonal", "affine"),
            "qk_map": self.pick("qk_map", "none", "scale", "full", *exact),
            "up_down": self.pick("up_down", True, False) and spec["mlp"] == "gated",
            "shift": self.pick("shift", True, True, False),
            "parametrization": self.pick("parametrization", "relative", "absolute"),
            "dominance": self.pick("dominance", "project", "reject", "raise", "monitor"),
            "margin": 0.05,
            "stability": self.pick("stability", 0.1, 1.0),
            "alpha": 0.5,
            "epochs": self.pick("epochs", 4),
            "batch_size": self.pick("batch_size", 1),
            "lr_lwc": self.pick("lr_lwc", 1e-2), "lr_let": self.pick("lr_let", 5e-3),
            "schedule": self.pick("schedule", "constant", "cosine"),
            "shuffle": self.pick("shuffle", True, False),
            "loss": self.pick("loss", "mse", "token"),
            "products": self.pick("products", "float32"),
            "best_iterate": self.pick("best_iterate", True, False),
            "start": self.pick("start", "paper"),
            "rounding": self.pick("rounding", "nearest", "learned"),
            "damping": 0.01, "act_order": self.pick("act_order", True, False),
            "true_sequential": self.pick("true_sequential", True, False),
            "lr_rounding": self.pick("lr_rounding", 1.0),
        }  # fmt: skip
        mapped = self.forced.get("input_map", ("none", "none", "kronecker")[int(self.later.integers(3))])
        other = options["norm_map"] == "online" or spec.get("residual") == "shared"
        options["input_map"] = "none" if other else mapped
        if "loss" not in self.forced and self.later.integers(3) == 0:
            options["loss"] = "relative"
        options["lac"] = self.forced.get("lac", bool(self.later.integers(2)))
        if self.forced.get("mixed"):
            options["linears"] = self.schemes()
        return options | ({"qk_map": "none"} if spec.get("head_norms") else {})

    def schemes(self) -> dict[str, dict[str, int | bool]]:
        """Return schemes of their own for about half of the linears."""
        return {
            name: {
                "bits": int(self.later.choice((2, 3, 4, 8, 16))),
                "group_size": int(self.later.choice((0, 3, 4, 7))),
                "symmetric": bool(self.later.integers(2)),
            }
            for name in LINEARS
            if self.later.integers(2)
        }

    def dominant(self, case: Case, blocks: int, n: int) -> Array:
        """Return parameters of a strictly dominant map: off-diagonals sum to at most 0.6."""
        diagonal = self.diagonal(blocks, n)
        share = 0.6 / max(n - 1, 1) / case.options["stability"]
        parameters = self.rng.uniform(-share, share, (blocks, n, n))
        if case.options["parametrization"] == "absolute":
            parameters *= np.abs(diagonal)[..., None]
        parameters[:, np.arange(n), np.arange(n)] = diagonal
        return parameters.astype(np.float32)

    def diagonal(self, *shape: int) -> Array:
        """Return scales around 1, one in ten negative."""
        sign = np.where(self.rng.random(shape) < 0.1, -1, 1)
        return (sign * np.exp(self.rng.uniform(-0.7, 0.7, shape))).astype(np.float32)

    def learnables(self, case: Case) -> Arrays:
        """Return random learnables, away from where they start."""
        kinds, learnables = map_kinds(case), {}
        for name, shape in learnable_shapes(case).items():
            owner, what = name.split(".")
            if what.startswith("lwc") or what == "lac":
                learnables[name] = self.rng.uniform(0.5, 4, shape).astype(np.float32)
            elif what == "offset":
                learnables[name] = self.rng.uniform(-0.5, 0.5, shape).astype(np.float32)
            elif what == "shift":
                learnables[name] = 0.3 * self.normal(*shape)
            elif kinds[owner] == "rotation":
                angle, radius = self.rng.uniform(-1, 1, shape[1:]), self.diagonal(*shape[1:])
                learnables[name] = (radius * np.stack([np.cos(angle), np.sin(angle)])).astype(np.float32)
            elif len(shape) == 3:
                learnables[name] = self.dominant(case, shape[0], shape[1])
            else:
                learnables[name] = self.diagonal(*shape)
        return learnables

    def case(self) -> Case:
        """Return a block with two streams, targets, options and learnables."""
        spec = self.spec()
        samples, tokens = self.pick("samples", 1, 2), self.pick("tokens", *range(1, 10))
        x_fp = self.normal(samples, tokens, spec["hidden_size"])
        x_fp[..., 0] *= 4  # an outlier channel
        x_q = (x_fp + 0.1 * self.normal(*x_fp.shape)).astype(np.float32)
        none = np.empty((0, 0)), np.empty((0, 0))
        rotary = spec.get("rotary_dim") or spec["head_dim"]
        cos, sin = rope_tables(tokens, rotary) if spec["rope"] else none
        case = Case(spec, self.weights(spec), self.options(spec), cos, sin, x_fp, x_q)
        case.targets = case.forward(_core, case.weights, x_fp)
        if self.pick("aug", True, False):
            case.aug_targets = case.forward(_core, case.weights, x_q)
        case.learnables = self.learnables(case)
        case.epoch = self.pick("epoch", 0, 1, 2, 3)
        case.ahead = self.followers(case, self.forced.get("followers", 0))
        return case

    def followers(self, case: Case, count: int) -> dict[str, Any]:
        """Return blocks of other shapes behind the case's, and what they make of its targets."""
        if count == 0:
            return {}
        same = {"hidden_size": case.spec["hidden_size"], "tokens": case.x_fp.shape[1], "samples": 1}
        blocks = [Draw(int(self.later.integers(1 << 30)), quirks=True, **same).case() for _ in range(count)]
        goals = case.targets
        for block in blocks:
            goals = block.forward(_core, block.weights, goals)
        return {"goals": goals, "followers": [(b.spec, b.weights, b.cos, b.sin) for b in blocks]}


def dequantized(core: Any, folded: Arrays, options: dict[str, Any]) -> Arrays:
    """Return folded weights as block_forward takes them."""
    kept = (".weight", ".bias", ".inverse", ".left", ".right", ".clip")
    weights = {key: value for key, value in folded.items() if key.endswith(kept)}
    for key in [key for key in folded if key.endswith(".codes")]:
        name = key.removesuffix(".codes")
        parts = (folded[key], folded[f"{name}.scale"], folded[f"{name}.zero_point"])
        weights[f"{name}.weight"] = core.dequantize(*parts, group_size=scheme_of(options, name)[1])
    return weights


def same_decisions(case: Case, double: Any) -> bool:
    """Return whether every rounding decision of the quantized block agrees in float and double.

    Codes are compared directly; a code of an activation that differs moves the output by far more than float
    rounding does.  So does, under a `down` that counts this much more, a token whose inputs of `down` cancel
    to nothing: what is left is rounding, quantized like anything else.  Folding opens the mask, so the case's
    epoch must be the last.
    """
    outputs = []
    folded = [case.fold(core) for core in (_core, double)]
    codes = [key for key, value in folded[0].items() if value.dtype == np.uint8]
    if any(not np.array_equal(folded[0][key], folded[1][key]) for key in codes):
        return False
    for core, fold in zip((_core, double), folded, strict=True):
        weights = dequantized(core, fold, case.options)
        loud = weights | {"down.weight": 1e12 * weights["down.weight"]}
        runs = (
            case.forward(core, each, case.x_q, activation=case.options["activation"])
            for each in (weights, loud)
        )
        outputs.append(np.stack([*runs]))
    differences, sizes = np.abs(outputs[0] - outputs[1]), np.abs(outputs[1])
    whole = differences[0].max() <= 1e-5 * sizes[0].max()
    return bool(whole and (differences[1].max(axis=-1) <= 1e-3 * sizes[1].max(axis=-1)).all())
