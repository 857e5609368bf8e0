"""The explorer's formulas are those of ``analysis``, its heads those of the committed tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from explorer_points import COMPUTE, assert_as_analysis, points
from scipy.optimize import minimize_scalar

import analysis
from analysis import caps
from analysis.lab.tables import read_table

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FORMULAS = (DOCS / "_static" / "explorer" / "formulas.js").read_text(encoding="utf-8")
sys.path.insert(0, str(DOCS))


@pytest.fixture(scope="module")
def engine():
    """Evaluates an expression of JavaScript, in which the formulas are known, and gives its value back through JSON."""
    quickjs = pytest.importorskip("quickjs", reason="the test extra is not installed")
    context = quickjs.Context()
    context.eval(FORMULAS + COMPUTE)
    return lambda expression: json.loads(context.eval(f"JSON.stringify({expression})"))


def test_the_formulas_are_those_of_analysis(engine):
    asked = points(300)
    compared = assert_as_analysis(engine(f"{json.dumps(asked)}.map(compute)"), asked)
    assert compared == {"simplex", "rank", "packing", "softcap"}


def test_norm_products_are_bracketed_as_in_the_committed_table(engine):
    """Which norm product smoothing takes, by ``paper_figures/data/caps.csv``, to its seven digits."""
    for row in read_table(ROOT / "paper_figures" / "data" / "caps.csv").drop_duplicates("model").to_dict("records"):
        c = None if np.isnan(row["softcap"]) else row["softcap"]
        arguments = json.dumps([row["vocab_size"], row["hidden_size"], 1.0, c, row["label_smoothing"]])
        found = engine(f"formulas.neededNorms(...{arguments})")
        np.testing.assert_allclose(found, [row["needed_m_target"], row["enough_m_target"]], rtol=5e-7)


def test_a_norm_product_scales_with_the_temperature(engine):
    for t in (0.25, 4.0):
        at, one = engine(
            f"[formulas.neededNorms(5000, 64, {t}, null, 0.1), formulas.neededNorms(5000, 64, 1, null, 0.1)]"
        )
        np.testing.assert_allclose(at, np.multiply(one, t), rtol=1e-9)


@pytest.mark.parametrize(("m", "v", "d", "t", "c"), [(300.0, 256_000, 2304, 1.0, 30.0), (40.0, 2000, 24, 2.0, 5.0)])
def test_random_rows_under_a_softcap_take_the_best_norm(engine, m, v, d, t, c):
    def minus(x: float) -> float:
        return -caps.confidence_to_gap(caps.random_code_confidence(x, v, d, softcap=c / t), v).item()

    best = minimize_scalar(minus, bounds=(0, m / t), method="bounded", options={"xatol": 1e-9})
    assert best.x < 0.99 * m / t  # the largest norm is not the best one here
    assert engine(f"formulas.reachedGap({m}, {v}, {d}, {t}, {c})") == pytest.approx(-best.fun, rel=1e-9)


def test_the_simplex_reaches_its_ceiling(engine):
    m, v = 5.0, 12
    found = engine(f"[formulas.reachedGap({m}, {v}, 11, 2, null), formulas.reachedGap({m}, {v}, 11, 2, 4)]")
    rows = np.eye(v) - 1 / v
    z = m * rows @ rows.T * v / (v - 1)
    for gap, logits in zip(found, (z, 4 * np.tanh(z / 4)), strict=True):
        p = np.exp(logits / 2) / np.exp(logits / 2).sum(axis=1, keepdims=True)
        assert gap == pytest.approx(caps.confidence_to_gap(p[0, 0], v).item(), rel=1e-9)


@pytest.mark.parametrize(
    ("m", "v", "d", "c", "b"),
    [
        (12.0, 5000, 6, None, 0.1),
        (200.0, 256_000, 2304, 30.0, 0.1),
        (30.0, 1000, 64, 4.0, 0.9),
        (10.0, 1000, 3, 30.0, 0.9),
        (9.0, 8, 16, None, 0.2),
    ],
)
def test_the_ceiling_and_what_is_reached_pass_the_asked_gap_at_their_temperatures(engine, m, v, d, c, b):
    cap = "null" if c is None else c
    acting = f"formulas.actingTemperatures({v}, {d}, {cap}, {b})"
    warm, sure = engine(f"[{acting}.warmest({m}), {acting}.surest({m})]")
    asked = analysis.optimal_gap(b, v)
    for t, side in ((warm * (1 - 1e-9), 1), (warm * (1 + 1e-9), -1)):
        assert side * (analysis.confidence_cap(m, v, d, temperature=t, softcap=c).gap - asked) >= 0
    reached = engine(f"[0.998, 1.002].map((x) => formulas.reachedGap({m}, {v}, {d}, x * {sure}, {cap}))")
    assert reached[0] > asked > reached[1]
    assert sure <= warm * (1 + 1e-9)


def test_the_heads_are_those_of_the_tables():
    pytest.importorskip("docutils", reason="the docs extra is not installed")
    import explorer_page

    found = {head["name"]: head for head in explorer_page.heads()}
    assert {shape.model for shape in analysis.HEAD_SHAPES} < found.keys()
    for shape in analysis.HEAD_SHAPES:
        head = found[shape.model]
        assert (head["D"], head["V"], head["c"]) == (shape.hidden_size, shape.vocab_size, shape.softcap)
    (audited,) = (head for head in found.values() if head["m"] is not None)
    assert (audited["D"], audited["V"]) == (576, 49152)
    assert audited["m"] == pytest.approx(475.7, abs=0.5)
    for name in found:
        assert f'<option value="{name}" ' in explorer_page.markup()
