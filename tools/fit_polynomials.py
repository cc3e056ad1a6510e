"""Fits the polynomials of csrc/math/elementary.h and csrc/math/gamma.h and prints them with their worst error after rounding to float32.

Each is a Chebyshev interpolant in 60-digit arithmetic (within a small factor of minimax), rounded to float32 and checked there; that of
csrc/cpu/logits.h, which is shorter, is a minimax fit by Lawson's method (iteratively reweighted least squares).
Needs mpmath. Run: python tools/fit_polynomials.py
"""

import mpmath as mp
import numpy as np

mp.mp.dps = 60


def fit(f, low, high, degree):
    """Coefficients c_0..c_degree of the Chebyshev interpolant of f on [low, high]."""
    low, high = mp.mpf(low), mp.mpf(high)
    nodes = [mp.cos(mp.pi * (2 * i + 1) / (2 * degree + 2)) for i in range(degree + 1)]
    xs = [(low + high) / 2 + (high - low) / 2 * t for t in nodes]
    rows = mp.matrix(degree + 1, degree + 1)
    for i, x in enumerate(xs):
        for j in range(degree + 1):
            rows[i, j] = x**j
    return [float(c) for c in mp.lu_solve(rows, mp.matrix([f(x) for x in xs]))]


def near_zero(f, series):
    """f, or its limit at 0."""
    return lambda x: mp.mpf(series) if abs(x) < mp.mpf(10) ** -25 else f(x)


def binet(z):
    """The remainder of Stirling's formula: DLMF 5.11.1."""
    return mp.loggamma(z) - ((z - mp.mpf(0.5)) * mp.log(z) - z + mp.log(2 * mp.pi) / 2)


def binet_slope(z):
    return mp.log(z) - 1 / (2 * z) - mp.digamma(z)


CASES = {
    # name: (what is fitted, its limit at 0, range, degree)
    "exp: (e^r - 1 - r) / r^2": (lambda r: (mp.expm1(r) - r) / r**2, 0.5, (-0.3466, 0.3466), 4),
    "phi: (e^u - 1 - u) / u^2": (lambda u: (mp.expm1(u) - u) / u**2, 0.5, (-0.5, 0.5), 6),
    "log: (log(1 + f) - f + f^2/2) / f^3": (lambda f: (mp.log1p(f) - f + f**2 / 2) / f**3, mp.mpf(1) / 3, (-0.2929, 0.4143), 8),
    "log1p on [0, 1]: log(1 + e) / e": (lambda e: mp.log1p(e) / e, 1, (0, 1), 9),
    "log1m on [0, 1/2]: -log(1 - s) / s": (lambda s: -mp.log1p(-s) / s, 1, (0, 0.5), 8),
    "log(sinh(a/2) / (a/2)) / a^2, in a^2": (lambda u: mp.log(mp.sinh(mp.sqrt(u) / 2) / (mp.sqrt(u) / 2)) / u, mp.mpf(1) / 24, (0, 4), 4),
    "(coth(a/2) / 2 - 1/a) / a, in a^2": (lambda u: (mp.coth(mp.sqrt(u) / 2) / 2 - 1 / mp.sqrt(u)) / mp.sqrt(u), mp.mpf(1) / 12, (0, 4), 4),
    "-(log(1 - p) + p) / p^2": (lambda p: -(mp.log1p(-p) + p) / p**2, 0.5, (0, 0.5), 8),
    "sin: sin(2 pi r) / r, in r^2": (lambda t: mp.sin(2 * mp.pi * mp.sqrt(t)) / mp.sqrt(t), 2 * mp.pi, (0, 1 / 64), 3),
    "cos: cos(2 pi r), in r^2": (lambda t: mp.cos(2 * mp.pi * mp.sqrt(t)), 1, (0, 1 / 64), 4),
    "binet: z binet(z), in w = 1 / z": (lambda w: binet(1 / w) / w, mp.mpf(1) / 12, (0, 1), 6),
    "binet_slope: z^2 binet_slope(z), in w = 1 / z": (lambda w: binet_slope(1 / w) / w**2, mp.mpf(1) / 12, (0, 1), 7),
}

for name, (f, limit, (low, high), degree) in CASES.items():
    f = near_zero(f, limit)
    c = [np.float32(v) for v in fit(f, low, high, degree)]
    xs = np.linspace(low, high, 4001)
    exact = np.array([float(f(mp.mpf(float(x)))) for x in xs])
    approx = sum(float(v) * xs**j for j, v in enumerate(c))
    print(f"{name}  worst relative error {np.max(np.abs(approx / exact - 1)):.1e}")
    print("  ", ", ".join(f"{v:.9g}f" for v in c))


def least_worst(basis, want):
    """Coefficients of the columns of ``basis`` whose greatest error is least, and that error."""
    weight, best_error, best = np.ones_like(want), np.inf, None
    for _ in range(400):
        c = np.linalg.lstsq(basis * np.sqrt(weight)[:, None], want * np.sqrt(weight), rcond=None)[0]
        error = np.abs(basis @ c - want)
        if error.max() < best_error:
            best_error, best = error.max(), c
        weight *= error + 1e-12
        weight /= weight.sum()
    return best, best_error


# e^r = 1 + r + r^2 p(r) and 2^r = 1 + r p(r), the greatest relative error least
r = np.linspace(-0.34658, 0.34658, 20001)
c, error = least_worst(np.stack([r**j for j in (2, 3, 4, 5)], 1) / np.exp(r)[:, None], (np.expm1(r) - r) / np.exp(r))
print(f"exp, 5th degree: (e^r - 1 - r) / r^2  worst relative error of e^r {error:.1e}")
print("  ", ", ".join(f"{np.float32(v):.9g}f" for v in c))
r = np.linspace(-0.5004, 0.5004, 20001)
c, error = least_worst(np.stack([r**j for j in (1, 2, 3, 4, 5)], 1) / np.exp2(r)[:, None], (np.exp2(r) - 1) / np.exp2(r))
print(f"exp2, 5th degree: (2^r - 1) / r  worst relative error of 2^r {error:.1e}")
print("  ", ", ".join(f"{np.float32(v):.9g}f" for v in c))

# The same two in double: quotients of polynomials of degree 8 through the values at 17 Chebyshev nodes, q0 = 1
for name, f, power in (("binet", binet, 1), ("binet_slope", binet_slope, 2)):
    nodes = [(1 + mp.cos(mp.pi * (2 * i + 1) / 34)) / 2 for i in range(17)]
    values = [f(1 / w) / w**power for w in nodes]
    rows = mp.matrix([[w**j for j in range(9)] + [-v * w**j for j in range(1, 9)] for w, v in zip(nodes, values, strict=True)])
    c = mp.lu_solve(rows, mp.matrix(values))
    p, q = [c[j] for j in range(9)], [mp.mpf(1), *(c[j] for j in range(9, 17))]
    ws = [mp.mpf(2 * i + 1) / 800 for i in range(400)]
    worst = max(abs(mp.polyval(p[::-1], w) / mp.polyval(q[::-1], w) * w**power - f(1 / w)) for w in ws)
    print(f"{name}, double  worst error {mp.nstr(worst, 2)}")
    for called, of in (("p", p), ("q", q)):
        print(f"   {called}", ", ".join(f"{float(v):.17g}" for v in of))
