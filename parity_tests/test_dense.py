"""Elementwise and linear bijectors, couplings and splines against oracles from outside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

import jax_flows
import torch_flows
from flow_bridge.architecture import architecture
from flow_bridge.weights import torch_to_jax
from jax_flows.bijectors import linear as jax_linear
from jax_flows.bijectors import planar as jax_planar
from jax_flows.univariate import splines as jax_splines
from torch_flows.bijectors import linear as torch_linear
from torch_flows.bijectors import planar as torch_planar
from torch_flows.univariate import splines as torch_splines

HALVES = ("torch", "jax")
half_and_dtype = pytest.mark.parametrize(
    ("half", "dtype"), [(half, dtype) for half in HALVES for dtype in (np.float32, np.float64)]
)
ELEMENTWISE = (
    "LeakyReLU", "ELU", "Softplus", "Exp", "Sigmoid", "Tanh", "Softclip", "NormalClip", "LeakyTanh", "LOFT",
)  # fmt: skip


def run(half: str, name: str, direction: str, x: np.ndarray, **arguments: Any) -> list[np.ndarray]:
    """One direction of a bijector without weights."""
    if half == "torch":
        outputs = getattr(getattr(torch_flows, name)(**arguments), direction)(torch.from_numpy(x))
        return [o.numpy() for o in outputs]
    bijector = getattr(jax_flows, name)(**arguments)
    outputs = jax.jit(getattr(bijector, direction))({"params": {}}, x)
    return [np.asarray(o) for o in outputs]


class Splines:
    """The functions of ``univariate/splines.py``, and those of a map as functions."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def rational_quadratic(
        self, x: Any, parameters: Any, bound: float, inverse: bool = False
    ) -> Any:
        map = self.module.spline_within(bound, (parameters.shape[-1] + 1) // 3)
        return (map.inverse if inverse else map.forward)(x, parameters)

    def spline_knots(self, parameters: Any, bound: float) -> Any:
        return self.module.spline_within(bound, (parameters.shape[-1] + 1) // 3).knots(parameters)


MIN_SIZE = torch_flows.SplineMap().min_width
MIN_DERIVATIVE = torch_flows.SplineMap().min_slope


def call(half: str, module: str, name: str, *args: Any, **arguments: Any) -> list[np.ndarray]:
    """A function of one module of the half on numpy arrays."""
    if half == "torch":
        function = getattr(
            {"linear": torch_linear, "splines": Splines(torch_splines)}[module], name
        )
        args = tuple(torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in args)
        outputs = function(*args, **arguments)
        return [o.numpy() for o in (outputs if isinstance(outputs, tuple) else [outputs])]
    function = getattr({"linear": jax_linear, "splines": Splines(jax_splines)}[module], name)
    static = tuple(i for i, a in enumerate(args) if not isinstance(a, np.ndarray))
    outputs = jax.jit(function, static_argnums=static, static_argnames=tuple(arguments))(
        *args, **arguments
    )
    return [np.asarray(o) for o in (outputs if isinstance(outputs, tuple) else [outputs])]


def assert_accurate(
    values: np.ndarray, exact: list[Any], ulps: float = 32, floor: float = 4
) -> None:
    """Every value within so many ULP of the exact one, or within so many eps."""
    eps, tiny = np.finfo(values.dtype).eps, np.finfo(values.dtype).tiny
    for value, truth in zip(values, exact, strict=True):
        spacing = max(np.spacing(values.dtype.type(abs(float(truth)))), tiny)
        error = abs(mpmath.mpf(float(value)) - truth)
        assert error <= max(ulps * spacing, floor * eps), (value, float(truth))


# elementwise

EXACT: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "Softplus": (lambda x: mpmath.log1p(mpmath.exp(x)), lambda z: mpmath.log(mpmath.expm1(z))),
    "Exp": (mpmath.exp, mpmath.log),
    "Sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), lambda z: mpmath.log(z / (1 - z))),
    "Tanh": (mpmath.tanh, mpmath.atanh),
    "Softclip": (lambda x: x / (1 + abs(x)), lambda z: z / (1 - abs(z))),
    "LeakyTanh": (
        lambda x: (
            mpmath.sign(x) * (mpmath.tanh(3) + (abs(x) - 3) / mpmath.cosh(3) ** 2)
            if abs(x) > 3
            else mpmath.tanh(x)
        ),
        lambda z: (
            mpmath.sign(z) * (3 + (abs(z) - mpmath.tanh(3)) * mpmath.cosh(3) ** 2)
            if abs(z) > mpmath.tanh(3)
            else mpmath.atanh(z)
        ),
    ),
    "LOFT": (
        lambda x: mpmath.sign(x) * (100 + mpmath.log(abs(x) - 99)) if abs(x) > 100 else x,
        lambda z: mpmath.sign(z) * (100 + mpmath.expm1(abs(z) - 100)) if abs(z) > 100 else z,
    ),
    "ELU": (lambda x: mpmath.expm1(x) if x < 0 else x, lambda z: mpmath.log1p(z) if z < 0 else z),
}
SHARE = mpmath.mpf(1e-6)


def clipped(x: Any) -> Any:
    tail = ((1 - SHARE) * mpmath.erfc(abs(x) / mpmath.sqrt(2)) + SHARE) / 2
    return mpmath.sign(x) * normal_tail(tail)


def normal_tail(share: Any) -> Any:
    """The t with Phi(-t) = share."""
    t = mpmath.sqrt(max(mpmath.mpf(0), -2 * mpmath.log(2 * share))) * mpmath.mpf(0.9)
    for _ in range(8):
        tail = mpmath.erfc(t / mpmath.sqrt(2)) / 2
        t += mpmath.log(tail / share) * tail / mpmath.npdf(t)
    return t


EXACT["NormalClip"] = (
    clipped,
    lambda z: (
        mpmath.sign(z)
        * normal_tail((mpmath.erfc(abs(z) / mpmath.sqrt(2)) - SHARE) / 2 / (1 - SHARE))
    ),
)
LOG_SLOPE: dict[str, Callable[[Any], Any]] = {
    "Softplus": lambda x: -mpmath.log1p(mpmath.exp(-x)),
    "Exp": lambda x: x,
    "Sigmoid": lambda x: -mpmath.log1p(mpmath.exp(x)) - mpmath.log1p(mpmath.exp(-x)),
    "Tanh": lambda x: -2 * mpmath.log(mpmath.cosh(x)),
    "Softclip": lambda x: -2 * mpmath.log1p(abs(x)),
    "NormalClip": lambda x: mpmath.log1p(-SHARE) + (clipped(x) ** 2 - x**2) / 2,
    "LeakyTanh": lambda x: -2 * mpmath.log(mpmath.cosh(min(abs(x), mpmath.mpf(3)))),
    "LOFT": lambda x: -mpmath.log(max(abs(x) - 99, mpmath.mpf(1))),
    "ELU": lambda x: min(x, mpmath.mpf(0)),
}


@half_and_dtype
@pytest.mark.parametrize("name", EXACT)
def test_elementwise_against_mpmath(half: str, dtype: Any, name: str) -> None:
    far = 80.0 if dtype == np.float32 else 700.0
    next_to_1 = 1 - 3 * float(np.finfo(dtype).eps)
    x = np.array([0, 1e-30, -1e-30, 0.1, -0.29, 0.31, -0.41, 2, -3, 17, -20, far, -far], dtype)
    z = {
        "Softplus": [1e-30, 1e-4, 0.69, 0.6931472, 3, 30, far],
        "Exp": [1e-30, 0.5, 1, 1.001, far],
        "Sigmoid": [1e-30, 0.1, 0.4142, 0.5, 0.9, next_to_1],
        "Tanh": [1e-30, -1e-5, 0.29, 0.31, -0.4142, 0.9, next_to_1, -next_to_1],
        "Softclip": [1e-30, -1e-5, 0.3, -0.4142, 0.9, next_to_1, -next_to_1],
        "NormalClip": [1e-30, -1e-5, 0.3, -2, 3, 3.5],
        "LeakyTanh": [1e-30, -1e-5, 0.29, 0.31, -0.4142, 0.9, -0.99, 1.5, -far],
        "LOFT": [1e-30, -2, 30, 99.5, 100.5, -101, 117],
        "ELU": [1e-30, -1e-30, -0.2, -0.26, -0.4142, -0.9, -next_to_1, 30, far],
    }[name]
    with mpmath.workdps(60):
        function, inverse = EXACT[name]
        # a log-slope from squares of quantiles knows them to rounding
        floor = 16 if name == "NormalClip" else 4
        outputs = run(half, name, "forward", x[:, None])
        exact_x = [mpmath.mpf(float(v)) for v in x]
        assert_accurate(outputs[0][:, 0], [function(v) for v in exact_x], floor=floor)
        assert_accurate(outputs[1], [LOG_SLOPE[name](v) for v in exact_x], floor=floor)
        points = np.array(z, dtype)
        outputs = run(half, name, "inverse", points[:, None])
        roots = [inverse(mpmath.mpf(float(v))) for v in points]
        assert_accurate(outputs[0][:, 0], roots, floor=floor)
        assert_accurate(outputs[1], [-LOG_SLOPE[name](v) for v in roots], floor=floor)


@pytest.mark.parametrize("half", HALVES)
def test_softclip_far_out(half: str) -> None:
    """A large x over a small bound overflows."""
    x = np.array([[3e38], [-3e38], [0.0]], np.float32)
    z, log_det = run(half, "Softclip", "forward", x, bound=0.125)
    np.testing.assert_array_equal(z[:, 0], np.float32([0.125, -0.125, 0]))
    np.testing.assert_allclose(log_det, -2 * np.log([2.4e39, 2.4e39, 1]), rtol=1e-6)


@pytest.mark.parametrize("half", HALVES)
def test_outside_the_codomain_is_nan(half: str) -> None:
    for name, ends, beyond in (
        ("ELU", [-1.0], [-1.001, -1e30]),
        ("Softplus", [0.0, -0.0], [-1e-3, -1e30]),
        ("Exp", [0.0, -0.0], [-1e-3, -1e30]),
        ("Sigmoid", [0.0, 1.0], [-1e-3, 1.001, 1e30]),
        ("Tanh", [-1.0, 1.0], [-1.001, 1.001, -1e30]),
        ("Softclip", [-1.0, 1.0], [-1.001, 1.001, -1e30]),
    ):
        x, log_det = run(half, name, "inverse", np.array([*ends, *beyond, np.nan])[:, None])
        assert np.isinf(x[: len(ends)]).all()
        assert (log_det[: len(ends)] == np.inf).all()
        assert np.isnan([x[len(ends) :, 0], log_det[len(ends) :]]).all()


def test_domains_and_eager_checks() -> None:
    x = np.array([0.5, -2.0])
    for name in ELEMENTWISE:
        torch_bijector, jax_bijector = getattr(torch_flows, name)(), getattr(jax_flows, name)()
        assert torch_bijector.domain == jax_bijector.domain == (-np.inf, np.inf)
        assert torch_bijector.codomain == jax_bijector.codomain
        inverted = torch_flows.Invert(torch_bijector), jax_flows.Invert(jax_bijector)
        for bijector, array in zip(inverted, (torch.from_numpy(x), jnp.asarray(x)), strict=True):
            assert bijector.domain == torch_bijector.codomain
            bijector.check_codomain(array)
            chain = type(bijector).__module__.split(".")[0]
            chain = {"torch_flows": torch_flows, "jax_flows": jax_flows}[chain].Chain([bijector])
            assert (chain.domain, chain.codomain) == (bijector.domain, bijector.codomain)
        low, high = torch_bijector.codomain
        if (low, high) == (-np.inf, np.inf):
            continue
        z = np.array([0.5, low - 1])
        sentence = f"{name} expects z inside \\({low:g}, {high:g}\\), got {z[1]}"
        with pytest.raises(ValueError, match=sentence):
            torch_bijector.check_codomain(torch.from_numpy(z))
        with pytest.raises(ValueError, match=sentence):
            jax_bijector.check_codomain(jnp.asarray(z))
    with pytest.raises(ValueError, match="got nan"):
        torch_flows.Exp().check_domain(torch.tensor([1.0, np.nan]))


@pytest.mark.parametrize("half", HALVES)
def test_elementwise_against_torch_functional(half: str) -> None:
    x = np.random.default_rng(0).normal(size=(9, 4)) * 3
    functional = torch.nn.functional
    for name, arguments, function in (
        ("LeakyReLU", {"negative_slope": 0.3}, lambda t: functional.leaky_relu(t, 0.3)),
        ("ELU", {"alpha": 0.7}, lambda t: functional.elu(t, 0.7)),
        ("Softplus", {}, lambda t: functional.softplus(t, threshold=100)),
    ):
        point = torch.from_numpy(x).requires_grad_()
        expected = function(point)
        (slope,) = torch.autograd.grad(expected.sum(), point)
        z, log_det = run(half, name, "forward", x, **arguments)
        np.testing.assert_allclose(z, expected.detach(), rtol=1e-14)
        np.testing.assert_allclose(log_det, slope.log().sum(-1), rtol=1e-13)


@pytest.mark.parametrize("half", HALVES)
def test_elementwise_images(half: str) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    for name in ELEMENTWISE:
        z, log_det = run(half, name, "forward", x, event_ndim=3)
        flat_z, flat_log_det = run(half, name, "forward", x.reshape(2, -1))
        assert (z.reshape(2, -1) == flat_z).all()
        np.testing.assert_allclose(log_det, flat_log_det, rtol=1e-14)


# linear


@pytest.mark.parametrize("half", HALVES)
def test_permutations(half: str) -> None:
    x = np.array([[0.0, np.nan, 2.0, np.inf, 4.0]])
    z, log_det = run(half, "Permutation", "forward", x, permutation=[3, 0, 4, 1, 2])
    np.testing.assert_array_equal(z, [[np.inf, 0, 4, np.nan, 2]])
    assert log_det == 0
    back, _ = run(half, "Permutation", "inverse", z, permutation=[3, 0, 4, 1, 2])
    np.testing.assert_array_equal(back, x)
    z, _ = run(half, "Permutation", "forward", x, permutation="reverse", dim=5)
    np.testing.assert_array_equal(z, x[:, ::-1])
    z, _ = run(half, "RandomPermutation", "forward", x, dim=5, seed=7)
    np.testing.assert_array_equal(z, x[:, np.random.default_rng(7).permutation(5)])
    wide = np.arange(12.0)
    z, _ = run(half, "RandomPermutation", "forward", wide, dim=12, seed=7)
    np.testing.assert_array_equal(z, np.random.default_rng(7).permutation(12))


@pytest.mark.parametrize("bad", [[0, 0], [1, 2], [], [0.0, 1.0], "shuffle", "reverse", 5])
def test_bad_permutations(bad: Any) -> None:
    messages = []
    for half in (torch_flows, jax_flows):
        with pytest.raises(ValueError, match="permutation") as error:
            half.Permutation(bad)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_rotation_stays_orthogonal_through_training() -> None:
    torch.manual_seed(0)
    rotation = torch_flows.Rotation(4).double()
    optimizer = torch.optim.Adam(rotation.parameters(), lr=0.05, fused=True)
    x = torch.randn(16, 4, dtype=torch.float64)
    for _ in range(1000):
        optimizer.zero_grad()
        (rotation.forward(x)[0] - x.roll(1, -1).cos()).square().mean().backward()
        optimizer.step()
    weights = {"params": {"vectors": rotation.vectors.detach().numpy()}}
    twin = jax.jit(jax_flows.Rotation(4).matrix)(weights)
    for matrix in (rotation.matrix().detach().numpy(), np.asarray(twin)):
        assert np.abs(matrix.T @ matrix - np.eye(4)).max() < 1e-12
        assert np.linalg.det(matrix) == pytest.approx(1)


def test_rotation_of_any_scale() -> None:
    vectors = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    vectors[3] = 0
    for scale in (0, 1e-30, 1, 1e30):
        rotation = torch_flows.Rotation(8)
        rotation.vectors.data = torch.from_numpy(vectors * np.float32(scale))
        matrix = rotation.matrix()
        assert (matrix.T @ matrix - torch.eye(8)).abs().max() < 4e-6
        matrix.sum().backward()
        assert rotation.vectors.grad.isfinite().all()
        if scale == 0:
            assert (matrix == torch.eye(8)).all()
    gradient = jax.jit(
        jax.grad(lambda v: jax_flows.Rotation(8).matrix({"params": {"vectors": v}}).sum())
    )
    assert jnp.isfinite(gradient(vectors)).all()


@pytest.mark.parametrize("half", HALVES)
def test_lu_against_slogdet(half: str) -> None:
    for dim in (1, 2, 5):
        lu = np.random.default_rng(dim).normal(size=(dim, dim)) / 2
        (matrix,) = call(half, "linear", "lu_matrix", lu)
        lower, upper = np.tril(lu, -1) + np.eye(dim), np.triu(lu, 1) + np.diag(np.exp(np.diag(lu)))
        np.testing.assert_allclose(matrix, (lower @ upper)[::-1], rtol=1e-14, atol=1e-15)
        _, log_det = torch.linalg.slogdet(torch.from_numpy(matrix.copy()))
        assert np.trace(lu) == pytest.approx(float(log_det), abs=1e-13)


@pytest.mark.parametrize("half", HALVES)
def test_lu_with_a_permutation_and_signs(half: str) -> None:
    """W = P S L U, with row i of P S the row permutation[i] of S."""
    generator = np.random.default_rng(0)
    lu, x = generator.standard_normal((4, 4)) / 2, generator.standard_normal((5, 4))
    lower, upper = np.tril(lu, -1) + np.eye(4), np.triu(lu, 1) + np.diag(np.exp(np.diag(lu)))
    order, signs = [2, 0, 3, 1], [1, -1, -1, -1]
    reverse = [3, 2, 1, 0]
    for given in ({"permutation": order}, {"signs": signs}, {"permutation": order, "signs": signs}):
        diagonal = np.diag(given.get("signs", [1] * 4))
        matrix = (diagonal @ lower @ upper)[given.get("permutation", reverse)]
        for name, sizes in (
            ("LULinear", {"dim": 4, "bias": False}),
            ("Invertible1x1Conv", {"channels": 4}),
        ):
            image = (..., None, None) if name == "Invertible1x1Conv" else ()
            described = {"type": name, **sizes, **given}
            if half == "torch":
                bijector = torch_flows.build(described).double()
                bijector.lu.data = torch.from_numpy(lu)
                z, log_det = (r.detach() for r in bijector.forward(torch.from_numpy(x)[image]))
                back = bijector.inverse(z)[0].detach()
            else:
                bijector, variables = jax_flows.build(described), {"params": {"lu": lu}}
                z, log_det = bijector.forward(variables, jnp.asarray(x)[image])
                back = bijector.inverse(variables, z)[0]
            np.testing.assert_allclose(np.asarray(z).reshape(5, 4), x @ matrix.T, atol=1e-14)
            np.testing.assert_allclose(np.asarray(back).reshape(5, 4), x, atol=1e-13)
            np.testing.assert_allclose(log_det, np.linalg.slogdet(matrix)[1], atol=1e-14)


def test_a_share_without_quantiles_is_refused_alike() -> None:
    for half in (torch_flows, jax_flows):
        with pytest.raises(ValueError, match="expects share between 1e-300 and 1, got 5e-324"):
            half.NormalClip(5e-324)


def test_refused_signs_are_refused_alike() -> None:
    for given, message in (
        ({"signs": [1, 0, 1]}, "expects signs as 3 numbers 1 or -1"),
        ({"signs": [1, 1]}, "expects signs as 3 numbers 1 or -1"),
        ({"permutation": [0, 1]}, "holds 2 entries at dim 3"),
        ({"permutation": [0, 0, 1]}, "once each"),
        ({"permutation": "shuffle"}, "a list or"),
    ):
        said = []
        for build in (
            lambda g: torch_flows.LULinear(3, **g),
            lambda g: jax_flows.LULinear(3, **g),
            lambda g: torch_flows.Invertible1x1Conv(3, **g),
            lambda g: jax_flows.Invertible1x1Conv(3, **g),
        ):
            with pytest.raises(ValueError, match=message) as error:
                build(given)
            said.append(str(error.value).replace("Invertible1x1Conv", "LULinear"))
        assert len(set(said)) == 1


@pytest.mark.parametrize("half", HALVES)
def test_lu_solves_badly_conditioned_weights(half: str) -> None:
    """Substitution is backward stable; a product with an inverse leaves residuals of 1e2 here."""
    lu = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    z = np.random.default_rng(1).normal(size=(20, 32)).astype(np.float32)
    (x,) = call(half, "linear", "lu_solve", lu, z)
    lower = np.tril(lu, -1).astype(np.float64) + np.eye(32)
    upper = np.triu(lu, 1) + np.diag(np.exp(np.diag(lu).astype(np.float64)))
    residual = np.abs((x @ upper.T @ lower.T)[:, ::-1] - z)
    scale = (np.abs(x) @ np.abs(upper.T) @ np.abs(lower.T))[:, ::-1]
    assert np.linalg.cond(lower @ upper) > 1e6
    assert (residual <= 32 * np.finfo(np.float32).eps * scale).all()
    assert torch_flows.LULinear(5).condition().item() == pytest.approx(1)


# splines


def spline(half: str, x: np.ndarray, parameters: np.ndarray, bound: float, inverse: bool = False):
    return call(half, "splines", "rational_quadratic", x, parameters, bound, inverse=inverse)


@pytest.mark.parametrize("half", HALVES)
def test_spline_against_nflows(half: str) -> None:
    with np.load(Path(__file__).parent / "golden" / "nflows_spline.npz") as golden:
        for direction in ("forward", "inverse"):
            y, log_slope = spline(
                half,
                golden["x"],
                golden["parameters"],
                float(golden["tail_bound"]),
                direction == "inverse",
            )
            np.testing.assert_allclose(y, golden[direction], rtol=0, atol=1e-11)
            np.testing.assert_allclose(log_slope, golden[f"{direction}_log_slope"], atol=1e-10)


@half_and_dtype
def test_spline_kernels_against_mpmath(half: str, dtype: Any) -> None:
    generator = np.random.default_rng(0)
    width, height = 10 ** generator.uniform(-3, 1, (2, 40))
    d0, d1 = 10 ** generator.uniform(-3, 3, (2, 40))
    share = np.concatenate(
        [generator.uniform(0, 1, 30), [0, 0, 1, 1, 1e-6, 1 - 1e-6, 0.5, 0, 1, 0.5]]
    )
    zero = np.zeros(40, dtype)
    ends = [
        zero,
        width.astype(dtype),
        zero,
        height.astype(dtype),
        d0.astype(dtype),
        d1.astype(dtype),
    ]
    x = (share * ends[1]).astype(dtype)
    y_in = (share * ends[3]).astype(dtype)
    y, log_slope = call(half, "splines", "forward_in_bin", x, *ends)
    back, back_log_slope = call(half, "splines", "inverse_in_bin", y_in, *ends)
    with mpmath.workdps(60):

        def exact(point: Any, w: Any, h: Any, a: Any, b: Any) -> tuple[Any, Any]:
            xi, s = point / w, h / w
            bottom = s + (a + b - 2 * s) * xi * (1 - xi)
            top = s**2 * (b * xi**2 + 2 * s * xi * (1 - xi) + a * (1 - xi) ** 2)
            return h * (s * xi**2 + a * xi * (1 - xi)) / bottom, mpmath.log(top / bottom**2)

        arguments = [[mpmath.mpf(float(v)) for v in values] for values in (*ends[1:2], *ends[3:])]
        truth = [exact(mpmath.mpf(float(p)), *a) for p, *a in zip(x, *arguments, strict=True)]
        assert_accurate(y, [t[0] for t in truth])
        assert_accurate(log_slope, [t[1] for t in truth])
        eps = mpmath.mpf(float(np.finfo(dtype).eps))
        for point, log_det, target, *a in zip(back, back_log_slope, y_in, *arguments, strict=True):
            value, log_slope_there = exact(mpmath.mpf(float(point)), *a)
            # the residual, in units of what rounding x and y themselves does
            slope = mpmath.exp(log_slope_there)
            scale = a[1] + slope * a[0]
            assert abs(value - mpmath.mpf(float(target))) <= 8 * eps * scale
            root = mpmath.findroot(
                lambda p, a=a, target=target: exact(p, *a)[0] - mpmath.mpf(float(target)),
                (0, a[0]),
                solver="anderson",
                tol=1e-60,
                verify=False,
            )
            assert abs(-mpmath.mpf(float(log_det)) - exact(root, *a)[1]) <= 64 * eps


def ends_of_bins(half: str, x: np.ndarray, knots: np.ndarray, inverse: bool) -> list[np.ndarray]:
    (ends,) = call(half, "splines", "select_bin", x, knots, inverse)
    (slopes,) = call(half, "splines", "slope_of", ends[4:], MIN_DERIVATIVE)
    return [*ends[:4], *slopes]


@pytest.mark.parametrize("half", HALVES)
def test_spline_float32_on_its_own_knots(half: str) -> None:
    """Weights of scale 3: libraries that cancel lose 0.07 nats here."""
    generator = np.random.default_rng(0)
    parameters = 3 * generator.normal(size=(20000, 23)).astype(np.float32)
    x = generator.uniform(-5, 5, 20000).astype(np.float32)
    (knots,) = call(half, "splines", "spline_knots", parameters, 5.0)
    for inverse in (False, True):
        ends = ends_of_bins(half, x, knots, inverse)
        kernel = "inverse_in_bin" if inverse else "forward_in_bin"
        y, log_slope = call(half, "splines", kernel, x, *ends)
        wide = [a.astype(np.float64) for a in (x, *ends)]
        exact_y, exact_log_slope = call("torch", "splines", kernel, *wide)
        assert np.abs(y - exact_y).max() < 1e-5
        assert np.abs(log_slope - exact_log_slope).max() < 1e-5


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1.0), (np.float32, 64.0)])
def test_spline_at_knots_and_bounds(half: str, dtype: Any, bound: float) -> None:
    """Gradients at ties are exp(log slope); at the bounds 1; the identity beyond them, exactly.

    nflows indexes out of bounds at x == tail_bound == 64 in float32.
    """
    parameters = 0.5 * np.random.default_rng(0).normal(size=(6, 1, 11)).astype(dtype)
    (knots,) = call(half, "splines", "spline_knots", parameters[:, 0], bound)
    just_inside = np.nextafter(dtype(bound), dtype(0))
    others = [-1e30, -bound, -just_inside, just_inside, bound, 3 * bound, np.inf, np.nan]
    others = np.broadcast_to(np.array(others, dtype), (6, 8))
    for inverse in (False, True):
        x = np.concatenate([knots[int(inverse)].T, others], 1)
        y, log_slope, slope = _spline_and_slope(half, x, parameters, bound, inverse)
        eps = np.finfo(dtype).eps
        on_knots, on_bounds = slice(0, 5), [0, 4, 6, 9]
        np.testing.assert_allclose(y[:, on_knots], knots[int(not inverse)].T, atol=64 * bound * eps)
        np.testing.assert_allclose(np.log(slope[:, :13]), log_slope[:, :13], atol=64 * eps)
        assert (slope[:, on_bounds] == 1).all()
        identity = [0, 4, 5, 6, 9, 10, 11]
        assert (y[:, identity] == x[:, identity]).all()
        assert (log_slope[:, identity] == 0).all()
        assert np.abs(log_slope[:, [7, 8]]).max() < 1e4 * eps
        assert np.isnan([y[:, -1], log_slope[:, -1]]).all()


