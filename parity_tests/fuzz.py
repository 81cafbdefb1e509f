"""Architectures that nobody wrote down, compared in both halves and with an oracle: ``make fuzz``.

    python -m parity_tests.fuzz architectures --seconds 60 --seed 0 --workers 2
    python -m parity_tests.fuzz files --seconds 60 --seed 0 --workers 2

The architecture of a seed and an index is always the same, whatever the workers; ``--index`` runs one
again. What a difference is measured by is what rounding does: the same model in PyTorch on weights and
inputs moved by a few eps.
"""

import argparse
import copy
import inspect
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jax_flows
import torch_flows
from flow_bridge.architecture import architecture
from flow_bridge.domains import REALS
from flow_bridge.errors import ArchitectureError, ConvergenceError
from flow_bridge.networks import GIVEN
from flow_bridge.weights import jax_to_torch, torch_to_jax
from jax_flows.checkpoint import from_numpy
from parity_tests import conftest, primitives  # noqa: F401, float64, one thread, quick compilation
from parity_tests.catalogue import Case
from torch_flows.checkpoint import to_numpy
from torch_flows.networks.activations import ACTIVATIONS
from twinflows.sides.torch_side import TorchSide

Architecture = dict[str, Any]
Results = dict[str, np.ndarray]

EPS = 2.0**-52
STEP = 8
"""By how many eps weights and inputs are moved to see what rounding does."""
RATIO = 32
"""A difference may be so many times what that does."""
BASE = 64
"""A difference may be so many eps for each layer, in any case."""
SAME = 1e-6
"""How far apart two points of one image may be if they are compared: a plateau of the map, as flat as
rounding, holds many points of many slopes."""
NUM_ROWS = 8
PLAIN_ROWS = 3
"""The first rows are neither far out nor at kinks: gradients and Jacobians are taken there."""
KINKS = (3, 4, 5)
"""Rows at kinks, where what comes back may lie on the other side."""
COMPILED, WITH_GRADIENTS = 1 / 50, 1 / 8
"""Shares of the architectures."""
MAX_CONDITION = 1e9
SATURATED = 30
"""Where a log-det is that large, z may have rounded to the end of the codomain."""
MAX_NEAR_KINKS = 40
MINIMISING = 20.0
"""Seconds that making a failure smaller may take."""


class Difference(AssertionError):
    """What fuzzing looks for."""


EVENTS = [
    *[((dim,), 0) for dim in (1, 2, 3, 4, 5, 6, 2, 3)],
    *[((dim,), 2) for dim in (1, 2, 3, 5)],
    ((1, 4, 2), 0),
    ((2, 2, 2), 0),
    ((4, 2, 2), 0),
    ((2, 2, 4), 2),
]
"""Shapes of events and widths of contexts. Workers whose number divides that of these meet few shapes,
and JAX compiles each operation once for each shape."""

# drawing


