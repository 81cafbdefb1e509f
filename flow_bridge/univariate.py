"""What the univariate maps of both halves share: their options and the sentences about them."""

import math
from collections.abc import Sequence

import numpy as np

from flow_bridge import checks
from flow_bridge.architecture import count_entries

SCALES = ("exp", "tanh", "softclip", "arctan", "clamp", "softplus", "sigmoid")
"""How ``AffineMap`` turns a raw number into a scale."""

ORDERS = ("scale_shift", "shift_scale", "shift_divide")
"""z = s x + t, z = s (x - t), z = (x - t) / s."""


def check_affine(
    owner: str,
    scale: str,
    bound: float,
    offset: float | None,
    minimum: float,
    order: str,
    low: float,
    high: float,
    clip: float | None,
) -> float:
    """Check the options of ``AffineMap``, and return the offset.

    Where none is given it is the one that makes a raw 0 the scale 1.
    """
    checks.one_of(owner, "scale", scale, SCALES)
    checks.one_of(owner, "order", order, ORDERS)
    checks.positive_number(owner, bound=bound)
    checks.non_negative_number(owner, minimum=minimum)
    checks.interval(owner, low=low, high=high)
    if clip is not None:
        checks.positive_number(owner, clip=clip)
    if offset is not None:
        if isinstance(offset, bool) or not isinstance(offset, int | float):
            raise ValueError(f"{owner} expects offset as a number or None, got {offset!r}.")
        if not math.isfinite(offset):
            raise ValueError(f"{owner} expects offset to be finite, got {offset!r}.")
    if scale not in ("softplus", "sigmoid"):
        if offset or minimum or clip is not None:
            raise ValueError(
                f"{owner} has offset, minimum and clip with softplus and sigmoid only."
            )
        return 0.0
    if offset is not None:
        return float(offset)
    share = (1 - minimum) / (bound if scale == "sigmoid" else 1.0)
    if not 0 < share < (1 if scale == "sigmoid" else math.inf):
        raise ValueError(
            f"{owner} reaches no scale of 1 with bound {bound!r} and minimum {minimum!r}: "
            "choose an offset."
        )
    if scale == "softplus":
        return math.log(math.expm1(share))
    return math.log(share) - math.log1p(-share)


BOUNDARIES = ("identity", "linear", "kinked", "bounded", "circular")
"""What ``SplineMap`` does at the ends of its interval and beyond them."""


def check_spline(
    owner: str,
    num_bins: int,
    low: float,
    high: float,
    boundary: str,
    min_width: float,
    min_height: float,
    min_slope: float,
    edge_slope: float,
    squash: float | None,
) -> None:
    """Raise ``ValueError`` for bins that do not fit, numbers out of range and unknown boundaries."""
    checks.positive_int(owner, num_bins=num_bins)
    check_box(owner, low, high)
    checks.one_of(owner, "boundary", boundary, BOUNDARIES)
    checks.positive_number(owner, min_slope=min_slope)
    check_bins(owner, num_bins, min_width, min_height)
    if min_slope >= 1:
        raise ValueError(f"{owner} expects min_slope below 1, got {min_slope!r}.")
    checks.positive_number(owner, edge_slope=edge_slope)
    least, largest = min_slope, math.inf
    if squash is not None:
        checks.positive_number(owner, squash=squash)
        if squash >= 1:
            raise ValueError(f"{owner} expects squash below 1, got {squash!r}.")
        least, largest = squash, 1 / squash
    if edge_slope == 1:
        return
    if boundary != "identity":
        raise ValueError(f"{owner} has edge_slope with the boundary identity only.")
    if not least < edge_slope < largest:
        raise ValueError(
            f"{owner} expects edge_slope between {least:g} and {largest:g}, got {edge_slope!r}."
        )


def check_bins(owner: str, num_bins: int, min_width: float, min_height: float) -> None:
    """Raise ``ValueError`` for bins that do not fit."""
    checks.non_negative_number(owner, min_width=min_width, min_height=min_height)
    smallest = max(min_width, min_height)
    if num_bins * smallest >= 1:
        raise ValueError(f"{owner} expects num_bins below {1 / smallest:.0f}, got {num_bins}.")