def _spline_and_slope(half: str, *arguments: Any) -> list[np.ndarray]:
    x, parameters, bound, inverse = arguments
    if half == "torch":
        point = torch.from_numpy(x).requires_grad_()
        wide = torch.from_numpy(parameters).expand(*x.shape, -1)
        y, log_slope = Splines(torch_splines).rational_quadratic(point, wide, bound, inverse)
        slope = torch.autograd.grad(y.sum(), point)[0]
        return [a.detach().numpy() for a in (y, log_slope, slope)]

    def total(point: jax.Array) -> tuple[jax.Array, Any]:
        wide = jnp.broadcast_to(parameters, (*x.shape, parameters.shape[-1]))
        outputs = Splines(jax_splines).rational_quadratic(point, wide, bound, inverse)
        return outputs[0].sum(), outputs

    slope, outputs = jax.jit(jax.grad(total, has_aux=True))(x)
    return [np.asarray(a) for a in (*outputs, slope)]


@pytest.mark.parametrize("half", HALVES)
def test_spline_extremes(half: str) -> None:
    """Values where flowjax gives NaN, nflows asserts, and derivatives of 1e9."""
    generator = np.random.default_rng(0)
    for scale in (5, 100, 1e9):
        parameters = (scale * generator.normal(size=(20000, 23))).astype(np.float32)
        (knots,) = call(half, "splines", "spline_knots", parameters, 4.0)
        least = np.diff(knots[:2], axis=1).min()
        assert least >= 8 * MIN_SIZE * (1 - 1e-3)
        x = generator.uniform(-6, 6, 20000).astype(np.float32)
        for inverse in (False, True):
            y, log_slope = spline(half, x, parameters, 4.0, inverse)
            assert np.isfinite(y).all()
            assert np.isfinite(log_slope).all()
            assert (np.abs(y) <= np.maximum(4, np.abs(x))).all()
    flat = np.zeros((1, 23), np.float32)
    flat[:, 16:] = -1e9
    (knots,) = call(half, "splines", "spline_knots", flat, 4.0)
    ends = ends_of_bins(half, np.zeros(1, np.float32), knots, False)
    np.testing.assert_allclose(ends[4:], MIN_DERIVATIVE)
    # the bin of flowjax's NaN
    ends = [
        np.array([v], np.float32) for v in (0.15847, 3.81482, 3.85057, 3.99689, 0.0012047, 13.83)
    ]
    y = np.array([3.9968886], np.float32)
    x, log_slope = call(half, "splines", "inverse_in_bin", y, *ends)
    forward, forward_log_slope = call(half, "splines", "forward_in_bin", x, *ends)
    np.testing.assert_allclose(forward, y, rtol=1e-6)
    assert abs(log_slope + forward_log_slope) < 1e-4


