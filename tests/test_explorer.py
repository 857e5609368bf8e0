"""The page to play with: its formulas are those of ``analysis``, its heads those of the committed tables."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser as chromium
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import analysis
from analysis import caps, smoothing
from analysis.lab.tables import read_table

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FORMULAS = (DOCS / "_static" / "explorer" / "formulas.js").read_text(encoding="utf-8")
sys.path.insert(0, str(DOCS))

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
        v = int(np.exp(rng.uniform(np.log(2), np.log(300_000))))
        d = int(np.exp(rng.uniform(0, np.log(2 * np.log(v) + 2 if i % 3 == 0 else 16_384))))
        found.append(
            {
                "m": float(np.exp(rng.uniform(np.log(0.1), np.log(600)))),
                "V": v,
                "D": max(d, 1),
                "T": float(np.exp(rng.uniform(np.log(0.05), np.log(20)))) if i % 2 else 1.0,
                "c": float(np.exp(rng.uniform(np.log(0.5), np.log(200)))) if i % 4 == 1 else None,
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


CONF = """
import sys
sys.path.insert(0, {docs!r})
extensions = ["myst_parser", "sphinx.ext.mathjax", "explorer_page"]
html_theme, html_css_files, html_static_path = "furo", ["site.css"], [{static!r}, "none.js"]
myst_enable_extensions, root_doc, suppress_warnings = ["dollarmath"], "explorer", ["myst.xref_missing"]
mathjax_path = "none.js"
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[tuple[chromium.Browser, str]]:
    """A browser, and the address of the page: built alone, as the whole site takes a minute."""
    if chromium.PROGRAM is None:
        pytest.skip("no Chromium is installed")
    for name in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(name, reason="the docs extra is not installed")
    root = tmp_path_factory.mktemp("explorer")
    (root / "source").mkdir()
    shutil.copy(DOCS / "explorer.md", root / "source")
    (root / "source" / "none.js").touch()  # formulas stay TeX
    (root / "source" / "conf.py").write_text(CONF.format(docs=str(DOCS), static=str(DOCS / "_static")))
    command = [sys.executable, "-m", "sphinx", "--builder", "html", "--quiet", str(root / "source"), str(root / "site")]
    subprocess.run(command, check=True, capture_output=True)
    with chromium.browser(root / "profile") as driven:
        yield driven, (root / "site" / "explorer.html").as_uri()


def says(driven: chromium.Browser, name: str) -> str:
    return driven.evaluate(f"document.querySelector('[data-say={name}]').textContent")


def value(driven: chromium.Browser, name: str) -> str:
    return driven.evaluate(f"document.querySelector('#explorer-controls [name={name}]').value")


def test_the_browser_computes_as_analysis(page):
    driven, address = page
    driven.open(address)
    asked = points(300)
    found = driven.evaluate(f"{{ {COMPUTE} {json.dumps(asked)}.map(compute) }}")
    assert_as_analysis(found, asked)
    assert driven.errors == []


def test_the_page_says_what_analysis_says(page):
    driven, address = page
    driven.open(f"{address}#head=google/gemma-2-2b&m=12&T=1&b=0.1")
    assert [value(driven, name) for name in "DVcmTb"] == ["2304", "256000", "30", "12", "1", "0.1"]
    cap = analysis.confidence_cap(12.0, 256_000, 2304, softcap=30.0)
    star = analysis.restoring_temperature(12.0, 256_000, 0.1, softcap=30.0)
    assert says(driven, "confidence") == f"{cap.confidence:.3f}"
    assert f"T* = {star:.3f}" in says(driven, "sentence")
    assert says(driven, "verdict") == "Smoothing is expected to be inert: the norms do not allow what it asks for."
    driven.open(f"{address}#head=google/gemma-2-2b&m=12&T=0.5&b=0.1")  # below T*
    assert "expected to act" in says(driven, "verdict")
    driven.open(f"{address}#D=9&V=10&m=3&T=1&b=0.1")  # full width, no softcap: C1 is exact
    assert says(driven, "verdict").startswith("Smoothing is inert")
    assert driven.evaluate("document.querySelectorAll('[data-draw] svg path').length") >= 6
    loaded = driven.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert {name.rpartition("/")[2].partition("?")[0] for name in loaded} >= {
        "formulas.js",
        "drawings.js",
        "explorer.js",
    }
    assert all(name.startswith("file:") for name in loaded), "the page loads something from the network"
    assert driven.errors == []