def check_box(owner: str, low: float, high: float) -> None:
    """Raise ``ValueError`` unless low and high bound an interval of a usable width."""
    checks.interval(owner, low=low, high=high)
    if not 1e-15 <= high - low <= 1e15:  # derivatives square the widths of bins
        raise ValueError(
            f"{owner} expects low and high apart by 1e-15 to 1e15, got {low!r} and {high!r}."
        )


def check_pieces(
    owner: str,
    num_bins: int,
    low: float,
    high: float,
    boundary: str,
    min_width: float,
    min_height: float,
) -> None:
    """Raise ``ValueError`` for bins that do not fit, and for unknown boundaries."""
    checks.positive_int(owner, num_bins=num_bins)
    check_box(owner, low, high)
    checks.one_of(owner, "boundary", boundary, ("identity", "bounded"))
    check_bins(owner, num_bins, min_width, min_height)


def check_share(owner: str, name: str, value: float, high: float = 1.0) -> None:
    """Raise ``ValueError`` unless the value is a number that float32 holds, below ``high``."""
    checks.positive_number(owner, **{name: value})
    checks.open_interval(owner, name, value, 0, high)


def check_polynomial(owner: str, degree: int, largest: int, min_slope: float) -> None:
    """Raise ``ValueError`` for a degree beyond its largest, and for slopes that are no floor."""
    checks.positive_int(owner, degree=degree)
    if degree > largest:
        raise ValueError(f"{owner} expects degree up to {largest}, got {degree}.")
    checks.positive_number(owner, min_slope=min_slope)
    if not 1e-6 <= min_slope < 1:
        raise ValueError(f"{owner} expects min_slope from 1e-6 to below 1, got {min_slope!r}.")


def check_squares(owner: str, num_squares: int, degree: int) -> None:
    """Raise ``ValueError`` for more squares than polynomials of the degree have coefficients."""
    checks.positive_int(owner, num_squares=num_squares)
    if num_squares > degree + 1:
        raise ValueError(
            f"{owner} expects num_squares up to degree + 1 = {degree + 1}, got {num_squares}."
        )


SQUARE_START = 0.1
"""The leading coefficients of the squares after the first; from 0 they could not move."""


def square_starts(degree: int, num_squares: int, min_slope: float) -> np.ndarray:
    """Where the coefficients of a ``SumOfSquaresMap`` start, ``(degree + 1, num_squares)``."""
    starts = SQUARE_START * np.eye(degree + 1, num_squares)
    starts[0, 0] = math.sqrt(1 - min_slope)
    return starts


def _gauss_legendre(num_nodes: int) -> tuple[tuple[float, float], ...]:
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return tuple((float(1 + x) / 2, float(w) / 2) for x, w in zip(nodes, weights, strict=True))


MAX_DEGREE = 15
"""Of the polynomials that ``SumOfSquaresMap`` squares."""

GAUSS_LEGENDRE = {n: _gauss_legendre(n) for n in range(2, MAX_DEGREE + 2)}
"""Nodes and weights on [0, 1] by their number n, exact for polynomials of degree 2 n - 1."""


def slope_offset(min_slope: float) -> float:
    """Added to a raw slope, so that 0 stands for the slope 1."""
    return math.log(math.expm1(1 - min_slope))


def raw_slope(slope: float, min_slope: float, squash: float | None) -> float:
    """The raw number that stands for a slope."""
    if slope == 1:
        return 0.0
    if squash is None:
        return math.log(math.expm1(slope - min_slope)) - slope_offset(min_slope)
    return math.log(slope) / (1 - abs(math.log(slope) / math.log(squash)))


ROOT_STEPS, COMPILED_STEPS = 100, 32
"""Steps of the search for an inverse: Newton's end it after 3 to 7 as a rule, after 25 where weights are
3 times as large as usual, and after 65 where they are 100 times; PyTorch's compiled code has all of them."""

DOUBLINGS, COMPILED_DOUBLINGS = 128, 24
"""How often the interval around 0 in which an inverse is searched doubles at most."""

OUTSIDE = ("tangent", "polynomial")
"""What a ``SumOfSquaresMap`` is outside its interval."""