@pytest.mark.parametrize("half", HALVES)
def test_spline_at_its_own_steep_knots(half: str) -> None:
    """A compiler that rounds a knot differently in two places makes log slopes of these NaN."""
    parameters = 3 * np.random.default_rng(0).normal(size=(20000, 1, 23)).astype(np.float32)
    (knots,) = call(half, "splines", "spline_knots", parameters[:, 0], 3.7)
    parameters = np.repeat(parameters, 7, 1)
    for inverse in (False, True):
        x = np.ascontiguousarray(knots[int(inverse), 1:-1].T)
        for output in spline(half, x, parameters, 3.7, inverse):
            assert np.isfinite(output).all()


def test_spline_gradcheck_at_knots() -> None:
    parameters = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    knots = Splines(torch_splines).spline_knots(parameters, 2.0)
    for inverse in (False, True):
        x = torch.cat([knots[int(inverse)].T, torch.tensor([[0.0], [-3.0]]).double()], 1)
        x.requires_grad_()
        wide = parameters.unsqueeze(1).expand(2, 5, 8)
        images = lambda x, inverse=inverse, wide=wide: Splines(torch_splines).rational_quadratic(  # noqa: E731
            x, wide, 2.0, inverse
        )[0]
        assert torch.autograd.gradcheck(images, x)


