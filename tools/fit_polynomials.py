"""Fits the polynomials of csrc/math/elementary.h and prints them with their worst error after rounding to float32.

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


CASES = {
    # name: (what is fitted, its limit at 0, range, degree)
    "exp: (e^r - 1 - r) / r^2": (lambda r: (mp.expm1(r) - r) / r**2, 0.5, (-0.3466, 0.3466), 4),
    "phi: (e^u - 1 - u) / u^2": (lambda u: (mp.expm1(u) - u) / u**2, 0.5, (-0.5, 0.5), 6),
    "log: (log(1 + f) - f + f^2/2) / f^3": (lambda f: (mp.log1p(f) - f + f**2 / 2) / f**3, mp.mpf(1) / 3, (-0.2929, 0.4143), 8),
    "log1p on [0, 1]: log(1 + e) / e": (lambda e: mp.log1p(e) / e, 1, (0, 1), 9),
    "log1m on [0, 1/2]: -log(1 - s) / s": (lambda s: -mp.log1p(-s) / s, 1, (0, 0.5), 8),
    "sin: sin(2 pi r) / r, in r^2": (lambda t: mp.sin(2 * mp.pi * mp.sqrt(t)) / mp.sqrt(t), 2 * mp.pi, (0, 1 / 64), 3),
    "cos: cos(2 pi r), in r^2": (lambda t: mp.cos(2 * mp.pi * mp.sqrt(t)), 1, (0, 1 / 64), 4),
}

for name, (f, limit, (low, high), degree) in CASES.items():
    f = near_zero(f, limit)
    c = [np.float32(v) for v in fit(f, low, high, degree)]
    xs = np.linspace(low, high, 4001)
    exact = np.array([float(f(mp.mpf(float(x)))) for x in xs])
    approx = sum(float(v) * xs**j for j, v in enumerate(c))
    print(f"{name}  worst relative error {np.max(np.abs(approx / exact - 1)):.1e}")
    print("  ", ", ".join(f"{v:.9g}f" for v in c))

# e^r = 1 + r + r^2 p(r), the greatest relative error least
r = np.linspace(-0.34658, 0.34658, 20001)
powers, want, weight = np.stack([r**j for j in (2, 3, 4, 5)], 1) / np.exp(r)[:, None], (np.expm1(r) - r) / np.exp(r), np.ones_like(r)
best_error, best = np.inf, None
for _ in range(400):
    c = np.linalg.lstsq(powers * np.sqrt(weight)[:, None], want * np.sqrt(weight), rcond=None)[0]
    error = np.abs(powers @ c - want)
    if error.max() < best_error:
        best_error, best = error.max(), c
    weight *= error + 1e-12
    weight /= weight.sum()
print(f"exp, 5th degree: (e^r - 1 - r) / r^2  worst relative error of e^r {best_error:.1e}")
print("  ", ", ".join(f"{np.float32(v):.9g}f" for v in best))
