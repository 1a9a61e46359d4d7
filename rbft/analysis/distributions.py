"""Student's t distribution, which the standard library lacks."""

import math

TINY = 1e-300
PRECISION = 1e-15
STEPS = 10_000  # of the continued fraction; some hundred do for what a t test asks


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), from 0 to 1.

    By its continued fraction (DLMF 8.17.22), evaluated with the modified Lentz method.

    Args:
        a: First parameter, above 0.
        b: Second parameter, above 0.
        x: From 0 to 1.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    # The fraction converges fast on this side of the mean; I_x(a, b) = 1 - I_(1-x)(b, a).
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    log_front = a * math.log(x) + b * math.log1p(-x) - math.log(a)
    log_front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    # 1 / (1 + d1 / (1 + d2 / (1 + ...))): Lentz's ratios of successive denominators.
    above, below = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = below
    for m in range(1, STEPS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            below = 1 / (1 + term * below or TINY)
            above = 1 + term / above or TINY
            value *= above * below
        if abs(above * below - 1) < PRECISION:
            break
    return math.exp(log_front) * value


def t_two_sided(t: float, freedom: int) -> float:
    """P(|T| >= |t|) of Student's t distribution.

    Args:
        t: The value.
        freedom: Degrees of freedom, 1 or more.
    """
    return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def t_quantile(level: float, freedom: int) -> float:
    """The t for which P(|T| <= t) is the level, 0 < level < 1.

    Args:
        level: Of a two-sided interval, such as 0.95.
        freedom: Degrees of freedom, 1 or more.
    """
    low, high = 0.0, 1.0
    while t_two_sided(high, freedom) > 1 - level:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_two_sided(middle, freedom) > 1 - level else (low, middle)
    return high
