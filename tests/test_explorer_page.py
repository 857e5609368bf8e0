"""The explorer's page in a real browser: what it says, its keyboard, its address, a phone's width, both schemes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import browser as chromium
import pytest
from explorer_points import COMPUTE, assert_as_analysis, points

import analysis

DOCS = Path(__file__).resolve().parent.parent / "docs"
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
    loaded = driven.evaluate(
        "[...document.querySelectorAll('script[src], link[rel=stylesheet], img')].map((it) => it.src || it.href)"
    )
    assert {name.rpartition("/")[2].partition("?")[0] for name in loaded} >= {
        "formulas.js",
        "drawings.js",
        "explorer.js",
    }
    assert all(name.startswith("file:") for name in loaded), "the page loads something from the network"
    assert driven.errors == []


@pytest.mark.parametrize(
    ("head", "thin"),
    [("D=9&V=10", True), ("D=240&V=256", True), ("D=4&V=1000", False), ("D=16&V=50000", False)],
)
def test_the_legend_shows_a_band_only_where_it_can_be_seen(page, head, thin):
    """At full width the ceiling is reached: there is no band."""
    driven, address = page
    driven.open(f"{address}#{head}&m=30&T=1&b=0.1")
    key = "document.querySelector('.key.band')"
    words = driven.evaluate(f"{key}.textContent")
    assert words == (
        "the best head lies less than the line's width from it" if thin else "the best head lies in this band"
    )
    swatch = driven.evaluate(f"getComputedStyle({key}, '::before').display")
    assert (swatch == "none") == thin
    assert driven.evaluate("document.querySelector('.key.open').hidden") == thin
    assert driven.errors == []


def test_the_legend_names_no_region_that_is_not_drawn(page):
    """Under a softcap that holds the gap below what is asked for smoothing acts nowhere."""
    driven, address = page
    shown = "[...document.querySelectorAll('.key.acts')].map((key) => key.offsetParent !== null)"
    for cap, drawn in (("", [True, True]), ("&c=4", [False, True])):
        driven.open(f"{address}#D=64&V=50000&m=30&T=1&b=0.1{cap}")
        assert driven.evaluate(shown) == drawn, cap
        assert driven.evaluate("document.querySelectorAll('rect.acts').length") == drawn[0]
    assert driven.errors == []


def test_the_keyboard_reaches_and_moves_everything_and_the_address_holds_it(page):
    driven, address = page
    driven.open(address)
    assert value(driven, "m") == "476"  # measured, so that the first sentence is of a real model
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