def check_monotone(owner: str, hidden_dims: Sequence[int]) -> tuple[int, ...]:
    """The widths of a monotone network's hidden layers; each holds units of both kinds."""
    widths = checks.hidden_widths(owner, hidden_dims)
    if not widths or min(widths) < 2:
        raise ValueError(f"{owner} expects hidden_dims from 2 on, one at least, got {widths}.")
    return widths


def check_dense(owner: str, hidden_dims: Sequence[int], bound: float) -> tuple[int, ...]:
    """The widths of the layers of a ``DenseSigmoidMap``."""
    widths = checks.some_hidden_widths(owner, hidden_dims)
    checks.open_interval(owner, "bound", bound, 0, 10)
    return widths


def dense_layers(widths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Of each layer of a ``DenseSigmoidMap`` the numbers of its inputs, units and outputs."""
    return list(zip((1, *widths[:-1]), widths, (*widths[:-1], 1), strict=True))


INTEGRAND_LOG = 7.0
"""The log of what an ``IntegratedNetworkMap`` integrates stays within this of 0, as in zuko."""


def check_integrand(
    owner: str, hidden_dims: Sequence[int], bound: float, num_intervals: int
) -> tuple[int, ...]:
    """The widths of the network that an ``IntegratedNetworkMap`` integrates."""
    check_box(owner, -bound, bound)
    checks.positive_int(owner, num_intervals=num_intervals)
    count_entries(2 * num_intervals + 1)
    return checks.hidden_widths(owner, hidden_dims)


Starts = list[tuple[list[list[float]], list[float]]]


def integrand_starts(widths: Sequence[int], bound: float) -> Starts:
    """Where weights and biases of its layers start: steps along the interval, and no outputs."""
    starts, below = [], 1
    for i, width in enumerate(widths):
        # steps in turn where there are more units than below
        weight = [[float(j % below == k) for k in range(below)] for j in range(width)]
        edges = [bound * (1 - (2 * j + 1) / width) for j in range(width)]
        starts.append((weight, [0.0] * width if i else edges))
        below = width
    return [*starts, ([[0.0] * below], [0.0])]


def spread(width: int) -> list[float]:
    """Where the biases of a layer of a monotone network start: one half of the units as the other."""
    if width == 1:
        return [0.0]
    halves = ((width + 1) // 2, width // 2)
    return [(2 * i + 1) / half - 1 for half in halves for i in range(half)]


TAIL_SCALE = 3.25
TAIL_EXCESS = {
    32: (
        (0.260883702, 0.225919303, 0.609559019, 0.208433938, 0.262475725, 0.307692297),
        (0.619807111, -0.786798948, 1.64984578, 0.0140267829, -0.146961865, 1.0),
    ),
    64: (
        (
            -0.004808997008977502, 0.16786318692215207, 0.4614946563492175, 1.0677982816365377,
            0.9830445205728047, 2.336631370931105, 0.37107472127724755, 2.787044364809021,
            -0.4138378695337773, 1.5880192257345465, -0.2250930182303599, 0.3076923076923077,
        ),
        (
            0.028929588009839052, 0.33566970584642597, -0.09525439916265406, 2.6358667946923213,
            -2.5921800829169075, 8.429990700881865, -7.200493663881468, 11.377160542931746,
            -6.455205227056318, 6.081963905303483, -1.7315523092486211, 1.0,
        ),
    ),
}  # fmt: skip
"""By bits of a number: phi(t) / Phi(-t) - t over s = 3.25 / (3.25 + t) is a quotient of polynomials in s, to
4e-8 and 8e-17 for t from 0 to infinity (interpolated in Chebyshev's points; from the highest power on)."""

TAIL_START = {
    32: (
        (-764465.906, 161580.971, 1024523.7, 173080.609, 3992.32877, 9.03911545),
        (-609578.528, 342283.089, 398415.241, 41307.5088, 654.894942, 1.0),
    ),
    64: (
        (-857.952259, 1449.03417, 419.14399, 7.2711434),
        (-275.344977, -213.647046, 713.575316, 100.50106, 1.0),
    ),
}
"""With L = log Phi(-t), r = (-2 L)^(1/2) and v = 1 / (1 + r): (r - t) / v is a quotient of polynomials in v.
It makes t right to 6e-8 (1 + t), and to 6e-6 max(1, t) in float64, where a step of Halley's leaves 5e-17."""
