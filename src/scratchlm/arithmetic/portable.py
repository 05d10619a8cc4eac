"""exp, log and cos of a number, correctly rounded, so the same bits on every machine.

math's functions call the C library, whose last bit differs between glibc, musl and macOS, and numpy's differ by
instruction set. Here `decimal` computes with integers to 60 digits and one conversion rounds to float64. The hardest
arguments in float64 need about 36 digits. Source: Lefèvre and Muller 2001.

A call takes 10 to 30 µs, so these are for metrics and schedules, not for tensors.
"""

from decimal import Context, Decimal, localcontext

DIGITS = 60  # half of them are left for cos(x) near π/2, where 1 - x²/2 + … cancels
CONTEXT = Context(prec=DIGITS)
MAX_COSINE = 4.0


def exp(x: float) -> float:
    """e to the x; 0 or infinity where float64 ends."""
    return float(CONTEXT.exp(Decimal(min(x, 1000.0))))


def log(x: float) -> float:
    """The natural logarithm. Raises ValueError unless x is positive."""
    if not x > 0:
        raise ValueError(f"the logarithm of {x} is not a number")
    return float(CONTEXT.ln(Decimal(x)))


def cos(x: float) -> float:
    """The cosine of x radians, |x| ≤ MAX_COSINE, as Taylor's series: half a turn is all that a schedule needs."""
    assert abs(x) <= MAX_COSINE, x
    with localcontext(CONTEXT):
        term = total = Decimal(1)
        square, n = Decimal(x) ** 2, 0
        while total + term != total:
            n += 2
            term = -term * square / (n * (n - 1))
            total += term
        return float(total)
