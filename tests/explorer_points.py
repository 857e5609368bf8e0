"""Points at which the explorer's formulas are compared with ``analysis``, wherever their script runs."""

from __future__ import annotations

from typing import Any

import numpy as np

import analysis
from analysis import caps, smoothing

# What the page computes at one point, as one list of numbers; the name of the bound is compared apart.
COMPUTE = """
const compute = ({m, V, D, T, c, b}) => {
  const cap = formulas.ceiling(m, V, D, T, c);
  return [cap.name, cap.gap, cap.confidence, formulas.softcapGap(m, V, T, c), formulas.optimalGap(b, V),
    formulas.optimalConfidence(b, V), formulas.effectivenessRatio(m, V, b, T, c),
    formulas.restoringTemperature(m, V, b, c), formulas.gapToConfidence(formulas.randomRowsGap(m, D, c), V)];
};
"""
Point = dict[str, Any]


def points(number: int) -> list[Point]:
    """Shapes, norms, temperatures, caps and smoothing as far as the page lets one set them; some of low rank."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(number):
        v = int(np.exp(rng.uniform(np.log(2), np.log(1e7))))
        d = int(np.exp(rng.uniform(0, np.log(2 * np.log(v) + 2 if i % 3 == 0 else 1e6))))
        found.append(
            {
                "m": float(np.exp(rng.uniform(np.log(0.1), np.log(5000)))),
                "V": v,
                "D": max(d, 1),
                "T": float(np.exp(rng.uniform(np.log(0.1), np.log(20)))) if i % 2 else 1.0,
                "c": float(np.exp(rng.uniform(np.log(0.1), np.log(1000)))) if i % 4 == 1 else None,
                "b": float(rng.uniform(0.001, 0.99)),
            }
        )
    return found


def column(found: list[Point], name: str) -> np.ndarray:
    return np.array([p[name] for p in found])


def assert_as_analysis(found: list[list[Any]], asked: list[Point]) -> set[str]:
    """Compare all at once, those without a softcap and those with one; returns the bounds that were compared."""
    assert len(found) == len(asked) >= 300
    names = set()
    for capped in (False, True):
        got, some = zip(
            *((f, p) for f, p in zip(found, asked, strict=True) if (p["c"] is not None) == capped), strict=True
        )
        m, v, d, t, b = (column(some, name) for name in "mVDTb")
        c = column(some, "c") if capped else None
        cap = analysis.confidence_cap(m, v, d, temperature=t, softcap=c)
        expected = [
            cap.gap,
            cap.confidence,
            caps.softcap_gap(m, v, c, temperature=t),
            analysis.optimal_gap(b, v),
            smoothing.optimal_confidence(b, v),
            analysis.effectiveness_ratio(m, v, b, temperature=t, softcap=c),
            analysis.restoring_temperature(m, v, b, softcap=c),
            caps.random_code_confidence(m, v, d, softcap=c),
        ]
        assert [row[0] for row in got] == cap.name.tolist()
        np.testing.assert_allclose([row[1:] for row in got], np.stack(expected, axis=1), rtol=1e-9, atol=1e-12)
        names |= set(cap.name.tolist())
    return names