def test_coupling_extremes() -> None:
    """Weights of scale 10 and inputs of 1e3: finite values and gradients in both."""
    generator = np.random.default_rng(0)
    model = torch_flows.SplineCoupling(4, (16, 16))
    state = {
        name: (10 * generator.normal(size=p.shape)).astype(np.float32)
        for name, p in model.state_dict().items()
    }
    model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state.items()})
    twin = jax_flows.build(architecture(model))
    variables = torch_to_jax(state, twin.shapes())
    x = (1e3 * generator.normal(size=(50, 4))).astype(np.float32)
    x[:10] /= 1e3
    point = torch.from_numpy(x.copy()).requires_grad_()
    outputs = (*model.forward(point), *model.inverse(point))
    gradients = torch.autograd.grad(sum(o.sum() for o in outputs), [point, *model.parameters()])
    assert all(a.isfinite().all() for a in (*outputs, *gradients))

    def total(variables: Any, x: Any) -> Any:
        outputs = (*twin.forward(variables, x), *twin.inverse(variables, x))
        return sum(o.sum() for o in outputs), outputs

    gradients, outputs = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(variables, x)
    assert all(jnp.isfinite(a).all() for a in jax.tree.leaves((gradients, outputs)))


# couplings and models


def test_couplings_compute_only_what_they_need() -> None:
    torch.manual_seed(0)
    for make in (
        lambda: torch_flows.AdditiveCoupling(5, (7,), [1, 0, 0, 1, 0], context_dim=2),
        lambda: torch_flows.SplineCoupling(5, (7,), [1, 0, 0, 1, 0], num_bins=4, context_dim=2),
    ):
        coupling = make().double()
        first, last = coupling.network.layers
        assert first.weight.shape == (7, 4)
        assert last.weight.shape[0] in (3, 3 * 11)
        x, context = torch.randn(6, 5).double(), torch.randn(6, 2).double()
        z, log_det = coupling.forward(x, context)
        assert torch.equal(z[:, [0, 3]], x[:, [0, 3]])
        if coupling.map == torch_flows.ShiftMap():
            assert (log_det == 0).all()


