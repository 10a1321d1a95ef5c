"""Writes renyi_sampled_gaussian.json: 40-digit Gauss-Legendre quadrature of the Poisson-sampled Gaussian's Renyi curve.

Run with ``python tests/golden/make_renyi_golden.py`` (some minutes). It shares no code with the library: it integrates
the definition in multiple precision on panels as narrow as the integrand's singularities demand.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import mpmath as mp

mp.mp.dps = 40
RATES = (1e-7, 1e-4, 512 / 60000, 0.3, 0.999)
SIGMAS = (0.05, 0.3, 1.0, 4.0, 100.0)
ORDERS = (1.0001, 1.5, 8.3, 70.7, 9999.5)


def excess_moment(rate, sigma, order):
    """A - 1 = E[(1 + u)^a - 1 - a u], u = q (exp(w) - 1), w = x / sigma - 1 / (2 sigma^2), x standard normal."""
    q, s, a = mp.mpf(rate), mp.mpf(sigma), mp.mpf(order)

    def integrand(x):
        u = q * mp.expm1(x / s - 1 / (2 * s * s))
        return mp.npdf(x) * ((1 + u) ** a - 1 - a * u)

    def rough(x):
        w = x / sigma - 0.5 / sigma**2
        log_likelihood = math.log1p(rate * math.expm1(w)) if w < 600 else w + math.log(rate)
        growth = 2 * math.log(abs(w) * rate + 1e-300) if abs(w) < 1 else 2 * math.log(rate) + 2 * max(w, 0)
        return -x * x / 2 + max(order * log_likelihood if order * log_likelihood > 1 else -math.inf, min(growth, 1.0))

    width = min(1.0, 2 * sigma)
    first, last = -14.0, max(order, 2.0) / sigma + 14.0
    panels = [first + width * k for k in range(int((last - first) / width) + 2)]
    heights = [max(rough(left + width * part) for part in (0, 0.25, 0.5, 0.75, 1)) for left in panels[:-1]]
    highest = max(heights)
    total = mp.mpf(0)
    for left, height in zip(panels, heights, strict=False):
        if height > highest - 110:
            total += mp.quad(integrand, [left, left + width], method="gauss-legendre", maxdegree=4)
    return total


def main():
    rows = []
    for rate, sigma, order in itertools.product(RATES, SIGMAS, ORDERS):
        value = mp.log1p(excess_moment(rate, sigma, order)) / (mp.mpf(order) - 1)
        rows.append({"rate": rate, "sigma": sigma, "order": order, "renyi": mp.nstr(value, 20)})
        print(rows[-1], file=sys.stderr, flush=True)
    path = Path(__file__).with_name("renyi_sampled_gaussian.json")
    path.write_text(json.dumps({"source": "mpmath, 40 digits; make_renyi_golden.py", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
