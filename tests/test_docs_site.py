"""The site: a page for every module and notebook, built without a warning, without a broken link, read on a phone."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import browser
import pytest

from analysis.__main__ import modules

DOCS = Path(__file__).resolve().parent.parent / "docs"
sys.path.insert(0, str(DOCS))
import notebook_pages  # noqa: E402
import reference_pages  # noqa: E402


def test_the_reference_has_every_public_module_once():
    listed = [name for names in reference_pages.pages().values() for name in names]
    assert sorted(listed) == sorted(
        name for package in ("analysis", "kernel") for name, _ in modules(package) if name != "analysis"
    )


def test_a_long_module_opens_with_the_list_of_what_it_offers():
    import analysis.calibration

    listed = re.findall(r"<analysis\.calibration\.(\w+)>", "\n".join(reference_pages.contents("analysis.calibration")))
    assert listed[0] == "calibration_error"
    assert sorted(listed) == sorted(analysis.calibration.__all__)
    assert reference_pages.contents("analysis.norm_ball") == []


def test_long_formulas_in_the_text_are_cut_in_front_of_their_relations_and_nowhere_else():
    pytest.importorskip("sphinx", reason="the docs extra is not installed")
    cut = import_module("conf").pieces
    assert cut(r"\sum_{k \ne y} (a_k = b) \ge f(t) - V f(1) \ge 0") == [
        r"\sum_{k \ne y} (a_k = b) ",
        r"\ge f(t) - V f(1) ",
        r"\ge 0",
    ]
    assert cut(r"D \le V - 1") == [r"D \le V - 1"]  # short
    assert cut(r"A = (1-p)V/((V-1)b)") == [r"A = (1-p)V/((V-1)b)"]  # a letter alone is no line
    text = re.sub(r"\$\$.*?\$\$", "", (DOCS / "theory.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    formulas = re.findall(r"\$([^$]+)\$", text)
    assert len(formulas) > 200
    for formula in formulas:
        parts = cut(formula)
        assert "".join(parts) == formula
        for part in parts:  # TeX that stands by itself
            assert part.count("{") == part.count("}")
            assert len(re.findall(r"\\left\b", part)) == len(re.findall(r"\\right\b", part))
    assert sum(len(cut(formula)) > 1 for formula in formulas) > 20


def test_every_notebook_is_a_page_of_the_site_with_all_that_it_showed(tmp_path):
    for left in ("00_gone.md", "00_gone_1_0.png"):
        (tmp_path / left).write_text("of a notebook that is no more")
    notebook_pages.write_notebooks(tmp_path)
    assert not list(tmp_path.glob("00_gone*"))
    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    reproduce = " ".join((DOCS / "reproduce.md").read_text(encoding="utf-8").split())
    notebooks = sorted(notebook_pages.NOTEBOOKS.glob("*.ipynb"))
    assert len(notebooks) >= 8
    for path in notebooks:
        title, question = notebook_pages.title_of(path)
        text = (tmp_path / f"{path.stem}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# {title}\n")
        assert f"[{title}]({path.stem}.md)" in index
        assert question in index
        assert question.endswith("?")
        assert f"[{title}](../notebooks/{path.name})" in reproduce
        outputs = [o for cell in json.loads(path.read_text())["cells"] for o in cell.get("outputs", [])]
        pictures = re.findall(r"^!\[.+\]\((.+)\)$", text, re.MULTILINE)
        assert len(set(pictures)) == sum("image/png" in output.get("data", {}) for output in outputs) >= 2
        assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
        assert text.count("{raw} html") == sum("text/html" in output.get("data", {}) for output in outputs)
        said = [line for output in outputs for line in output.get("text", [])]
        assert all(line.rstrip() in text for line in said)
        assert not re.search(r"\]\([^)]*(\.ipynb|\.\./docs/)|<style|<script", text)


def broken_links(site: Path) -> list[str]:
    """Links of the built pages to files and anchors of the site that are not there."""
    text = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', html)) for page, html in text.items()}
    broken = []
    for page, html in text.items():
        for link in re.findall(r'<a [^>]*href="([^"]+)"', html):
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path).resolve() if path else page
            if re.match(r"(https?|mailto):", link) or (not path and not anchor):
                continue
            if not target.exists() or (anchor and target in anchors and anchor not in anchors[target]):
                broken.append(f"{page.relative_to(site)}: {link}")
    return broken


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="the docs extra is not installed")
    import subprocess

    command = [sys.executable, "-m", "sphinx", "--builder", "html", "--fail-on-warning", "--quiet", "-d"]
    command += [str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "site")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    theory = (tmp_path / "site" / "theory.html").read_text(encoding="utf-8")
    script = re.search(r'src="(_static/tex-svg\.js)', theory)
    assert script, "no MathJax on the page"
    assert (tmp_path / "site" / script[1]).stat().st_size > 1e6
    assert broken_links(tmp_path / "site") == []
    for page in (tmp_path / "site").rglob("*.html"):  # napoleon would take prose before a colon for a type
        html = page.read_text(encoding="utf-8")
        assert 'Type<span class="colon">' not in html, page.name
        returned = re.findall(
            r'Returns<span class="colon">:</span></dt>\s*<dd class="field-\w+"><p>(.*?)</p>', html, re.DOTALL
        )
        assert not [text for text in returned if re.match("<em>|[^.]* \u2013 ", text)], page.name
        place = "" if page.stem in {"genindex", "py-modindex", "search"} else '<p class="to-glossary">'
        assert page.stem == "glossary" or re.search(place + r'<a [^>]*href="[^"]*glossary\.html"', html), page.name
    outside = re.findall(r'<(?:script|link)[^>]+(?:src|href)="(https?:[^"]+)', theory)
    assert outside == [], "the page loads something from the network"
    if browser.PROGRAM is not None:
        with browser.browser(tmp_path / "profile") as driven:
            assert_read_from_a_folder(driven, tmp_path / "site")


_CUT = """[...document.querySelectorAll('article mjx-container:not([display])')]
    .filter((formula) => formula.getBoundingClientRect().right > 375 && !formula.closest('.table-wrapper'))
    .map((formula) => formula.closest('section').id)"""
_WIDE = """[...document.querySelectorAll('div.math')]
    .filter((formula) => formula.scrollWidth > 1.1 * formula.clientWidth)
    .map((formula) => formula.closest('section').id)"""


def assert_read_from_a_folder(driven: browser.Browser, site: Path) -> None:
    """Opened from a folder on a phone no page is wider than that, and the search box finds what is written."""
    driven.resize(375)
    names = ("index", "theory", "glossary", "study_notes", "theory_notes", "reproduce", "kernel", "will_smoothing_help")
    names += ("law_notes", "transformer_notes", "sparse_gradients", "kernel_design", "kernel_notes")
    names += ("reference/commands", "reference/analysis.calibration", "reference/analysis.caps")
    for name in (*names, "notebooks/02_when_does_smoothing_act"):
        driven.open((site / f"{name}.html").as_uri())
        driven.evaluate("window.MathJax?.startup?.promise?.then(() => 1)")
        assert driven.evaluate("document.documentElement.scrollWidth") <= 375, name
        assert driven.evaluate(_CUT) == [], f"{name}: formulas in the text, cut at the edge"
        if name in ("theory", "kernel", "kernel_design", "sparse_gradients"):
            assert driven.evaluate(_WIDE) == [], f"{name}: formulas wider than a phone"
    driven.resize(1200)
    driven.open((site / "reference" / "commands.html").as_uri())
    cut = driven.evaluate("[...document.querySelectorAll('.help pre')].map((box) => box.scrollWidth > box.clientWidth)")
    assert len(cut) >= 10
    assert not any(cut), "what a command prints is cut at the edge of its box"
    driven.open((site / "index.html").as_uri())
    driven.evaluate("document.querySelector('input[name=q]').focus()")
    for key in [*"activity index", "Enter"]:
        driven.press(key)
    driven.wait(lambda: "finished" in (driven.evaluate("document.querySelector('#search-results')?.innerText") or ""))
    assert "Read the activity index" in driven.evaluate("document.querySelector('#search-results').innerText")