@pytest.mark.parametrize("name", ["AdditiveCoupling", "SplineCoupling", "NICE", "NeuralSplineFlow"])
def test_dim_1_says_what_to_use(name: str) -> None:
    for half in (torch_flows, jax_flows):
        with pytest.raises(ValueError, match="at dim 1: a coupling needs dim 2 or more; use"):
            getattr(half, name)(1)


def test_bad_splines() -> None:
    for half in (torch_flows, jax_flows):
        for arguments, message in (
            ({"num_bins": 0}, "num_bins to be an integer of at least 1"),
            ({"num_bins": 1000}, "num_bins below 1000, got 1000"),
            ({"tail_bound": -1.0}, "tail_bound to be a number above 0"),
        ):
            with pytest.raises(ValueError, match=message):
                half.SplineCoupling(2, **arguments)


def test_equal_blocks_scan() -> None:
    keys = list(jax_flows.NeuralSplineFlow(4, (3,), 5).shapes()["params"]["bijector"])
    assert keys == ["bijectors_0:10:2", "bijectors_1:10:2"]
    keys = list(jax_flows.NICE(4, (3,), 6).shapes()["params"]["bijector"])
    assert keys == ["bijectors_0:6:2", "bijectors_1:6:2", "bijectors_6"]


def test_nice_preserves_volume_up_to_rescale() -> None:
    flow = torch_flows.NICE(3, (8,)).double()
    with torch.no_grad():
        flow.bijector.bijectors[-1].log_scale.copy_(torch.tensor([0.25, -0.5, 0.375]))
        _, log_det = flow.forward(torch.randn(20, 3, dtype=torch.float64))
    np.testing.assert_allclose(log_det, 0.125, rtol=1e-14)


