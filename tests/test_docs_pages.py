"""The pages of the documentation: how they are built up, and that what they point to exists."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from analysis.__main__ import modules

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def test_every_statement_of_the_theory_has_a_status_a_function_and_a_test():
    sections = re.split(r"^### ", (DOCS / "theory.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(sections) >= 20
    for section in sections:
        title = section.partition("\n")[0]
        assert 'class="status ' in section, f"{title}: no status"
        assert re.search(r"tests/\w+/\w+\.py", section), f"{title}: no test"
        assert "{func}" in section or "rank of the log-probabilities" in title, f"{title}: no function"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_files_and_tests_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    missing = [
        p for p in re.findall(r"`((?:paper_figures/data|tests|docs)/[\w/]+\.\w+)`", text) if not (ROOT / p).exists()
    ]
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8"):
            missing.append(f"{path}::{name}")
    assert missing == []


def test_functions_that_are_named_exist():
    named = {
        n for page in PAGES for n in re.findall(r"\{(?:func|class|mod)\}`~?([\w.]+)`", page.read_text(encoding="utf-8"))
    }
    named = {name for name in named if not name.startswith("torch.")}
    assert len(named) > 50
    known = {name for package in ("analysis", "kernel") for name, _ in modules(package)}
    unknown = [
        name
        for name in sorted(named - known)
        if not hasattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2])
    ]
    assert unknown == []


def test_the_glossary_names_each_symbol_once():
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    symbols = re.findall(r"^\| (\$[^|]+\$) \|", text, re.MULTILINE)
    assert len(symbols) == len(set(symbols)) >= 15
    words = ("Gain", "Fall", "Budget", "True ECE", "Effective rank", "Head", "Scale gap", "NLL", "Teacher, student")
    assert all(f"\n{word}\n: " in text for word in (*words, "Preset", "Binds, vacuous", "To restore"))
    assert "\n### Activity index\n" in text  # the README links here


@pytest.mark.parametrize("page", ["README.md", "docs/study.md", "docs/theory.md", "docs/will_smoothing_help.md"])
def test_pages_lead_to_the_glossary(page):
    assert "glossary.md" in (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_opens_with_a_sentence(page):
    """Not with a table or code; a long one says in short what it says."""
    text = page.read_text(encoding="utf-8")
    if "{include} ../CONTRIBUTING.md" in text:
        text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    title, first, *_ = [block for block in re.split(r"\n\s*\n", text.strip()) if not block.startswith("<!--")]
    assert title.startswith("# ")
    assert not re.match(r"[|`#<]{2}|\||```|#", first), first[:60]
    if page.stem.endswith("_notes"):
        assert first.startswith("**In short.**")
        assert 3 <= len(re.findall(r"[.?](?=\s|$)", first.removeprefix("**In short.**"))) <= 4, "about three sentences"
    if len(text.split()) > 1500 and page.stem != "glossary":  # one looks things up there
        opening = re.sub(r"```.*?```", "", text.partition("\n## ")[0], flags=re.DOTALL)
        assert len(re.findall(r"[.?!](?=\s|$)", opening)) >= 3, "three sentences before the first section"


def test_the_licence_of_gemmas_weights_is_named_where_numbers_of_it_stand():
    """A checker that names no page would pass: there are some."""
    told = [*PAGES, ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.py"))]
    named = {path.name: path.read_text(encoding="utf-8") for path in told}
    of_gemma = {name: text for name, text in named.items() if "Gemma-3-270M" in text}
    assert {"README.md", "theory.md", "will_smoothing_help.md"} <= set(of_gemma)
    assert not [name for name, text in of_gemma.items() if "https://ai.google.dev/gemma/terms" not in text]


def test_the_first_page_has_four_doors():
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    doors = re.findall(r"^```\{container\} door\n\*\*\[(.+)\]\(", text, re.MULTILINE)
    assert doors == ["Train with it", "Understand it", "Reproduce it", "Work on it"]
    assert text.index("{container} doors") < text.index(":start-after: <!-- question -->")
    before, mark, _ = (ROOT / "README.md").read_text(encoding="utf-8").partition(" <!-- question -->\n")
    assert mark
    (question,) = re.findall(r"^\*\*Will [^*]+\?\*\*", text, re.MULTILINE)
    assert question in before


def test_smoothing_goes_too_far_in_the_example_where_the_page_says_so():
    page = " ".join((DOCS / "will_smoothing_help.md").read_text(encoding="utf-8").split())
    (excess,) = re.findall(r"slightly over-confident \(by ([\d.]+)\)", page)
    (fall,) = re.findall(r"lower end of A's interval: ([\d.]+) \(b = 0\.1\)", page)
    assert "the fall that is estimated below is more than twice the excess" in page
    assert float(fall) > 2 * float(excess)
