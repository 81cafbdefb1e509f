"""Series coefficients that both halves evaluate, computed exactly."""

from fractions import Fraction


def tanh_series(terms: int) -> tuple[float, ...]:
    """``c`` with ``tanh(a) = a * sum_k c[k] a^(2k)``, from ``tanh' = 1 - tanh^2``."""
    c = [Fraction(1)]
    for n in range(1, terms):
        c.append(-sum((c[i] * c[n - 1 - i] for i in range(n)), Fraction(0)) / (2 * n + 1))
    return tuple(float(x) for x in c)