@pytest.mark.parametrize("make", [
    lambda: torch_flows.NICE(2, (16, 16)),
    lambda: torch_flows.NeuralSplineFlow(2, (16,), 2, tail_bound=4.0),
    lambda: torch_flows.Flow(torch_flows.LULinear(2), torch_flows.GaussianMixture(2, 3)),
    lambda: torch_flows.Flow(
        torch_flows.Chain([torch_flows.Rotation(2), torch_flows.Invert(torch_flows.ELU(5.0))]),
        torch_flows.DiagonalNormal(2),
    ),
], ids=["NICE", "NeuralSplineFlow", "GaussianMixture", "Invert-ELU"])  # fmt: skip
def test_density_integrates_to_1(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    flow = make().double().eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            noise = 0.4 * torch.randn_like(parameter)
            parameter.add_(noise / max(1, parameter.shape[-1] if parameter.ndim > 1 else 1) ** 0.5)
        axis = torch.linspace(-8, 8, 641, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        density = flow.log_prob(grid).nan_to_num(-np.inf).exp()  # NaN is outside of the domain
    assert float(density.sum()) * (16 / 640) ** 2 == pytest.approx(1, abs=1e-3)


# base distributions


@pytest.mark.parametrize("half", HALVES)
def test_base_distributions_against_torch_and_scipy(half: str) -> None:
    generator = np.random.default_rng(0)
    weights = {
        "logits": generator.normal(size=3),
        "loc": 3 * generator.normal(size=(3, 2)),
        "log_scale": 0.5 * generator.normal(size=(3, 2)),
    }
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=torch.from_numpy(weights["logits"])),
        torch.distributions.Independent(
            torch.distributions.Normal(
                torch.from_numpy(weights["loc"]), torch.from_numpy(weights["log_scale"]).exp()
            ),
            1,
        ),
    )
    shares = np.exp(weights["logits"]) / np.exp(weights["logits"]).sum()
    student = torch.distributions.Independent(
        torch.distributions.StudentT(2.5 * torch.ones(2).double()), 1
    )
    for name, arguments, oracle, cdf in (
        ("GaussianMixture", {"num_components": 3}, mixture, lambda z: sum(
            p * stats.norm.cdf(z, m[0], np.exp(s[0]))
            for p, m, s in zip(shares, weights["loc"], weights["log_scale"], strict=True)
        )),
        ("StudentT", {"df": 2.5}, student, lambda z: stats.t.cdf(z, 2.5)),
    ):  # fmt: skip
        z = 4 * generator.normal(size=(7, 2))
        if half == "torch":
            base = getattr(torch_flows, name)(2, **arguments).double()
            if name == "GaussianMixture":
                base.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
            log_prob = base.log_prob(torch.from_numpy(z)).detach().numpy()
            samples = base.sample((4000,), torch.Generator().manual_seed(0)).detach().numpy()
        else:
            base = getattr(jax_flows, name)(2, **arguments)
            variables = {"params": weights if name == "GaussianMixture" else {}}
            log_prob, samples = jax.jit(
                lambda variables, z, base=base: (
                    base.log_prob(variables, z),
                    base.sample(variables, jax.random.key(0), (4000,)),
                )
            )(variables, z)
        np.testing.assert_allclose(log_prob, oracle.log_prob(torch.from_numpy(z)), rtol=1e-13)
        assert samples.shape == (4000, 2)
        assert stats.kstest(samples[:, 0], cdf).pvalue > 1e-3