@dataclass(frozen=True)
class Draw:
    """What an architecture is drawn for.

    Attributes:
        generator: all choices come from it.
        shape: of the events.
        context_dim: width of the context, 0 for none.
        depth: how deep it is nested.
        owner: the type whose argument is drawn.
        sizes: seed of the sizes of networks and maps, of each type the same; ``None`` draws each anew.
    """

    generator: np.random.Generator
    shape: tuple[int, ...]
    context_dim: int = 0
    depth: int = 0
    owner: str = ""
    sizes: tuple[int, ...] | None = None

    def chance(self, share: float) -> bool:
        return bool(self.generator.random() < share)

    def one_of(self, *values: Any) -> Any:
        return values[int(self.generator.integers(len(values)))]

    def several(self, least: int, most: int, *values: Any) -> list[Any]:
        return [self.one_of(*values) for _ in range(int(self.generator.integers(least, most + 1)))]

    def order(self) -> list[int]:
        return [int(i) for i in self.generator.permutation(self.shape[0])]

    def mask(self) -> str | list[int]:
        drawn = [int(bit) for bit in self.generator.integers(0, 2, self.shape[0])]
        return self.one_of("even", "odd", "first_half", "second_half", drawn)

    def inner(self) -> Architecture:
        shape = self.shape
        if self.owner == "Split":
            shape = (max(1, shape[0] // 2), *shape[1:])
        return draw_bijector(replace(self, shape=shape, depth=self.depth + 1))

    def columns(self) -> list[list[int]]:
        """Of the two blocks of an event, or of one."""
        dims = range(self.shape[0])
        return [list(dims[start::2]) for start in range(min(2, len(dims)))]

    def blocks(self) -> list[Architecture]:
        """A bijector for each of ``columns``."""
        deeper = replace(self, depth=self.depth + 1)
        return [draw_bijector(replace(deeper, shape=(len(own),))) for own in self.columns()]

    def plain(self, kind: type, container: str) -> dict[str, Any]:
        """The types of a kind, but for the one that holds several of them."""
        return {name: cls for name, cls in types_of(kind).items() if name != container}

    def maps(self) -> list[Architecture]:
        """A univariate map for each of ``columns``."""
        return [
            self.part(self.plain(torch_flows.UnivariateMap, "MixedMap")) for _ in self.columns()
        ]

    def distributions(self) -> list[Architecture]:
        """A base for each of ``columns``."""
        kind = torch_flows.Distribution
        chosen = self.plain(kind, "Product")
        return [draw_type(replace(self, shape=(len(own),)), kind, chosen) for own in self.columns()]

    def part(self, types: dict[str, Any]) -> Architecture:
        """A map or a network."""
        return draw_arguments(self, self.one_of(*types.values()))

    def event(self) -> int | list[int]:
        return self.shape[0] if len(self.shape) == 1 else list(self.shape)


TRANSFORMERS = ("Transformer", "ImageTransformer", "TransformerAutoregressive", "TarFlow", "Jet")

ARGUMENTS: dict[str, Callable[[Draw], Any]] = {
    "activation": lambda d: d.one_of(*sorted(ACTIVATIONS), "leaky_relu:0.7"),
    "alpha": lambda d: d.one_of(0.05, 0.3, 1.0, 2.0),
    "autoregressive": lambda d: d.one_of(True, False),
    "base": lambda d: draw_type(d, torch_flows.Distribution),
    "bound": lambda d: d.one_of(1.0, 2.0),
    "NormalMixtureMap.bound": lambda d: d.one_of(None, 2.0),
    "NormalClip.share": lambda d: d.one_of(1e-6, 0.1),
    "boundary": lambda d: d.one_of("identity", "linear", "kinked", "bounded", "circular"),
    "LinearSplineMap.boundary": lambda d: d.one_of("identity", "bounded"),
    "QuadraticSplineMap.boundary": lambda d: d.one_of("identity", "bounded"),
    "CubicSplineMap.boundary": lambda d: d.one_of("identity", "bounded"),
    "LinearRationalSplineMap.boundary": lambda d: d.one_of("identity", "bounded"),
    "bias": lambda d: d.one_of(True, False),
    "bijector": Draw.inner,
    "bijectors": lambda d: draw_chain(d)["bijectors"],
    "concentration": lambda d: d.one_of(0.5, 20.0),
    "conditioner": lambda d: d.part(NETWORKS),
    "context": lambda d: d.one_of("concatenate", "gate", "branch"),
    "MLP.context": lambda d: d.one_of("concatenate", "branch"),
    "MaskedMLP.context": lambda d: d.one_of("concatenate", "branch"),
    "columns": Draw.columns,
    "Blockwise.bijectors": Draw.blocks,
    "channels": lambda d: d.shape[0],
    "context_dim": lambda d: d.context_dim,
    "degree": lambda d: d.one_of(1, 3),
    "degrees": lambda d: d.one_of(None, "cyclic"),
    "df": lambda d: d.one_of(0.5, 1, 2.5, 30.0, 1e6),
    "dim": Draw.event,
    "element_dim": lambda d: d.one_of(1, 2),
    "edge_share": lambda d: d.one_of(0.25, 0.5),
    "eps": lambda d: d.one_of(1e-5, 1e-3, 0.1),
    "edge_slope": lambda d: d.one_of(1.0, 0.5, 3.0),
    "eval_terms": lambda d: None,
    "event_ndim": lambda d: len(d.shape),
    "exact_terms": lambda d: d.one_of(1, 10),
    "factor": lambda d: d.one_of(1, 2, 2, 3),
    "hidden_channels": lambda d: d.one_of(1, 3),
    "hidden_dim": lambda d: d.one_of(1, 4),
    "hidden_dims": lambda d: d.several(0, 2, 4),
    "num_intervals": lambda d: d.one_of(1, 3),
    "DenseSigmoidMap.hidden_dims": lambda d: d.several(1, 2, 1, 3),
    "NAF.dense_dims": lambda d: d.one_of(None, (2, 3)),
    "MonotoneNetworkMap.hidden_dims": lambda d: d.several(1, 2, 2, 3),
    "high": lambda d: d.one_of(1.0, 3.0),
    "jacobian_norm": lambda d: d.one_of(0.0, 0.2),
    "gate": lambda d: d.one_of(True, False),
    "leak": lambda d: d.one_of(0.01, 0.3),
    "BlockAutoregressive.hidden_dims": lambda d: d.several(1, 2, 1, 3),
    "BNAF.hidden_dims": lambda d: d.several(1, 2, 1, 3),
    "kernel_size": lambda d: d.one_of(1, 3),
    "Glow.map": lambda d: d.one_of(None, None),
    "Glow.mask": lambda d: d.one_of("first_half", "checkerboard"),
    "kinetic_energy": lambda d: d.one_of(0.0, 0.3),
    "learned": lambda d: d.one_of(True, False),
    "lipschitz": lambda d: d.one_of(0.5, 0.9, 0.97),
    "loc": lambda d: d.one_of(0.0, 0.5),
    "log_det": lambda d: d.one_of("exact", "series"),
    "low": lambda d: d.one_of(0.0, -3.0),
    "map": lambda d: d.part(types_of(torch_flows.UnivariateMap)),
    "distributions": Draw.distributions,
    "maps": Draw.maps,
    "mask": Draw.mask,
    "min_height": lambda d: d.one_of(0.0, 1e-3, 0.1),
    "min_width": lambda d: d.one_of(0.0, 1e-3, 0.1),
    "minimum": lambda d: d.one_of(0.0, 0.1),
    "momentum": lambda d: d.one_of(0.1, 0.5, 1.0),
    "negative_slope": lambda d: d.one_of(0.01, 0.2, 1.0, 3.0),
    "dropout": lambda d: d.one_of(0.0, 0.0, 0.3),
    **{
        f"{network}.normalization": lambda d: d.one_of(None, "layer_norm", "batch_norm")
        for network in ("MLP", "ResidualMLP", "ConvNet")
    },
    "MaskedMLP.normalization": lambda d: d.one_of(None, "batch_norm"),
    "MaskedResidualMLP.normalization": lambda d: d.one_of(None, "batch_norm"),
    "num_bins": lambda d: d.one_of(1, 2, 4),
    "num_blocks": lambda d: d.one_of(1, 2),
    "num_components": lambda d: d.one_of(1, 2, 3),
    "num_heads": lambda d: d.one_of(1, 2),
    **{f"{owner}.context": lambda d: d.one_of("add", "prefix", "cross") for owner in TRANSFORMERS},
    "context_tokens": lambda d: d.one_of(1, 1, 2),
    "rotary": lambda d: d.one_of(True, False),
    "qk_norm": lambda d: d.one_of(True, False),
    "gated": lambda d: d.one_of(True, False),
    "checkpointing": lambda d: d.one_of(True, False),
    "guidance": lambda d: d.one_of(None, 1.0, [0.0, 2.0]) if d.context_dim else None,
    "Transformer.num_tokens": lambda d: d.one_of(1, 2),
    "ImageTransformer.num_tokens": lambda d: math.prod(d.shape[1:]),
    "max_sweeps": lambda d: d.one_of(None, 16),
    "sweep_size": lambda d: d.one_of(None, None, 2),
    "outside": lambda d: d.one_of("tangent", "polynomial"),
    "patch_size": lambda d: d.one_of(1, 2),
    "token_dim": lambda d: d.one_of(1, 2),
    "num_layers": lambda d: d.one_of(1, 2, 3),
    "num_squares": lambda d: d.one_of(1, 2),
    "num_levels": lambda d: d.one_of(1, 2),
    "num_steps": lambda d: d.one_of(1, 2),
    "AffineMap.clip": lambda d: d.one_of(None, None, 3.0),
    "AffineMap.order": lambda d: d.one_of("scale_shift", "shift_scale", "shift_divide"),
    "order": lambda d: d.one_of(None, "reverse", "random:7", d.order()),
    "permutation": lambda d: d.one_of("reverse", d.order()),
    "Permutation.dim": lambda d: d.shape[0],
    "RandomPermutation.dim": lambda d: d.shape[0],
    "normalization": lambda d: d.one_of(None, "act_norm", "batch_norm"),
    "pre_activation": lambda d: d.one_of(True, False),
    "probe": lambda d: d.one_of("rademacher", "gaussian"),
    "rank": lambda d: int(d.generator.integers(1, d.shape[0] + 1)),
    "scale": lambda d: d.one_of(
        "exp", "tanh", "softclip", "arctan", "clamp", "softplus", "sigmoid"
    ),
    "seed": lambda d: int(d.generator.integers(10)),
    "start": lambda d: d.one_of(0.5, 3.0),
    "separate_networks": lambda d: d.one_of(True, False),
    "set_dim": lambda d: d.one_of(1, 4),
    "shape": lambda d: list(d.shape),
    "signs": lambda d: d.one_of(None, d.several(d.shape[0], d.shape[0], 1, -1)),
    "solver": lambda d: "rk4",
    "squash": lambda d: d.one_of(None, 1e-3, 0.1),
    "tail_bound": lambda d: d.one_of(0.5, 3.0, 5.0, 30.0),
    "width": lambda d: d.one_of(1, 3),
    "time_features": lambda d: d.one_of(0, 2),
    "trace": lambda d: d.one_of("exact", "hutchinson"),
}
"""Legal values by the name of an argument, or of a type and its argument; others keep their default.
Those that are illegal in one type, or beside others, are refused by both halves and drawn again."""

SIZES = ("hidden_channels", "hidden_dim", "hidden_dims", "num_bins", "num_blocks", "num_components")
"""What follows from a stretch of indices, so that its architectures share what JAX compiles for a shape."""
STRETCH, FREE_SIZES = 64 * len(EVENTS), 1 / 16
"""Indices in a stretch, and the share of architectures whose sizes are drawn one by one."""

NUMBERS = ("num_steps", "num_layers", "num_levels", "num_blocks", "num_components")
ALWAYS = ("dim", "event_ndim", "solver", *NUMBERS)


def types_of(*kinds: type) -> dict[str, Any]:
    """The library's own types of some kinds, by name: classes, and functions that make one."""
    found = {}
    for name, cls in sorted(torch_flows.registry.registry.types.items()):
        made = cls if inspect.isclass(cls) else inspect.signature(cls).return_annotation
        own = cls.__module__.startswith("torch_flows.")
        if own and inspect.isclass(made) and issubclass(made, kinds):
            found[name] = cls
    return found


NETWORKS = {
    name: cls
    for name, cls in sorted(torch_flows.registry.registry.types.items())
    if cls.__module__.startswith("torch_flows.networks.")
}


def draw_arguments(draw: Draw, cls: Any) -> Architecture:
    """A type with arguments drawn for it."""
    described: Architecture = {"type": cls.__name__}
    draw = replace(draw, owner=cls.__name__)
    for parameter in inspect.signature(cls).parameters.values():
        name, required = parameter.name, parameter.default is parameter.empty
        values = ARGUMENTS.get(f"{cls.__name__}.{name}", ARGUMENTS.get(name))
        own = draw
        if name in SIZES and draw.sizes is not None:
            own = replace(draw, generator=np.random.default_rng([*draw.sizes, *name.encode()]))
        stated = f"{cls.__name__}.{name}" in ARGUMENTS
        if cls in NETWORKS.values() and (name in GIVEN or (required and not stated)):
            continue
        if values is not None and (required or name in ALWAYS or own.chance(0.7)):
            described[name] = values(own)
    return described


def fits(event_shape: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    same = len(event_shape) == len(shape)
    return same and all(a in (None, b) for a, b in zip(event_shape, shape, strict=True))


def draw_type(draw: Draw, kind: type, chosen: dict[str, Any] | None = None) -> Architecture:
    """An architecture of a kind whose events are of the shape; what is refused is drawn again."""
    types = list((chosen or types_of(kind)).values())
    for _ in range(1000):
        described = draw_arguments(draw, draw.one_of(*types))
        try:
            built = torch_flows.build(described)
            if fits(built.event_shape, draw.shape):
                if hasattr(built, "map_shape"):
                    built.map_shape(draw.shape)
                return described
        except (ArchitectureError, ValueError):
            continue
    raise RuntimeError(f"nothing of kind {kind.__name__} fits events of shape {draw.shape}.")


def draw_bijector(draw: Draw) -> Architecture:
    """A bijector for the shape: a single one, a chain of some, or one turned around."""
    kind = draw.generator.random()
    if draw.depth < 3 and kind < (0.75 if draw.depth == 0 else 0.25):
        return draw_chain(draw)
    if draw.depth < 4 and kind > 0.85:
        for _ in range(20):
            inner = draw_bijector(replace(draw, depth=draw.depth + 1))
            inverted = torch_flows.build({"type": "Invert", "bijector": inner})
            try:
                if fits(inverted.event_shape, draw.shape) and inverted.map_shape(draw.shape):
                    return architecture(inverted)
            except ValueError:
                continue
    structures = ("Chain", "Invert")
    types = types_of(torch_flows.Bijector)
    single = {name: cls for name, cls in types.items() if name not in structures}
    return draw_type(draw, torch_flows.Bijector, single)


def draw_chain(draw: Draw) -> Architecture:
    """Up to four bijectors one after the other, or one or two of one shape several times."""
    members: list[Architecture] = []
    shape, values = draw.shape, REALS
    for _ in range(int(draw.generator.integers(1, 5))):
        for _ in range(20):
            member = draw_bijector(replace(draw, shape=shape, depth=draw.depth + 1))
            built = torch_flows.build(member)
            inside = built.domain.low <= values.low and values.high <= built.domain.high
            if inside or draw.chance(0.1):
                break
        members.append(member)
        shape, values = tuple(built.map_shape(shape)), built.codomain
    if draw.chance(0.3):
        repeated = members[:2] * draw.one_of(2, 3)
        try:
            built = torch_flows.build({"type": "Chain", "bijectors": repeated})
            if built.map_shape(draw.shape) == draw.shape:
                members = repeated
        except (ArchitectureError, ValueError):
            pass
    return {"type": "Chain", "bijectors": members}


def draw_architecture(
    generator: np.random.Generator, seed: int, index: int
) -> tuple[Architecture, tuple[int, ...]]:
    """An architecture, and the shape of its events, which follows from the index."""
    shape, context_dim = EVENTS[index % len(EVENTS)]
    sizes = None if generator.random() < FREE_SIZES else (seed, index // STRETCH)
    draw = Draw(generator, shape, context_dim, sizes=sizes)
    if draw.chance(0.2):
        models = types_of(torch_flows.Flow)
        wanted = "dim" if len(shape) == 1 else "shape"
        chosen = {
            name: cls for name, cls in models.items() if wanted in inspect.signature(cls).parameters
        }
        if len(shape) == 1 or not any(size % 2 for size in shape[1:]):
            return draw_type(draw, torch_flows.Flow, chosen), shape
    bijector = draw_bijector(draw)
    if draw.chance(0.3):
        latent = tuple(torch_flows.build(bijector).map_shape(shape))
        base = draw_type(replace(draw, shape=latent), torch_flows.Distribution)
        flow = {"type": "Flow", "bijector": bijector, "base": base}
        try:
            torch_flows.build(flow)
            return flow, shape
        except ArchitectureError as error:
            if "integrate to 1" not in str(error):
                raise
    return bijector, shape


def draw_rows(generator: np.random.Generator, shape: tuple[int, ...], domain: Any) -> np.ndarray:
    """Plain rows, one of zeros, one of kinks, one of both, and two far out; all in the domain."""
    rows = generator.standard_normal((NUM_ROWS, *shape))
    kinks = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 3.0, -3.0, 5.0, -5.0, 30.0, 1e-8, -1e-300])
    drawn = generator.choice(kinks, rows.shape)
    rows[3] = 0
    rows[4] = drawn[4]
    rows[5] = np.where(generator.random(shape) < 0.5, drawn[5], rows[5])
    rows[6] *= 1e2
    rows[7] *= 10 ** generator.uniform(3, 6)
    if math.isfinite(domain.low) and math.isfinite(domain.high):
        unit = np.where(np.abs(rows) > 30, np.sign(rows), rows)
        rows = domain.low + (domain.high - domain.low) / (1 + np.exp(-unit))
    elif math.isfinite(domain.low):
        rows = domain.low + np.exp(np.clip(rows, -50, 50))
    return rows


# running and judging


class Halves:
    """One model in both halves, on the same weights, from numpy to numpy."""

    def __init__(self, description: Architecture, weights: Results) -> None:
        self.torch = Case("drawn", description).torch_model()
        self.torch.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()})
        self.noisy = _noisy(self.torch)
        self.weights = weights
        self.jax = jax_flows.build(description)
        self.variables = from_numpy(torch_to_jax(weights, self.jax.shapes()))
        self.num_layers = 1 + sum(1 for _ in self.torch.modules()) // 2
        self.trainable = {name for name, _ in self.torch.named_parameters()}

    def run_torch(
        self,
        quantity: str,
        rows: np.ndarray,
        context: np.ndarray | None,
        weights: Results,
        noisy: bool = False,
    ) -> tuple[np.ndarray, ...]:
        model = self.noisy if noisy else self.torch
        given = [torch.from_numpy(a) for a in (rows, context) if a is not None]
        state = {f"model.{name}": torch.from_numpy(a) for name, a in weights.items()}
        with torch.no_grad():
            outputs = torch.func.functional_call(_Method(model, quantity), state, tuple(given))
        return tuple(o.numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,)))

    def run_jax(
        self, quantity: str, rows: np.ndarray, context: np.ndarray | None, compiled: bool
    ) -> tuple[np.ndarray, ...]:
        method = getattr(self.jax, quantity)
        given = None if context is None else jnp.asarray(context)
        arguments = self.variables, jnp.asarray(rows), given
        outputs = jax.jit(method)(*arguments) if compiled else primitives.run(method, *arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(np.asarray(o) for o in outputs)

    def gradients_torch(
        self,
        quantity: str,
        rows: np.ndarray,
        context: np.ndarray | None,
        weights: Results,
        noisy: bool = False,
    ) -> Results:
        state = {f"model.{name}": torch.from_numpy(a) for name, a in weights.items()}
        wrt = {n: state[f"model.{n}"].clone().requires_grad_() for n in sorted(self.trainable)}
        point = torch.from_numpy(rows.copy()).requires_grad_()
        given = (point, *([] if context is None else [torch.from_numpy(context)]))
        state |= {f"model.{name}": tensor for name, tensor in wrt.items()}
        method = _Method(self.noisy if noisy else self.torch, quantity)
        z, log_det = torch.func.functional_call(method, state, given)
        total = (z * torch.from_numpy(_cotangent(z.shape))).sum() + log_det.sum()
        found = torch.autograd.grad(total, [point, *wrt.values()], allow_unused=True)
        return {
            name: np.zeros(tensor.shape) if gradient is None else gradient.numpy()
            for (name, tensor), gradient in zip({"input": point, **wrt}.items(), found, strict=True)
        }

    def gradients_jax(
        self, quantity: str, rows: np.ndarray, context: np.ndarray | None, compiled: bool
    ) -> Results:
        def total(params: Any, x: Any) -> Any:
            variables = self.variables | {"params": params}
            z, log_det = getattr(self.jax, quantity)(variables, x, context)
            return (z * _cotangent(z.shape)).sum() + log_det.sum()

        function = jax.grad(total, argnums=(0, 1))
        arguments = self.variables.get("params", {}), jnp.asarray(rows)
        run = jax.jit(function) if compiled else partial(primitives.run, function)
        weights, point = run(*arguments)
        arrays = jax_to_torch({"params": weights})
        return {"input": np.asarray(point)} | {n: arrays[n] for n in sorted(self.trainable)}

    def jacobian(self, rows: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """Of forward, of every row."""
        return TorchSide(self.torch).jacobian(rows, context)


def _noisy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in which every bijector's results are off by a few eps, as rounding may make them."""
    model = copy.deepcopy(model)
    model.log_dets = []
    for module in model.modules():
        if isinstance(module, torch_flows.Bijector):
            for name in ("map_forward", "map_inverse"):
                noisy = partial(_noisy_outputs, model, getattr(module, name))
                setattr(module, name, noisy)
    return model


def _noisy_outputs(
    model: Any, method: Callable[..., Any], *inputs: Any
) -> tuple[torch.Tensor, ...]:
    outputs = method(*inputs)
    model.log_dets.append(outputs[1].detach().abs())
    return tuple(o * (1 + STEP * EPS * torch.randn_like(o)) for o in outputs)


class _Method(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *inputs: Any) -> Any:
        return getattr(self.model, self.name)(*inputs)


def _cotangent(shape: Any) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(tuple(shape))


def _moved(
    generator: np.random.Generator, array: np.ndarray, size: float, rowwise: bool
) -> np.ndarray:
    """The array moved by so many eps of its entries, or of the largest of its row or 1, as values round."""
    scale = np.where(np.isfinite(array), np.abs(array), 0)
    if rowwise and array.ndim:
        scale = np.maximum(1, scale.max(tuple(range(1, array.ndim)), keepdims=True))
    return np.asarray(array + size * EPS * scale * generator.standard_normal(array.shape))


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By row, the largest difference; infinite where one is finite and the other is not."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0, np.abs(a - b))
    return np.where(np.isnan(difference), np.inf, difference).max(1, initial=0)


def _size(a: np.ndarray) -> np.ndarray:
    magnitude = np.abs(a.reshape(len(a), -1))
    return np.maximum(1, np.where(np.isfinite(magnitude), magnitude, 0).max(1, initial=0))


class Judge:
    """Differences of one quantity of the rows against what moving weights and inputs does.

    Args:
        run: the quantity in PyTorch, from rows, context and weights.
        rows, context, weights: what it is run on.
        seed: of the moves.
    """

    def __init__(
        self,
        halves: Halves,
        quantity: str,
        rows: np.ndarray,
        context: np.ndarray | None,
        seed: int,
    ) -> None:
        self.halves, self.quantity = halves, quantity
        self.rows, self.context = rows, context
        self.generator = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.values = halves.run_torch(quantity, rows, context, halves.weights)
        halves.noisy.log_dets.clear()
        runs = [self._moved(STEP, k % 2 == 1) for k in range(3)]
        self.wobble = [
            np.max([_apart(run[i], value) for run in runs], 0)
            for i, value in enumerate(self.values)
        ]
        self.steepness = np.fmax.reduce([a.numpy() for a in halves.noisy.log_dets])

    def _moved(self, size: float, rowwise: bool) -> tuple[np.ndarray, ...]:
        moved = {n: _moved(self.generator, a, size, False) for n, a in self.halves.weights.items()}
        rows = _moved(self.generator, self.rows, size, rowwise)
        context = self.context
        if context is not None:
            context = _moved(self.generator, context, size, False)
        return self.halves.run_torch(self.quantity, rows, context, moved, noisy=True)

    def limit(self, index: int) -> np.ndarray:
        """How far apart two values of a row may be."""
        size = _size(self.values[index])
        return BASE * EPS * self.halves.num_layers * size + RATIO * self.wobble[index]

    def judge(self, what: str, index: int, found: np.ndarray, *, allowed: Any = 0.0) -> None:
        """Raise ``Difference`` unless what was found is the value, up to what rounding does."""
        value, limit = self.values[index], self.limit(index)
        if found.shape != value.shape:
            raise Difference(f"{what}: shapes {value.shape} and {found.shape}")
        if found.dtype != value.dtype:
            raise Difference(f"{what}: types {value.dtype} and {found.dtype}")
        bad = ~(_apart(found, value) <= limit + allowed)
        if bad.any():
            lost = ~np.isfinite(found + value).reshape(len(value), -1).all(1)
            bad &= ~(lost & (self.steepness > SATURATED))
            bad &= ~self._near_a_kink(index, found, limit + allowed)
        if bad.any():
            row = int(np.argmax(bad))
            raise Difference(
                f"{what}, row {row} of {self.rows[row].tolist()}:\n"
                f"  {value[row].tolist()} in PyTorch, with the same weights and inputs moved a "
                f"little +- {self.wobble[index][row]:.2g}\n  {found[row].tolist()} found"
            )

    def _near_a_kink(self, index: int, found: np.ndarray, limit: np.ndarray) -> np.ndarray:
        """Rows that small moves carry as far, to another piece or to where nothing is finite."""
        value = self.values[index].reshape(len(found), -1)
        low, high = value.copy(), value.copy()
        lost = ~np.isfinite(value).all(1)
        stays_lost = lost.copy()
        for k in range(MAX_NEAR_KINKS):
            run = self._moved(STEP * 4.0 ** (k % 6), k % 2 == 1)[index].reshape(value.shape)
            finite = np.isfinite(run).all(1)
            lost |= ~finite
            stays_lost &= ~finite
            low, high = np.fmin(low, run), np.fmax(high, run)
        flat = found.reshape(value.shape)
        gone = ~np.isfinite(flat).all(1)
        with np.errstate(invalid="ignore"):
            room = 2 * (high - low) + limit[:, None]
            within = ((flat >= low - room) & (flat <= high + room)).all(1)
        return np.where(gone, lost, within | (lost & ~stays_lost))


def check(
    description: Architecture,
    shape: tuple[int, ...],
    seed: int,
    compiled: bool = False,
    gradients: bool | None = None,
    scale: float | None = None,
) -> Counter:
    """Compare an architecture in both halves and with its Jacobian; save it, and load it in the other.

    Args:
        description: the architecture.
        shape: of its events.
        seed: of weights and inputs.
        compiled: whether JAX compiles the whole, or each operation (``primitives``).
        gradients: whether they are compared; for a share of the seeds by default.
        scale: of the weights, drawn by default.

    Returns:
        How many rows were compared, and how many figures of which kind.

    Raises:
        Difference: with what differs.
    """
    generator = np.random.default_rng(seed)
    drawn = float(10 ** generator.uniform(-1, 0.5))
    scale = drawn if scale is None else scale
    weights = Case("drawn", description, scale=scale).weights(seed)
    halves = Halves(description, weights)
    if architecture(halves.torch) != architecture(halves.jax):
        raise Difference("the architectures differ")
    bijector = getattr(halves.torch, "bijector", halves.torch)
    bijector = halves.torch if isinstance(halves.torch, torch_flows.Bijector) else bijector
    rows = draw_rows(generator, shape, bijector.domain)
    context_dim = halves.torch.context_dim
    context = generator.standard_normal((NUM_ROWS, context_dim)) if context_dim else None
    done = Counter()

    forward = Judge(halves, "forward", rows, context, seed)
    z, log_det = forward.values
    in_jax = halves.run_jax("forward", rows, context, compiled)
    forward.judge("z", 0, in_jax[0])
    forward.judge("log_det", 1, in_jax[1])
    backward = Judge(halves, "inverse", z, context, seed)
    backward.steepness = np.fmax(backward.steepness, forward.steepness)
    in_jax = halves.run_jax("inverse", z, context, compiled)
    backward.judge("x", 0, in_jax[0])
    back, back_log_det = backward.values
    same = _same(in_jax[0], back)
    backward.judge("inverse log_det", 1, np.where(same, in_jax[1], back_log_det))
    done["rows"] += NUM_ROWS
    done["rows judged"] += int(np.isfinite(forward.wobble[0] + forward.wobble[1]).sum())
    if hasattr(halves.torch, "base"):
        density = Judge(halves, "log_prob", rows, context, seed)
        density.judge("log_prob", 0, halves.run_jax("log_prob", rows, context, compiled)[0])
        done["densities"] += 1
    if not _estimates(halves.torch):
        finite = np.isfinite(z.reshape(NUM_ROWS, -1)).all(1) & np.isfinite(log_det)
        returned = np.isfinite(back.reshape(NUM_ROWS, -1)).all(1) & np.isfinite(back_log_det)
        finite &= (np.abs(log_det) < SATURATED) | returned
        at_kinks = np.isin(np.arange(NUM_ROWS), KINKS)
        same = _same(back, rows)
        away = _apart(rows, back) > backward.limit(0)
        if (away | ~same).any():  # a row is back that has its image, however flat the map is there
            image = Judge(halves, "forward", back, context, seed)
            away = ~(_apart(image.values[0], z) <= forward.limit(0) + image.limit(0))
        backward.judge("round trip", 0, np.where(_like(finite & away, rows), rows, back))
        # on a plateau a token comes back as another of its image, and those after it may have none
        came_back = np.isfinite(back.reshape(NUM_ROWS, -1)).all(1)
        finite &= same | (away & came_back)
        backward.judge(
            "log-dets of the two directions",
            1,
            np.where(finite & ~at_kinks, -log_det, back_log_det),
            allowed=RATIO * forward.wobble[1],
        )
        done["Jacobians"] += _check_jacobian(halves, forward, rows, context)
    chosen = generator.random() < WITH_GRADIENTS
    if chosen if gradients is None else gradients:
        for method, points in (("forward", rows), ("inverse", z)):
            done["gradients"] += _check_gradients(halves, method, points, context, seed, compiled)
    _check_files(halves)
    return done


def _same(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    close = np.isclose(points, others, rtol=SAME, atol=SAME, equal_nan=True)
    return close.reshape(NUM_ROWS, -1).all(1)


def _like(mask: np.ndarray, array: np.ndarray) -> np.ndarray:
    return mask.reshape(-1, *[1] * (array.ndim - 1))


def _estimates(model: torch.nn.Module) -> bool:
    """Whether a part solves in steps or cuts a series: its log-det is then not that of its map."""
    return any(
        hasattr(module, "num_steps") or getattr(module, "eval_terms", None) is not None
        for module in model.modules()
        if type(module).__name__ != "Glow"
    )


def _check_jacobian(
    halves: Halves, forward: Judge, rows: np.ndarray, context: np.ndarray | None
) -> int:
    """The log-dets against the determinants of the autodiff Jacobians; how many could be judged."""
    part = None if context is None else context[:PLAIN_ROWS]
    jacobian = halves.jacobian(rows[:PLAIN_ROWS], part)
    found, allowed = forward.values[1].copy(), np.zeros(len(rows))
    judged = 0
    for i, matrix in enumerate(jacobian):
        if not np.isfinite(matrix).all() or not np.isfinite(found[i]):
            continue
        condition = np.linalg.cond(matrix) + math.exp(min(forward.steepness[i], 700))
        if condition < MAX_CONDITION:
            found[i], allowed[i] = np.linalg.slogdet(matrix)[1], BASE * EPS * condition
            judged += 1
    forward.judge("log_det and the autodiff Jacobian", 1, found, allowed=allowed)
    return judged


def _check_gradients(
    halves: Halves,
    method: str,
    rows: np.ndarray,
    context: np.ndarray | None,
    seed: int,
    compiled: bool,
) -> int:
    rows, context = rows[:PLAIN_ROWS], None if context is None else context[:PLAIN_ROWS]
    expected = halves.gradients_torch(method, rows, context, halves.weights)
    found = halves.gradients_jax(method, rows, context, compiled)
    finite = [_finite(gradients.values()) for gradients in (expected, found)]
    if not all(finite):
        values = (
            halves.run_torch(method, rows, context, halves.weights),
            halves.run_jax(method, rows, context, compiled),
        )
        # at the end of a codomain one half may find an infinity, which has no gradient
        if finite[0] != finite[1] and _finite(values[0]) and _finite(values[1]):
            raise Difference(f"gradients of {method}: not finite in one half")
        return 0
    generator = np.random.default_rng(seed)
    total = math.sqrt(sum(float(np.square(array).sum()) for array in expected.values()))

    def moved(size: float) -> Results:
        weights = {n: _moved(generator, a, size, False) for n, a in halves.weights.items()}
        moved = _moved(generator, rows, size, True)
        return halves.gradients_torch(method, moved, context, weights, noisy=True)

    def wobble(runs: list[Results], name: str) -> float:
        moves = [float(np.linalg.norm(run[name] - expected[name])) for run in runs]
        return math.inf if any(math.isnan(move) for move in moves) else max(moves)

    runs = [moved(STEP) for _ in range(2)]
    for name, array in expected.items():
        error = float(np.linalg.norm(found[name] - array))
        limit = BASE * EPS * halves.num_layers * max(total, 1)
        if error <= limit + RATIO * wobble(runs, name):
            continue
        runs += [moved(STEP * 4.0 ** (k % 6)) for k in range(18)]
        if not error <= limit + 4 * wobble(runs, name):
            raise Difference(
                f"gradient of {method} in {name}: {error:.3g} apart in norm, moves {wobble(runs, name):.3g}\n"
                f"  {array.tolist()} in PyTorch\n  {found[name].tolist()} in JAX"
            )
    return 1


def _finite(arrays: Iterable[np.ndarray]) -> bool:
    return all(np.isfinite(array).all() for array in arrays)


def _check_files(halves: Halves) -> None:
    """Each half loads what the other saved: the same architecture, the same bits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        torch_flows.save(halves.torch, path)
        model, variables = jax_flows.load(path)
        jax_flows.save(model, variables, path)
        again = torch_flows.load(path)
    if not architecture(halves.torch) == architecture(model) == architecture(again):
        raise Difference("the architecture changed in a file")
    state = again.state_dict()
    for name, array in halves.weights.items():
        if to_numpy(state[name]).tobytes() != array.tobytes():
            raise Difference(f"array {name} changed in a file")


# one architecture, many architectures


def run_index(seed: int, index: int) -> Counter:
    """Draw and check the architecture of a seed and an index.

    Raises:
        Difference: with the architecture, what differs, and how to run it again.
    """
    generator = np.random.default_rng([seed, index])
    description, shape = draw_architecture(generator, seed, index)
    weights_seed = int(generator.integers(2**31))
    compiled = generator.random() < COMPILED
    try:
        done = check(description, shape, weights_seed, compiled)
    except (Exception, ConvergenceError) as error:
        smaller, message = minimise(description, shape, weights_seed, compiled, error)
        raise Difference(
            f"{message}\n{json.dumps(smaller)}\nevents {shape}, weights of seed {weights_seed}"
            f"{', compiled' if compiled else ''}; drawn as\n{json.dumps(description)}\n"
            f"again: python -m parity_tests.fuzz architectures --seed {seed} --index {index}"
        ) from error
    for name in types_in(description):
        done[f"type {name}"] += 1
    return done


def minimise(
    description: Architecture,
    shape: tuple[int, ...],
    seed: int,
    compiled: bool,
    error: BaseException,
) -> tuple[Architecture, str]:
    """A smaller architecture that fails too, and what it says."""
    smallest, message = description, _message(error)
    end = time.monotonic() + MINIMISING
    while time.monotonic() < end:
        for candidate in _smaller(smallest):
            if time.monotonic() > end:
                break
            try:
                for attempt in range(3):
                    check(candidate, shape, seed + attempt, compiled)
            except Difference as difference:
                smallest, message = candidate, _message(difference)
                break
            except Exception as another:
                if type(another) is type(error):
                    smallest, message = candidate, _message(another)
                    break
        else:
            break
    return smallest, message


def _message(error: BaseException) -> str:
    if isinstance(error, Difference):
        return str(error)
    return "".join(traceback.format_exception(error, limit=-3))


def _smaller(description: Architecture) -> Iterator[Architecture]:
    """A part in place of the whole, or one member fewer."""
    if "bijector" in description:
        yield description["bijector"]
        for smaller in _smaller(description["bijector"]):
            yield description | {"bijector": smaller}
    members = description.get("bijectors", [])
    for i, member in enumerate(members):
        yield member
        if len(members) > 1:
            yield description | {"bijectors": members[:i] + members[i + 1 :]}
        for smaller in _smaller(member):
            yield description | {"bijectors": [*members[:i], smaller, *members[i + 1 :]]}


def types_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["type"]} if "type" in value else set()
        return own.union(*(types_in(item) for item in value.values()))
    return set().union(*(types_in(item) for item in value)) if isinstance(value, list) else set()


def run_many(
    seed: int, first: int, step: int, count: int, seconds: float = math.inf
) -> tuple[Counter, list[str]]:
    """Check the indices first, first + step, ... below ``count`` until the time is over."""
    start, done, failures = time.monotonic(), Counter(), []
    for index in range(first, count, step):
        if time.monotonic() - start > seconds:
            break
        try:
            done += run_index(seed, index)
        except Difference as difference:
            failures.append(str(difference))
            print(f"\n{difference}", flush=True)
        done["architectures"] += 1
        if done["architectures"] % 200 == 0:
            print(f"{done['architectures']} in {time.monotonic() - start:.0f} s", flush=True)
    return done, failures


def _work(arguments: tuple[int, int, int, int, float]) -> tuple[Counter, list[str]]:
    return run_many(*arguments)


def architectures(
    seconds: float, seed: int, count: int | None, workers: int, first: int = 0
) -> int:
    """Check drawn architectures in several processes; how many failed."""
    start, most = time.monotonic(), sys.maxsize if count is None else count
    tasks = [(seed, first + worker, workers, most, seconds) for worker in range(workers)]
    if workers == 1:
        results = [_work(tasks[0])]
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            results = pool.map(_work, tasks, chunksize=1)
    done = sum((result[0] for result in results), Counter())
    failures = [failure for result in results for failure in result[1]]
    took = time.monotonic() - start
    number = done["architectures"]
    types = {k.removeprefix("type "): n for k, n in sorted(done.items()) if k.startswith("type ")}
    print(", ".join(f"{name} {n}" for name, n in types.items()))
    print(
        f"{number} architectures in {took:.0f} s ({took * workers / max(number, 1):.2f} s of one "
        f"process each), {done['rows']} rows ({done['rows judged']} stable), "
        f"{done['Jacobians']} log-dets against Jacobians, "
        f"{done['gradients']} gradients; {len(failures)} failed (seed {seed})."
    )
    return len(failures)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["architectures", "files"])
    parser.add_argument("--seconds", type=float, default=60.0, help="when to stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--count", type=int, default=None, help="architectures below this number, or so many files"
    )
    parser.add_argument("--first", type=int, default=0, help="go on from this architecture")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--index", type=int, default=None, help="one architecture of the seed again"
    )
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if given.what == "files":
        from parity_tests import fuzz_files

        return min(1, fuzz_files.main(given.seconds, given.seed, given.count, given.workers))
    if given.index is not None:
        print(dict(run_index(given.seed, given.index)))
        return 0
    return min(1, architectures(given.seconds, given.seed, given.count, given.workers, given.first))


if __name__ == "__main__":
    sys.exit(main())