def test_the_keyboard_reaches_and_moves_everything_and_the_address_holds_it(page):
    driven, address = page
    driven.open(address)
    driven.evaluate("document.querySelector('[name=head]').focus()")
    reached = []
    for _ in range(10):
        reached.append(driven.evaluate("document.activeElement.name || document.activeElement.dataset.of || 'button'"))
        driven.press("Tab")
    assert reached == ["head", "D", "V", "c", "m", "m", "T", "T", "b", "b"]
    driven.evaluate("document.querySelector('[data-of=m]').focus()")
    before = float(value(driven, "m"))
    for _ in range(5):
        driven.press("ArrowRight")
    assert float(value(driven, "m")) == pytest.approx(before * 10**0.05, rel=0.01)
    driven.evaluate("document.querySelector('[name=D]').select()")
    for key in "64":
        driven.press(key)
    assert value(driven, "head") == ""  # no longer the shape of the head that was chosen
    driven.wait(lambda: "D=64" in driven.evaluate("location.hash"))
    held, sentence = driven.evaluate("location.href"), says(driven, "sentence")
    assert "hidden size 64 " in sentence
    driven.open(held)
    assert says(driven, "sentence") == sentence
    driven.evaluate(
        "location.hash = '#head=google/gemma-2-2b'"
    )  # pasted into the same window: what it leaves out is as at first
    driven.wait(lambda: "hidden size 2\u2009304" in says(driven, "sentence"))
    assert [value(driven, name) for name in "mTb"] == ["10", "1", "0.1"]
    driven.evaluate("document.querySelector('[name=head]').focus()")
    driven.press("End")  # the last head is the one whose norm product was measured
    assert value(driven, "m") == "476"
    assert driven.errors == []


def test_a_wrong_number_is_said_and_the_drawing_stays(page):
    driven, address = page
    driven.open(f"{address}#D=64&V=1000&m=5&T=1&b=0.1")
    sentence = says(driven, "sentence")
    driven.evaluate("document.querySelector('[name=b]').select()")
    driven.press("2")
    driven.press("Tab")
    message = driven.evaluate("document.querySelector('.explorer-error').textContent")
    assert message == 'the label smoothing b must be between 0.001 and 0.99; it is "2"'
    assert says(driven, "sentence") == sentence
    driven.open(f"{address}#D=1.5&V=1000&m=5&T=1&b=0.1")
    message = driven.evaluate("document.querySelector('.explorer-error').textContent")
    assert message.startswith("the hidden size D must be a whole number between 1 and")


LUMINANCE = """
const light = (css) => css.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255)
  .map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4).reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
const ground = getComputedStyle(document.body).backgroundColor;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200])
def test_the_page_fits_and_can_be_read(page, width, scheme):
    driven, address = page
    driven.resize(width, scheme=scheme)
    driven.open(f"{address}#head=google/gemma-2-2b&m=300&T=1&b=0.1")
    assert driven.evaluate("document.documentElement.scrollWidth") <= width
    dark = driven.evaluate(f"{{ {LUMINANCE} light(ground) < 0.2 }}")
    assert dark == (scheme == "dark")
    for what, style in {".explorer-figure text": "fill", ".explorer-says p": "color", "path.asked": "stroke"}.items():
        ratio = driven.evaluate(
            f"{{ {LUMINANCE} contrast(getComputedStyle(document.querySelector('{what}')).{style}, ground) }}"
        )
        assert ratio >= 4.5, (what, ratio)
    clipped = driven.evaluate(
        """[...document.querySelectorAll('.explorer-figure svg')].flatMap((svg) => {
          const whole = svg.getBoundingClientRect();
          const words = [...svg.querySelectorAll('text')].map((text) => [text.textContent, text.getBoundingClientRect()]);
          const outside = words.filter(([, b]) => b.left < whole.left || b.right > whole.right || b.bottom > whole.bottom);
          const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
          const overlap = words.filter(([, b], i) => words.some(([, other], j) => j > i && meet(b, other)));
          return [...outside, ...overlap].map(([text]) => text);
        })"""
    )
    assert clipped == []