def test_samples_from_the_same_noise() -> None:
    generator = np.random.default_rng(0)
    for make in (lambda h: h.GaussianMixture((2, 2), 3), lambda h: h.StudentT((2, 2), 1.5)):
        base, twin = make(torch_flows).double(), make(jax_flows)
        state = {name: a.numpy() for name, a in base.state_dict().items()}
        variables = torch_to_jax(state, twin.shapes())
        noise = generator.uniform(size=(5, *base.noise_shape))
        assert twin.noise_shape == base.noise_shape
        samples = base.from_noise(torch.from_numpy(noise)).detach().numpy()
        assert samples.shape == (5, 2, 2)
        np.testing.assert_allclose(jax.jit(twin.from_noise)(variables, noise), samples, rtol=1e-12)


def test_student_t_far_out() -> None:
    z = np.array([[0.0], [1.0], [1e30], [-1e30]], np.float32)
    expected = stats.t.logpdf(z[:, 0].astype(np.float64), 3)
    point = torch.from_numpy(z).requires_grad_()
    log_prob = torch_flows.StudentT(1, 3).log_prob(point)
    np.testing.assert_allclose(log_prob.detach(), expected, rtol=1e-6)
    assert torch.autograd.grad(log_prob.sum(), point)[0].isfinite().all()
    twin = jax.vmap(jax.value_and_grad(lambda z: jax_flows.StudentT(1, 3).log_prob({}, z)))
    log_prob, gradient = jax.jit(twin)(z)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6)
    assert jnp.isfinite(gradient).all()


def test_energies_need_a_differentiable_base() -> None:
    message = "ReverseKL cannot differentiate through the samples of a GaussianMixture base"
    for half in (torch_flows, jax_flows):
        flow = half.Flow(half.Affine(2), half.GaussianMixture(2, 3))
        state = () if half is torch_flows else (flow.init(jax.random.key(0)),)
        with pytest.raises(ValueError, match=message):
            half.fit_to_energy(flow, *state, lambda x: (x**2).sum(-1), num_steps=1)
    flow = torch_flows.Flow(torch_flows.Affine(2), torch_flows.StudentT(2, 5.0))
    history = torch_flows.fit_to_energy(flow, lambda x: (x**2).sum(-1), num_steps=3, progress=False)
    assert np.isfinite(history.step_losses).all()


def planar_log_det(a: Any, s: Any) -> Any:
    return mpmath.log(s * mpmath.sech(a) ** 2 + mpmath.tanh(a) ** 2)


