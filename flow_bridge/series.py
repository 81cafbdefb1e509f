"""Series and constants that both halves evaluate, computed exactly."""

import math
from fractions import Fraction


def tanh_series(terms: int) -> tuple[float, ...]:
    """``c`` with ``tanh(a) = a * sum_k c[k] a^(2k)``, from ``tanh' = 1 - tanh^2``."""
    c = [Fraction(1)]
    for n in range(1, terms):
        c.append(-sum((c[i] * c[n - 1 - i] for i in range(n)), Fraction(0)) / (2 * n + 1))
    return tuple(float(x) for x in c)


def student_t_constant(df: float) -> float:
    """lgamma((df + 1) / 2) - lgamma(df / 2) - log(pi df) / 2, to a few eps for every df.

    With x = df / 2, lgamma(x + 1/2) - lgamma(x) is log(x) / 2 - 1 / (8 x) + 1 / (192 x^3) - ...; for
    small x it is brought to x + n by n logarithms, all of one sign.
    """
    x = df / 2
    n = max(0, math.ceil(16 - x))
    logs = [-math.log1p(0.5 / (x + k)) for k in range(n)]
    y = x + n
    odd = [-1 / 8, 1 / 192, -1 / 640, 17 / 14336, -31 / 18432, 691 / 180224]
    series = [c / y ** (2 * k + 1) for k, c in enumerate(odd)] if y < 1e16 else []
    return math.fsum([(math.log(y) - math.log(x)) / 2 - math.log(2 * math.pi) / 2, *series, *logs])
