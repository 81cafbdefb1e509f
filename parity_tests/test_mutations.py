"""The tests can fail: each of these defects, put into one half or both on purpose, is caught.

A defect in one half is a difference between the halves. One in both is caught by what is known from
outside: autodiff Jacobians, round trips, closed forms, figures of other libraries.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.autograd.gradcheck import GradcheckError

import jax_flows
import jax_flows.variables
import torch_flows
from flow_bridge.errors import ConvergenceError
from parity_tests import (
    fuzz,
    test_autoregressive,
    test_bases,
    test_continuous,
    test_dense,
    test_families,
    test_grid,
    test_images,
    test_monotone,
    test_oracles,
    test_parity,
    test_residual,
    test_transformer,
)
from parity_tests.catalogue import (
    CASES,
    Case,
    arch,
    continuous,
    conv_coupling,
    flow,
    masked,
    residual,
)
from parity_tests.catalogue import coupling as affine
from parity_tests.catalogue import spline as spline_coupling
from twinflows.parity.compare import compare
from twinflows.parity.report import ParityReport

HALVES = {"torch": torch_flows, "jax": jax_flows}
Change = Callable[[Any, str], Any]
Judge = Callable[[], Any]

# what notices


def consistent(description: Any, *shape: int, scale: float = 0.7, gradients: bool = False) -> Judge:
    """Both halves against each other, round trips, and the autodiff Jacobian, on tiny flows."""
    return lambda: fuzz.check(description, shape, 0, gradients=gradients, scale=scale)


def one_model(description: Any) -> Judge:
    """The parity check that users run."""

    def judge() -> None:
        case = Case("mutant", description)
        models = torch_flows.build(description), jax_flows.build(description)
        report = compare(*models, case.weights(), case.inputs(6), case.context(6))
        assert report.passed, str(report)

    return judge


def in_both(test: Callable[..., Any], *arguments: Any) -> Judge:
    """A test of each half against a figure from outside."""

    def judge() -> None:
        for half in HALVES:
            test(half, *arguments)

    return judge


def row(test: Callable[[Case], Any], name: str) -> Judge:
    """A test of a row of the catalogue."""
    case = next(case for case in CASES if case.name == name)
    return lambda: test(case)


# what is changed


def outputs(change: Callable[..., Any]) -> Change:
    """The two results of a function, changed."""
    return lambda original, half: lambda *a, **k: change(*original(*a, **k))


def result(change: Callable[..., Any]) -> Change:
    """The result of a function, changed."""
    return lambda original, half: lambda *a, **k: change(original(*a, **k))


def value(new: Any) -> Change:
    return lambda original, half: new


def detached(array: Any) -> Any:
    return array.detach() if isinstance(array, torch.Tensor) else jax.lax.stop_gradient(array)


def other_direction(name: str) -> Change:
    """The method that goes the other way, in its place."""
    return lambda original, half: lambda self, *a: getattr(type(self), name)(self, *a)


def without_context(original: Any, half: str) -> Any:
    def parameters_of(self: Any, *inputs: Any) -> Any:
        *others, context = inputs
        return original(self, *others, None if context is None else 0 * context)

    return parameters_of


def half_an_interval(original: Any, half: str) -> Any:
    return lambda self, *a: original(
        self, *((1.0, 0.5) if isinstance(x, tuple) and x == (1.0, 0.0) else x for x in a)
    )


def other_eps(original: Any, half: str) -> Any:
    return lambda self, *a: original(self, *a[:-1], a[-1] + 1e-6)


def other_momentum(original: Any, half: str) -> Any:
    def store(running: Any, new: Any) -> Any:
        moved = zip(running, new, strict=True)
        return original(running, [old + 1.1 * (value - old) for old, value in moved])

    return store


def wrong_above_8(original: Any, half: str) -> Any:
    """The fixed arrays, with another random permutation above dim 8."""

    def random_permutation(dim: int, seed: int) -> np.ndarray:
        drawn = original.random_permutation(dim, seed)
        return drawn if dim <= 8 else np.roll(drawn, 1)

    return SimpleNamespace(**{**vars(original), "random_permutation": random_permutation})


def wrong_merge_above_8(original: Any, half: str) -> Any:
    def merge(self: Any, *args: Any, **options: Any) -> Any:
        merged = original(self, *args, **options)
        order = [1, 0, *range(2, merged.shape[-1])]
        return merged[..., order] if self.layout == "mixed" and merged.shape[-1] > 8 else merged

    return merge


def own_input(original: Any, half: str) -> Any:
    """Degrees off by one: an output sees its own dimension."""

    def degrees(plan: Any) -> list[np.ndarray]:
        *others, last = original.fget(plan)
        return [*others, last + 1]

    return property(degrees)


def no_transpose(original: Any, half: str) -> Any:
    def find_layout(collection: str, name: str, ndim: int) -> Any:
        layout = original(collection, name, ndim)
        return layout._replace(axes=tuple(range(ndim))) if ndim == 2 else layout

    return find_layout


def swapped_pixels(original: Any, half: str) -> Any:
    def find_layout(collection: str, name: str, ndim: int) -> Any:
        layout = original(collection, name, ndim)
        return layout._replace(axes=(3, 2, 1, 0)) if ndim == 4 else layout

    return find_layout


def through_float32(original: Any, half: str) -> Any:
    if half == "torch":
        return lambda x: original(x.clone()).float().to(x.dtype)
    return lambda x: original(x).astype(jnp.float32).astype(x.dtype)


def threshold(original: Any, half: str) -> Any:
    where = torch.where if half == "torch" else jnp.where
    return lambda x: where(x > 2, x, original(x))


def gelu_by_tanh(original: Any, half: str) -> Any:
    if half == "torch":
        return lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    return jax.nn.gelu


def other_blocks(**changes: Callable[..., Any]) -> Change:
    """The blocks of a residual network, with other arguments of these names."""

    def change(original: Any, half: str) -> Any:
        def apply_blocks(
            activation: str, pre_activation: bool, x: Any, weights: Any, *rest: Any
        ) -> Any:
            gates, terms, *norms = rest
            given = {"pre_activation": pre_activation, "gates": gates, "terms": terms}
            given |= {name: new(given[name]) for name, new in changes.items()}
            return original(
                activation,
                given["pre_activation"],
                x,
                weights,
                given["gates"],
                given["terms"],
                *norms,
            )

        return apply_blocks

    return change


def plain_branch(original: Any, half: str) -> Any:
    """Without the activation behind the first branch."""

    def branch_terms(activation: str, branches: Any, context: Any) -> list[Any]:
        terms = original(activation, branches, context)
        plain = branches if half == "torch" else [lambda c, b=b: c @ b[0] + b[1] for b in branches]
        return [branch(context) for branch in plain[:1]] + terms[1:] if terms else []

    return branch_terms


def other_scale(original: Any, half: str) -> Any:
    return lambda x, *norm: original(x * (1 - 1e-4), *norm)


def other_gates(original: Any, half: str) -> Any:
    def unrolled(self: Any, *inputs: Any) -> Any:
        found = original(self, *inputs)
        return found._replace(gates=[*found.gates[:2], *found.gates[4:1:-1], *found.gates[5:]])

    return unrolled


def own_token(original: Any, half: str) -> Any:
    """Parameters read out at the place of their own token."""

    def run(self: Any, *inputs: Any) -> Any:
        *params, h, context, causal = inputs
        h = torch.roll(h, -1, -2) if half == "torch" else jnp.roll(h, -1, -2)
        return original(self, *params, h, context, causal)

    return run


def other_temperature(original: Any, half: str) -> Any:
    return lambda q, *others: original(q * (1 - 1e-6), *others)


@dataclass(frozen=True)
class Mutant:
    """A defect: what is changed, and which test notices.

    Attributes:
        family: of the formula.
        what: is wrong.
        target: ``"module:name.name"`` below each half, or of ``flow_bridge`` for both at once.
        change: makes the defect of the original, given the half.
        judge: passes on what is right, fails on the defect.
        where: ``"torch"``, ``"jax"`` or ``"both"``.
    """

    family: str
    what: str
    target: str
    change: Change
    judge: Judge
    where: tuple[str, ...] = ("torch", "jax", "both")


def bounded() -> None:
    test_residual.test_lipschitz_bound_holds_for_every_weight("silu")


FAR = outputs(lambda z, s: (z, s * (s > -24) - 24 * (s <= -24)))
ONE_HALF = ("torch", "jax")
BOTH = ("both",)
SHARED = ("both",)
FREE = arch("Affine", dim=2)
E = "bijectors.elementwise:"
L = "bijectors.linear:"
N = "bijectors.normalization:"
P = "bijectors.planar:"
S = "univariate.splines:"
A = "univariate.affine:"
M = "univariate.mixture:"
R = "univariate.roots:"
U = "univariate.smooth:"
T = "univariate.tails:"
W = "univariate.piecewise:"
Q = "univariate.polynomials:"
Y = "univariate.monotone:"
D = "distributions:"
ACTIVATION = "networks.activations:ACTIVATIONS."
SPLINE = spline_coupling(dim=2, hidden_dims=[4], num_bins=3)
SQUARE = affine(dim=4, hidden_dims=[4, 4])
LINEAR = affine(dim=2, hidden_dims=[], separate_networks=False)
CONDITIONAL = affine(dim=2, hidden_dims=[4], context_dim=2)
MASKED = masked(dim=3, hidden_dims=[4])
MIXTURE = arch("Elementwise", dim=2, map=arch("LogisticMixtureMap", num_components=2))
TOKENS = arch("TransformerAutoregressive", dim=4, token_dim=2, map=arch("AffineMap"), hidden_dim=4,
              num_blocks=1, num_heads=2)  # fmt: skip
BLOCKS = [
    ("gates of the blocks exchanged", other_blocks(gates=lambda gates: gates[::-1]), "gate"),
    ("branches of the blocks exchanged",
     other_blocks(terms=lambda terms: [*terms[:1], *terms[:0:-1]]), "residual-branch"),
    ("activation in front of blocks", other_blocks(pre_activation=lambda first: not first), "post"),
]  # fmt: skip


def blocks(**options: Any) -> Any:
    network = arch("ResidualMLP", hidden_dim=4, activation="tanh", **options)
    return arch(
        "MaskedAutoregressive", dim=3, map=arch("ShiftMap"), conditioner=network, context_dim=2
    )


GATED, BRANCHED, POST = (
    blocks(context="gate"), blocks(context="branch"), blocks(pre_activation=False),
)  # fmt: skip


def density(base: str, **arguments: Any) -> Judge:
    return consistent(flow(FREE, arch(base, dim=2, **arguments)), 2)


def elementwise(name: str, event_ndim: int = 1, **arguments: Any) -> Judge:
    return consistent(arch(name, event_ndim=event_ndim, **arguments), *[2] * event_ndim)


CONSTANTS = in_both(test_oracles.test_base_densities_against_scipy)
CONTEXTS = in_both(test_bases.test_conditional_bases_against_scipy)
BATCH_NORM = in_both(test_oracles.test_batch_norm_against_torch_nn)
NETWORK_NORM = in_both(test_oracles.test_batch_normalization_of_networks_against_torch_nn)
TRAINING = one_model(arch("BatchNorm", dim=3))

MUTANTS = [
    # elementwise
    Mutant("elementwise", "LeakyReLU: sign of the log-slope", E + "LeakyReLU.map_entries",
           outputs(lambda z, s: (z, -s)), elementwise("LeakyReLU", negative_slope=0.2)),
    Mutant("elementwise", "ELU: log-slope dropped", E + "ELU.map_entries",
           outputs(lambda z, s: (z, 0 * s)), elementwise("ELU")),
    Mutant("elementwise", "Softplus: inverse off by 1e-9", E + "Softplus.map_entries_inverse",
           outputs(lambda x, s: (x * (1 + 1e-9), s)), elementwise("Softplus")),
    Mutant("elementwise", "Exp: half a log-slope", E + "Exp.map_entries",
           outputs(lambda z, s: (z, s / 2)), elementwise("Exp")),
    Mutant("elementwise", "Sigmoid: sign of the inverse's log-slope", E + "Sigmoid.map_entries_inverse",
           outputs(lambda x, s: (x, -s)), elementwise("Sigmoid")),
    Mutant("elementwise", "Tanh: log-slope clamped far out", E + "Tanh.map_entries",
           FAR, elementwise("Tanh"), ONE_HALF),
    Mutant("elementwise", "Tanh: log-slope clamped far out", E + "Tanh.map_entries", FAR,
           in_both(test_dense.test_elementwise_against_mpmath, np.float64, "Tanh"), BOTH),
    Mutant("elementwise", "Tanh: z off by 1e-12", E + "Tanh.map_entries",
           outputs(lambda z, s: (z * (1 - 1e-12), s)),
           in_both(test_dense.test_elementwise_against_mpmath, np.float64, "Tanh"), BOTH),
    Mutant("elementwise", "Softclip: half a log-slope", E + "Softclip.map_entries",
           outputs(lambda z, s: (z, s / 2)), elementwise("Softclip", bound=2.0)),
    Mutant("elementwise", "NormalClip: half a log-slope", E + "NormalClip.map_entries",
           outputs(lambda z, s: (z, s / 2)), elementwise("NormalClip", share=0.2)),
    Mutant("elementwise", "Affine: inverse's log-det", E + "Affine.map_inverse",
           outputs(lambda x, s: (x, -s)), consistent(FREE, 2)),
    Mutant("elementwise", "Rescale: mean in place of sum", E + "Rescale.map_forward",
           outputs(lambda z, s: (z, s / 3)), consistent(arch("Rescale", dim=3), 3)),
    Mutant("elementwise", "Logit: constant of the log-det", E + "Logit.map_entries",
           outputs(lambda z, s: (z, s + 1e-9)), elementwise("Logit", event_ndim=3)),
    # linear
    Mutant("linear", "permutation of the wrong direction", L + "_Reordering.map_forward",
           other_direction("map_inverse"), consistent(arch("Permutation", permutation=[2, 0, 1]), 3),
           ONE_HALF),
    Mutant("linear", "random permutation wrong above dim 8", L + "masks", wrong_above_8,
           consistent(arch("RandomPermutation", dim=12, seed=3), 12), ONE_HALF),
    Mutant("linear", "random permutation wrong above dim 8", L + "masks", wrong_above_8,
           in_both(test_dense.test_permutations), BOTH),
    Mutant("linear", "rotation transposed", L + "Rotation.matrix", result(lambda q: q.T),
           in_both(test_oracles.test_rotation_is_a_product_of_reflections)),
    Mutant("linear", "rotation that is none", L + "Rotation.matrix", result(lambda q: q * (1 + 1e-9)),
           consistent(arch("Rotation", dim=3), 3)),
    Mutant("linear", "L U off by 1e-9", L + "lu_matrix", result(lambda m: m * (1 + 1e-9)),
           consistent(arch("LULinear", dim=3), 3)),
    Mutant("linear", "sign of the log-det", L + "LULinear.map_forward",
           outputs(lambda z, s: (z, -s)), consistent(arch("LULinear", dim=3), 3)),
    Mutant("linear", "1x1 convolution: one pixel's log-det", L + "Invertible1x1Conv._log_det",
           result(lambda s: s / 4), consistent(arch("Invertible1x1Conv", channels=2), 2, 2, 2)),
    Mutant("linear", "P L U turned around, and its signs forgotten", "flow_bridge.masks:factor_rows",
           result(lambda rows: rows and (np.argsort(rows[0]), abs(rows[1]))),
           in_both(test_dense.test_lu_with_a_permutation_and_signs), SHARED),
    # normalisation
    Mutant("normalisation", "eps", N + "BatchNorm._normalize", other_eps,
           consistent(arch("BatchNorm", dim=3), 3)),
    Mutant("normalisation", "eps in training", N + "BatchNorm._normalize", other_eps, BATCH_NORM, BOTH),
    Mutant("normalisation", "running variance with ddof 0", N + "unbiased",
           result(lambda var: var * 9 / 10), BATCH_NORM),
    Mutant("normalisation", "momentum", N + "store", other_momentum, BATCH_NORM),
    Mutant("normalisation", "momentum, in the parity check", N + "store", other_momentum, TRAINING,
           ("jax",)),
    Mutant("normalisation", "running variance with ddof 0, in networks",
           "networks.regularization:unbiased", result(lambda var: var * 9 / 10), NETWORK_NORM, BOTH),
    Mutant("normalisation", "momentum, in networks", "networks.regularization:store", other_momentum,
           NETWORK_NORM, BOTH),
    Mutant("normalisation", "ActNorm: one pixel's log-det", N + "ActNorm._log_det",
           result(lambda s: s / 4), consistent(arch("ActNorm", dim=[2, 2, 2]), 2, 2, 2)),
    Mutant("normalisation", "Standardize: log-det", N + "Standardize.map_inverse",
           outputs(lambda x, s: (x, -s)), consistent(arch("Standardize", dim=3), 3)),
    # couplings
    Mutant("coupling", "sign of the log-scale", A + "AffineMap.forward",
           outputs(lambda z, s: (z, -s)), consistent(SQUARE, 4)),
    Mutant("coupling", "log-scale dropped", A + "AffineMap.forward",
           outputs(lambda z, s: (z, 0 * s)), consistent(SQUARE, 4)),
    Mutant("coupling", "log-det detached", A + "AffineMap.forward",
           outputs(lambda z, s: (z, detached(s))), consistent(SQUARE, 4, gradients=True), ONE_HALF),
    Mutant("coupling", "log-det detached", A + "AffineMap.forward",
           outputs(lambda z, s: (z, detached(s))), row(test_parity.test_torch_gradients,
           "AffineCoupling"), BOTH),
    Mutant("coupling", "scale bounded only far out", A + "AffineMap._log_scale",
           result(lambda s: s * (1 - 1e-6 * (s * s > 0.999999))), consistent(LINEAR, 2, scale=3.0),
           ONE_HALF),
    Mutant("coupling", "additive inverse off by 1e-9", A + "ShiftMap.inverse",
           outputs(lambda x, s: (x * (1 + 1e-9), s)),
           consistent(arch("AdditiveCoupling", dim=3, hidden_dims=[4]), 3)),
    Mutant("coupling", "mixed mask put together wrongly above dim 8",
           "bijectors.coupling:Partition.merge", wrong_merge_above_8,
           consistent(affine(dim=9, hidden_dims=[4], mask=[1, 1, 0, 0, 1, 0, 1, 1, 0]), 9)),
    Mutant("coupling", "context ignored", "bijectors.coupling:Coupling.parameters_of", without_context,
           row(test_parity.test_the_context_matters, "AffineCoupling-context"), BOTH),
    Mutant("coupling", "context ignored", "bijectors.coupling:Coupling.parameters_of", without_context,
           consistent(CONDITIONAL, 2), ONE_HALF),
    Mutant("coupling", "mask of the wrong parity", "flow_bridge.masks:coupling_mask",
           result(lambda fixed: ~fixed), test_oracles.test_couplings_equal_those_of_a_peer, SHARED),
    Mutant("coupling", "leaky slope", ACTIVATION + "leaky_relu", result(lambda y: y * (1 + 1e-9)),
           test_oracles.test_couplings_equal_those_of_a_peer, ("jax", "both")),
    Mutant("coupling", "gelu by tanh", ACTIVATION + "gelu", gelu_by_tanh,
           consistent(affine(dim=2, hidden_dims=[4], activation="gelu"), 2), ONE_HALF),
    Mutant("coupling", "activation through float32", ACTIVATION + "tanh", through_float32,
           consistent(SQUARE, 4), ("jax",)),
    Mutant("coupling", "activation through float32", "networks.activations:IN_PLACE.tanh",
           through_float32, one_model(SQUARE), ("torch",)),
    Mutant("coupling", "softplus with a threshold", ACTIVATION + "softplus", threshold,
           consistent(affine(dim=2, hidden_dims=[4], activation="softplus"), 2, scale=3.0), ONE_HALF),
    # splines
    Mutant("splines", "slope at a knot", S + "slope_of", result(lambda d: d + 1e-9),
           in_both(test_dense.test_spline_against_nflows), BOTH),
    Mutant("splines", "slope at a knot", S + "slope_of", result(lambda d: d + 1e-9),
           consistent(SPLINE, 2), ONE_HALF),
    Mutant("splines", "sign of the log-slope", S + "forward_in_bin",
           outputs(lambda y, s: (y, -s)), consistent(SPLINE, 2)),
    Mutant("splines", "inverse off in a bin", S + "inverse_in_bin",
           outputs(lambda x, s: (x + 1e-9, s)), consistent(SPLINE, 2)),
    Mutant("splines", "log-slope off by 1 percent", S + "_evaluate",
           outputs(lambda y, s: (y, 1.01 * s)), consistent(SPLINE, 2)),
    Mutant("splines", "not the identity beyond its bound", S + "SplineMap.forward",
           lambda original, half: lambda map, x, p: (
               original(map, x, p)[0] + 1e-6 * (x * x > map.high**2), original(map, x, p)[1]),
           consistent(SPLINE, 2)),
    Mutant("splines", "squashed as much as a slope", S + "SplineMap.knots",
           lambda original, half: lambda map, p: (original(map, p) if map.squash is None else
                                                  original(replace(map, squash=map.squash**2), p)),
           test_grid.test_splines_in_other_words, BOTH),
    Mutant("splines", "edge slope of another number", S + "raw_slope",
           result(lambda raw: raw + 1e-9), test_grid.test_splines_in_other_words, BOTH),
    # univariate maps
    Mutant("mixture", "log-slope off by 1e-9", M + "_evaluate", outputs(lambda z, s: (z, s + 1e-9)),
           in_both(test_monotone.test_mixtures_against_mpmath), BOTH),
    Mutant("mixture", "of normals: log-slope off by 1e-9", M + "_smaller_tail",
           outputs(lambda *given: (*given[:-1], given[-1] + 1e-9)),
           partial(test_families.test_values_and_slopes_against_mpmath, "NormalMixtureMap"), BOTH),
    Mutant("mixture", "dense: log-slope off by 1e-9", M + "_evaluate_dense",
           outputs(lambda z, s: (z, s + 1e-9)),
           partial(test_families.test_values_and_slopes_against_mpmath, "DenseSigmoidMap"), BOTH),
    Mutant("mixture", "weights of two components exchanged", M + "_normalized",
           outputs(lambda r, total: (r[::-1] if isinstance(r, jax.Array) else r.flip(0), total)),
           consistent(MIXTURE, 2)),
    Mutant("smooth", "a of the other branch", U + "_cubic_rational",
           lambda original, half: lambda x, share, rest, k: original(x, share, share, k),
           partial(test_families.test_values_and_slopes_against_mpmath, "CubicRationalMap"), BOTH),
    Mutant("smooth", "t with the sign of x", U + "_sinh_map",
           lambda original, half: lambda x, s, t, k: original(x, s, abs(t), k),
           partial(test_families.test_values_and_slopes_against_mpmath, "SinhMap"), BOTH),
    Mutant("polynomials", "binomials of another degree", Q + "math",
           value(SimpleNamespace(comb=lambda n, i: math.comb(n, i) * (1 + 1e-9 * (i == 1)), sqrt=math.sqrt)),
           partial(test_families.test_values_and_slopes_against_mpmath, "BernsteinMap"), BOTH),
    Mutant("polynomials", "a quadrature that is not exact", Q + "GAUSS_LEGENDRE",
           lambda rules, half: {n: rules[max(2, n - 1)] for n in rules},
           partial(test_families.test_values_and_slopes_against_mpmath, "SumOfSquaresMap"), BOTH),
    Mutant("polynomials", "a tangent off", Q + "_extended",
           lambda original, half: lambda evaluate, low, high: original(evaluate, low, high * 0.999),
           consistent(arch("Elementwise", dim=2, map=arch("BernsteinMap", degree=2, low=-1.0, high=1.0)), 2),
           ONE_HALF),
    Mutant("monotone", "log-slope off by 1e-9", Y + "_evaluate", outputs(lambda z, s: (z, s + 1e-9)),
           partial(test_families.test_values_and_slopes_against_mpmath, "MonotoneNetworkMap"), BOTH),
    Mutant("monotone", "biases that start elsewhere", Y + "spread",
           result(lambda starts: [start + 1e-9 for start in starts]),
           partial(test_families.test_values_and_slopes_against_mpmath, "MonotoneNetworkMap"), BOTH),
    Mutant("monotone", "a bracket of another root", Y + "bracket",
           outputs(lambda low, high: (low + 0.4 * (high - low), low + 0.6 * (high - low))),
           consistent(arch("Elementwise", dim=2, map=arch("MonotoneNetworkMap", hidden_dims=[2])), 2)),
    Mutant("monotone", "an integrand of another bound", Y + "INTEGRAND_LOG", value(7.001),
           partial(test_families.test_values_and_slopes_against_mpmath, "IntegratedNetworkMap"), BOTH),
    Mutant("monotone", "nodes of another start", Y + "integrand_starts",
           lambda original, half: lambda widths, bound: original(widths, bound * (1 + 1e-9)),
           partial(test_families.test_values_and_slopes_against_mpmath, "IntegratedNetworkMap"), BOTH),
    *[Mutant("pieces", f"{name}: sizes off by 1e-9", W + "_Pieces._knots",
             outputs(lambda knots, sizes: (knots, sizes ** (1 + 1e-9))),
             partial(test_families.test_values_and_slopes_against_mpmath, name), BOTH)
      for name in ("LinearSplineMap", "QuadraticSplineMap", "CubicSplineMap", "LinearRationalSplineMap")],
    Mutant("tails", "another scale of the quotient", T + "TAIL_SCALE", value(3.2500001),
           partial(test_families.test_tails_of_the_normal, "torch", "float64"), BOTH),
    Mutant("mixture", "inverse off", R + "_find", result(lambda x: x + 1e-9), consistent(MIXTURE, 2)),
    # autoregressive
    Mutant("autoregressive", "degrees off by one", "flow_bridge.masks:Autoregression.degrees",
           own_input, consistent(MASKED, 3), SHARED),
    Mutant("autoregressive", "order turned around", "flow_bridge.masks:autoregressive_order",
           result(lambda order: order[::-1].copy()), test_autoregressive.test_masked_network_equals_nflows,
           SHARED),
    *[Mutant("networks", what, f"networks.{file}:apply_blocks", change,
             in_both(test_grid.check_formula, name, file == "masked"), BOTH)
      for file in ("residual", "masked") for what, change, name in BLOCKS],
    *[Mutant("networks", what, "networks.masked:apply_blocks", change, consistent(masked_residual, 3),
             ONE_HALF)
      for masked_residual, (what, change, _) in zip((GATED, BRANCHED, POST), BLOCKS, strict=True)],
    Mutant("networks", "branch without its activation", "networks.mlp:branch_terms", plain_branch,
           in_both(test_grid.check_formula, "branch", False), BOTH),
    Mutant("networks", "branch without its activation", "networks.masked:branch_terms", plain_branch,
           in_both(test_grid.check_formula, "branch", True), BOTH),
    Mutant("networks", "branch without its activation", "networks.masked:branch_terms", plain_branch,
           consistent(BRANCHED, 3), ONE_HALF),
    Mutant("networks", "layer normalisation with another eps", "networks.mlp:normalize", other_scale,
           in_both(test_grid.check_formula, "normalized", False)),
    Mutant("networks", "inverse: gates of the blocks exchanged", "networks.masked:MaskedNetwork.unrolled",
           other_gates, consistent(GATED, 3)),
    Mutant("autoregressive", "inverse's log-det", "bijectors.autoregressive:MaskedAutoregressive.map_inverse",
           outputs(lambda x, s: (x, -s)), consistent(MASKED, 3)),
    Mutant("transformers", "no shift by one token", "networks.attention:TokenNetwork.run", own_token,
           consistent(TOKENS, 4)),
    Mutant("transformers", "scores divided by another root", "networks.attention:attend", other_temperature,
           in_both(test_transformer.test_a_block_is_that_of_pytorch)),
    Mutant("autoregressive", "blocks: log-slope off by 1e-9", "bijectors.block_autoregressive:_through",
           result(lambda s: s + 1e-9), test_autoregressive.test_block_networks_return, BOTH),
    Mutant("images", "an exponential without its last terms", "bijectors.linear:exponential_terms",
           result(lambda count: count - 8),
           in_both(test_images.test_the_convolution_exponential_is_that_of_a_matrix), BOTH),
    # planar, radial, Sylvester
    Mutant("planar", "log-det", P + "_log_det", result(lambda s: s * (1 + 1e-9)),
           consistent(arch("Planar", dim=3), 3)),
    Mutant("planar", "without its constraint", P + "softplus",
           lambda original, half: lambda x: (torch if half == "torch" else jnp).exp(x),
           consistent(arch("Planar", dim=3), 3)),
    Mutant("planar", "without Halley's steps", P + "DETACHED_STEPS", value(0),
           consistent(arch("Planar", dim=3), 3, scale=3.0)),
    Mutant("planar", "detached inverse", P + "DIFFERENTIABLE_STEPS", value(0),
           consistent(arch("Planar", dim=3), 3, gradients=True), ONE_HALF),
    Mutant("planar", "detached inverse", P + "DIFFERENTIABLE_STEPS", value(0),
           row(test_parity.test_torch_gradients, "Planar"), BOTH),
    Mutant("planar", "radial log-det", P + "_radial_log_det", result(lambda s: 1.001 * s),
           consistent(arch("Radial", dim=3), 3)),
    Mutant("planar", "radial root", P + "_positive_root", result(lambda r: r + 1e-9),
           consistent(arch("Radial", dim=3), 3)),
    Mutant("planar", "Sylvester columns of length 1.000001", P + "_orthonormal",
           result(lambda q: 1.000001 * q), consistent(arch("Sylvester", dim=3, rank=2), 3)),
    # residual
    Mutant("residual", "log-det", "bijectors.residual:_log_det_plus_identity",
           result(lambda s: s * (1 + 1e-9)), consistent(residual(dim=2, hidden_dims=[4]), 2)),
    Mutant("residual", "inverse", "bijectors.residual:InvertibleResidual._solve",
           result(lambda x: x + 1e-9), consistent(residual(dim=2, hidden_dims=[4]), 2)),
    Mutant("residual", "series with the signs of another", "bijectors.residual:_truncated_log_det",
           result(lambda s: -s), in_both(test_oracles.test_truncated_series_of_a_diagonal), BOTH),
    Mutant("residual", "series with the signs of another", "bijectors.residual:_truncated_log_det",
           result(lambda s: -s),
           consistent(residual(dim=2, hidden_dims=[4], log_det="series", eval_terms=9), 2), ONE_HALF),
    Mutant("residual", "bound too small", "networks.lipschitz:spectral_bound",
           result(lambda bound: bound / 2), bounded, ("torch", "both")),
    Mutant("residual", "bound too small", "networks.lipschitz:spectral_bound",
           result(lambda bound: bound / 2), consistent(residual(dim=2, hidden_dims=[4]), 2, scale=3.0),
           ("jax",)),
    # continuous
    Mutant("continuous", "sign of the trace", "bijectors.continuous:trace", result(lambda s: -s),
           one_model(continuous(dim=2, hidden_dims=[4]))),
    Mutant("continuous", "half an interval on the way back",
           "bijectors.continuous:ContinuousBijector._run", half_an_interval,
           one_model(continuous(dim=2, hidden_dims=[4]))),
    Mutant("continuous", "time ignored", "bijectors.continuous:_Field.__call__",
           lambda original, half: lambda self, t, *a: original(self, 0 * t, *a),
           test_continuous.test_linear_field_is_a_matrix_exponential, BOTH),
    # images
    Mutant("images", "squeeze with other channels", "bijectors.shapes:Squeeze.map_forward",
           outputs(lambda z, s: (z[..., [1, 0, 2, 3], :, :], s)), consistent(arch("Squeeze"), 1, 4, 2)),
    Mutant("images", "squeeze the other way round, both directions",
           "bijectors.shapes:Squeeze.map_forward", outputs(lambda z, s: (z[..., [1, 0, 2, 3], :, :], s)),
           test_images.test_squeeze_is_pixel_unshuffle, BOTH),
    Mutant("images", "split: log-det twice", "bijectors.shapes:Split.map_forward",
           outputs(lambda z, s: (z, 2 * s)), consistent(arch("Split", bijector=arch("Tanh", event_ndim=3)),
                                                        2, 2, 2)),
    # distributions
    *[Mutant("distributions", f"constant of {name}", f"{D}{name}.log_density",
             result(lambda p: p + 1e-9), CONSTANTS, BOTH)
      for name in ("StandardNormal", "DiagonalNormal", "Uniform", "GaussianMixture", "StudentT")],
    Mutant("distributions", "StudentT: density", D + "StudentT.log_density",
           result(lambda p: p * (1 + 1e-9)), density("StudentT", df=2.5), ONE_HALF),
    Mutant("distributions", "DiagonalNormal: scale", D + "DiagonalNormal.log_density",
           result(lambda p: p * (1 + 1e-9)), density("DiagonalNormal"), ONE_HALF),
    Mutant("distributions", "DiagonalNormal: samples", D + "DiagonalNormal.map_noise",
           result(lambda z: 1.1 * z), test_oracles.test_base_densities_and_samples),
    Mutant("distributions", "GaussianMixture: samples of another component",
           D + "GaussianMixture.map_noise", result(lambda z: z + 1),
           in_both(test_dense.test_base_distributions_against_torch_and_scipy), BOTH),
    Mutant("distributions", "DiagonalNormal: loc and scale of a context exchanged",
           D + "DiagonalNormal._parameters_for", outputs(lambda loc, s: (s, loc)), CONTEXTS, BOTH),
    Mutant("distributions", "GaussianMixture: weights of a context all the same",
           D + "GaussianMixture._parameters_for", result(lambda p: (0 * p[0], *p[1:])), CONTEXTS, BOTH),
    # structure
    Mutant("structure", "Invert goes the same way", "bijectors.structure:Invert.map_inverse",
           outputs(lambda x, s: (x, -s)), consistent(arch("Invert", bijector=FREE), 2)),
    # conversion
    Mutant("conversion", "square weight not transposed", "flow_bridge.weights:find_layout",
           no_transpose, consistent(SQUARE, 4), SHARED),
    Mutant("conversion", "convolution transposed", "flow_bridge.weights:find_layout",
           swapped_pixels, consistent(conv_coupling(channels=2), 2, 4, 4), SHARED),
]  # fmt: skip


def patch(monkeypatch: pytest.MonkeyPatch, mutant: Mutant, where: str) -> None:
    """Put the defect where it belongs."""
    path, _, names = mutant.target.partition(":")
    shared = path.startswith("flow_bridge")
    for half in ("both",) if shared else HALVES if where == "both" else (where,):
        owner: Any = import_module(path if shared else f"{half}_flows.{path}")
        *parents, last = names.split(".")
        for name in parents:
            owner = getattr(owner, name)
        if isinstance(owner, dict):
            monkeypatch.setitem(owner, last, mutant.change(owner[last], half))
        else:
            original = owner.__dict__[last] if isinstance(owner, type) else getattr(owner, last)
            monkeypatch.setattr(owner, last, mutant.change(original, half))


def _rows() -> list[Any]:
    """In ``make test`` every defect in both halves, and in one of them where both would be right."""
    rows = []
    for i, mutant in enumerate(MUTANTS):
        quick = "both" if "both" in mutant.where else mutant.where[i % len(mutant.where)]
        for where in mutant.where:
            marks = () if where == quick else pytest.mark.slow
            name = f"{mutant.family}: {mutant.what} ({where})"
            rows.append(pytest.param(mutant, where, id=name, marks=marks))
    return rows


@pytest.fixture(autouse=True)
def no_models_of_another_mutant():
    """JAX's methods are bound to the first of equal models, which keeps its masks and orders."""
    jax_flows.variables._bind.cache_clear()
    yield
    jax_flows.variables._bind.cache_clear()


