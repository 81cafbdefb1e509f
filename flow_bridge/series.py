"""Series and constants that both halves evaluate, computed exactly."""

import math
from fractions import Fraction
from functools import cache
from itertools import zip_longest


def tanh_excess(depth: int) -> tuple[tuple[float, ...], ...]:
    """Two polynomials p and q with a - tanh(a) = a^3 p(a^2) / q(a^2), the highest power first.

    From tanh(a) = a / (1 + a^2 / (3 + a^2 / (5 + ...))), cut after ``depth`` terms. All coefficients are
    positive, so that nothing cancels.
    """
    above, below = [1], [2 * depth - 1]  # of a / tanh(a), from the last term on
    for odd in range(2 * depth - 3, 0, -2):
        terms = zip_longest(below, [0, *above], fillvalue=0)
        above, below = below, [odd * b + a for b, a in terms]
    excess = [b - a for b, a in zip_longest(below, above, fillvalue=0)][1:]
    return tuple(
        tuple(float(Fraction(c, below[0])) for c in reversed(polynomial) if c)
        for polynomial in (excess, below)
    )


TANH_EXCESS = {bits: tanh_excess(depth) for bits, depth in ((16, 5), (32, 5), (64, 8))}
"""By the bits of a number: what is exact to its rounding below a = 1/2."""


@cache
def von_mises_series(concentration: float) -> tuple[float, tuple[float, ...]]:
    """log(2 pi I_0(k)) - k, and the ratios I_j(k) / I_0(k) for j = 1, 2, ... as far as they count.

    By the trapezoid over a whole period, which is exact to rounding: exp(k (cos t - 1)) has no
    frequencies beyond those that are returned.
    """
    count = math.ceil((80 * concentration) ** 0.5) + 12
    angles = [2 * math.pi * n / (2 * count) for n in range(2 * count)]
    weights = [math.exp(-2 * concentration * math.sin(t / 2) ** 2) for t in angles]
    total = math.fsum(weights)
    ratios = [
        math.fsum(w * math.cos(j * t) for w, t in zip(weights, angles, strict=True)) / total
        for j in range(1, count)
    ]
    return math.log(2 * math.pi * total / (2 * count)), tuple(ratios)


GAMMA_SERIES = (-1 / 8, 1 / 192, -1 / 640, 17 / 14336, -31 / 18432, 691 / 180224)
GAMMA_STEPS = 16
"""lgamma(x + 1/2) - lgamma(x) - log(x) / 2 in 1 / x, 1 / x^3, ..., and from where on."""


def student_t_constant(df: float) -> float:
    """lgamma((df + 1) / 2) - lgamma(df / 2) - log(pi df) / 2, to a few eps for every df.

    With x = df / 2, lgamma(x + 1/2) - lgamma(x) is log(x) / 2 - 1 / (8 x) + 1 / (192 x^3) - ...; for
    small x it is brought to x + n by n logarithms, all of one sign.
    """
    x = df / 2
    n = max(0, math.ceil(GAMMA_STEPS - x))
    logs = [-math.log1p(0.5 / (x + k)) for k in range(n)]
    y = x + n
    series = [c / y ** (2 * k + 1) for k, c in enumerate(GAMMA_SERIES)] if y < 1e16 else []
    return math.fsum([(math.log(y) - math.log(x)) / 2 - math.log(2 * math.pi) / 2, *series, *logs])