def planar_log_det_and_slopes(half: str, a: np.ndarray, s: np.ndarray) -> list[np.ndarray]:
    """The log-determinants of points and factors, and their derivatives in a and in log s."""
    if half == "torch":
        inputs = [torch.from_numpy(v).requires_grad_() for v in (a, s)]
        value = torch_planar._log_det(*inputs, inputs[1].log())
        slopes = torch.autograd.grad(value.sum(), inputs)
        return [v.detach().numpy() for v in (value, slopes[0], inputs[1] * slopes[1])]

    def total(a: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = jax_planar._log_det(a, s, jnp.log(s))
        return value.sum(), value

    slopes, value = jax.jit(jax.grad(total, (0, 1), has_aux=True))(a, s)
    return [np.asarray(v) for v in (value, slopes[0], s * slopes[1])]


@half_and_dtype
def test_planar_log_dets_against_mpmath(half: str, dtype: Any) -> None:
    """Near 0 and far out, of factors of all sizes, with derivatives: within 8 eps, 5 as measured."""
    generator, size = np.random.default_rng(0), 30
    a = generator.normal(size=150) * 10 ** generator.uniform(-size, 2, 150)
    s = 10 ** generator.uniform(-size, size, 150)
    a[:100], s[:50] = 3 * generator.normal(size=100), 10 ** generator.uniform(-1, 1, 50)
    a[-5:] = 0
    a, s = a.astype(dtype), s.astype(dtype)
    found = planar_log_det_and_slopes(half, a, s)
    with mpmath.workdps(100):
        points = [(mpmath.mpf(float(x)), mpmath.mpf(float(y))) for x, y in zip(a, s, strict=True)]
        for values, order in zip(found, ((0, 0), (1, 0), (0, 1)), strict=True):
            for value, point in zip(values, points, strict=True):
                truth = mpmath.diff(planar_log_det, point, order) * point[1] ** order[1]
                error = abs(mpmath.mpf(float(value)) - truth)
                # a slope is as exact as s is known from its rounded logarithm
                eps = np.finfo(dtype).eps * (8 + sum(order) * abs(mpmath.log(point[1])) / 2)
                assert error <= eps * max(1, abs(truth)), (point, order)


@pytest.mark.parametrize("half", HALVES)
def test_a_planar_determinant_beyond_all_numbers_is_infinite(half: str) -> None:
    a, s = np.array([0.0, 1.0], np.float32), np.array([np.inf, np.inf], np.float32)
    assert (planar_log_det_and_slopes(half, a, s)[0] == np.inf).all()


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("a", [0.0, 1e-3, 2.0, 30.0])
@pytest.mark.parametrize("s", [1e-8, 0.7, 2.5, 1e20])
def test_second_derivatives_of_planar_log_dets(half: str, a: float, s: float) -> None:
    """At 0 too, where the size of tanh has a kink."""
    if half == "torch":
        point = torch.tensor([a, s], dtype=torch.float64)
        found = torch.autograd.functional.hessian(
            lambda v: torch_planar._log_det(v[0], v[1], v[1].log()), point
        )
    else:
        with jax.enable_x64(True):
            found = jax.hessian(lambda v: jax_planar._log_det(v[0], v[1], jnp.log(v[1])))(
                jnp.array([a, s])
            )
    with mpmath.workdps(80):
        orders = ((2, 0), (1, 1)), ((1, 1), (0, 2))
        truth = [[float(mpmath.diff(planar_log_det, (a, s), o)) for o in row] for row in orders]
    np.testing.assert_allclose(np.asarray(found), truth, rtol=1e-9, atol=1e-14)


def planar_root(t: Any, s: Any, near: Any) -> Any:
    """The a with a + (s - 1) tanh(a) = t, to 40 digits."""
    s = mpmath.mpf(float(s))
    return mpmath.findroot(lambda a: a + (s - 1) * mpmath.tanh(a) - t, mpmath.mpf(float(near)))


def solve_planar(half: str, t: np.ndarray, s: np.ndarray) -> np.ndarray:
    if half == "torch":
        return torch_planar._solve(
            torch.from_numpy(t), torch_planar._curve(torch.from_numpy(s))
        ).numpy()
    return np.asarray(jax_planar._solve(jnp.asarray(t), jax_planar._curve(jnp.asarray(s))))


@half_and_dtype
def test_planar_roots_against_mpmath(half: str, dtype: Any) -> None:
    """Of sizes far apart and near each other: off by 1.8 eps at most, as measured, and what the rounding of
    the two numbers makes of the root."""
    generator, size = np.random.default_rng(0), 8 if dtype == np.float32 else 30
    s = 10 ** generator.uniform(-size, size, 150)
    t = 10 ** generator.uniform(-size, size, 150)
    s[:60], t[:60] = 10 ** generator.uniform(-1, 1, (2, 60))
    t[60:100] = s[60:100] * generator.uniform(0.5, 1.5, 40)
    s, t = s.astype(dtype), t.astype(dtype)
    found = solve_planar(half, t, s)
    with mpmath.workdps(60):
        for a, target, factor in zip(found, t, s, strict=True):
            target, factor = mpmath.mpf(float(target)), mpmath.mpf(float(factor))
            root = planar_root(target, factor, a)
            tanh = mpmath.tanh(root)
            slope = 1 + (factor - 1) / mpmath.cosh(root) ** 2
            rounding = max(1, target / (slope * root), factor * tanh / (slope * root))
            assert abs(a / root - 1) < 4 * np.finfo(dtype).eps * rounding, (target, factor)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(("t", "s"), [(10.0, 2.0), (13.0, 2.0), (1.0, 0.3), (0.2, 5.0)])
def test_derivatives_of_planar_roots_against_mpmath(half: str, t: float, s: float) -> None:
    """The first three in float32, far out too: off by 1e-6 at most, as measured."""
    found: list[Any] = []
    if half == "torch":
        point = torch.tensor([t], requires_grad=True)
        value = torch_planar._solve(point, torch_planar._curve(torch.tensor([s])))
        for _ in range(3):
            (value,) = torch.autograd.grad(value.sum(), point, create_graph=True)
            found.append(value.item())
    else:

        def root(t: Any) -> Any:
            return jax_planar._solve(t, jax_planar._curve(jnp.float32(s)))

        function: Any = root
        for _ in range(3):
            function = jax.grad(function)
            found.append(float(function(jnp.float32(t))))
    near = solve_planar(half, np.array([t]), np.array([s]))[0]
    with mpmath.workdps(60):
        expected = [mpmath.diff(lambda t: planar_root(t, s, near), t, k) for k in (1, 2, 3)]
    np.testing.assert_allclose(found, np.array(expected, float), rtol=1e-5)