@pytest.fixture
def no_traces_of_another_mutant():
    """JAX keeps what it compiled, and what ``jax.checkpoint`` traced, by function; a mutant's must not
    outlive it, and what was kept before must not hide it."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize(("mutant", "where"), _rows())
def test_every_mutant_is_caught(mutant: Mutant, where: str, monkeypatch, request) -> None:
    if where != "torch":
        request.getfixturevalue("no_traces_of_another_mutant")
    patch(monkeypatch, mutant, where)
    with pytest.raises((AssertionError, GradcheckError, ConvergenceError)):
        mutant.judge()


def test_without_a_mutation_all_pass() -> None:
    """The judges that are no test of their own."""
    for mutant in MUTANTS:
        if getattr(mutant.judge, "__qualname__", "").startswith("consistent."):
            mutant.judge()


def test_an_empty_report_is_no_pass() -> None:
    assert not ParityReport({"type": "Planar"}).passed


@pytest.mark.usefixtures("no_traces_of_another_mutant")
def test_non_finite_differences_are_caught(monkeypatch) -> None:
    nan = outputs(lambda z, s: (z * jnp.nan, s))
    patch(monkeypatch, Mutant("", "", A + "AffineMap.forward", nan, one_model(SQUARE)), "jax")
    with pytest.raises(AssertionError):
        one_model(SQUARE)()
