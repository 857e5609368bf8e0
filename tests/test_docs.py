"""The pages of the documentation: their code runs, what they point to exists, and the site builds without a warning."""

from __future__ import annotations

import doctest
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import browser
import numpy as np
import pytest
import torch

import analysis
from analysis.__main__ import modules
from kernel import head_statistics

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
sys.path.insert(0, str(DOCS))
pd = pytest.importorskip("pandas")
import notebook_pages  # noqa: E402
import readme_sentences  # noqa: E402
import readme_tables  # noqa: E402
import reference_pages  # noqa: E402
import study_tables  # noqa: E402
from table_text import numbers_in_full  # noqa: E402


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_there_are_pages():
    assert {"index", "quickstart", "theory", "study", "kernel", "using_the_loss", "will_smoothing_help"} <= {
        page.stem for page in PAGES
    }


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
@pytest.mark.filterwarnings("default")  # what warns inside transformers' Trainer is not ours
def test_the_code_of_a_page_runs_and_prints_what_it_shows(page, monkeypatch, capsys):
    """With prompts, and in the block of text that follows; where none does, the code only runs."""
    if "transformers" in page.read_text(encoding="utf-8"):
        pytest.importorskip("transformers", reason="the huggingface extra is not installed")
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    text, shown = page.read_text(encoding="utf-8"), 0
    for number, block in enumerate(blocks(page)):
        if ">>>" not in block:
            capsys.readouterr()
            exec(compile(block, f"{page.name}[{number}]", "exec"), names)
            _, _, after = text.partition(f"```python\n{block}```\n\n```text\n")
            if after:
                printed, said = capsys.readouterr().out, after.partition("```")[0]
                if page.stem != "how_calibrated":  # of many numbers: tests/analysis/test_reliability.py, to some digits
                    assert printed == said
                shown += 1
            continue
        test = doctest.DocTestParser().get_doctest(block, names, f"{page.name}[{number}]", page.name, 0)
        test.globs = names  # shared by the blocks of a page
        lines: list[str] = []
        doctest.DocTestRunner().run(test, out=lines.append, clear_globs=False)
        assert not lines, "".join(lines)
    assert shown == len(re.findall(r"^```\n\n```text$", text, re.MULTILINE))


@pytest.mark.parametrize("kind", ["llama", "phi"])  # phi's head has a bias
def test_losses_of_padded_batches_are_those_of_the_documents_alone(kind):
    """The page's own function, against full logits of each document without padding, in float64."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers", reason="the huggingface extra is not installed")
    from tiny_models import make

    names: dict[str, Any] = {}
    torch.manual_seed(0)
    for block in blocks(DOCS / "will_smoothing_help.md")[:2]:
        exec(block, names)
    model = names["model"] if kind == "llama" else make(kind, vocab_size=128)
    head = model.get_output_embeddings()
    assert (getattr(head, "bias", None) is None) == (kind == "llama")
    with torch.no_grad():
        head.weight.mul_(20)  # predictions that differ
        if kind == "phi":
            head.bias.copy_(torch.randn(128))
        short = names["documents"][2][None, :1]
        for _ in range(8):  # of what the model holds for least likely: its loss is far above those of the others
            short = torch.cat([short, model(short).logits[:, -1:].argmin(-1)], dim=1)
        names["documents"][2] = short[0]
        found = []
        for document in names["documents"]:
            z = model(document[None]).logits[0, :-1].double()
            log_p = z.log_softmax(-1)
            target = log_p.gather(1, document[1:, None])[:, 0]
            found.append(torch.stack([-(log_p.exp() * log_p).sum(-1), -target, -log_p.mean(-1)]))
    pooled = torch.cat(found, dim=1).mean(1).tolist()
    assert names["pooled_losses"](model, names["padded"](names["documents"])) == pytest.approx(pooled, rel=1e-4)
    apart = torch.stack([of_tokens.mean(1) for of_tokens in found]).mean(0)
    assert apart[1].item() > 1.05 * pooled[1]  # so that it matters how documents are weighed


USED = {"torch": torch, "analysis": analysis, "head_statistics": head_statistics}  # what blocks above it have imported


def own_head() -> str:
    """The block for hidden states of the reader's own, without the lines that stand in for them."""
    (code,) = [block for block in blocks(DOCS / "will_smoothing_help.md") if "yours: the next tokens" in block]
    return "\n".join(line for line in code.splitlines() if "# yours" not in line)


def test_the_index_of_your_own_head(capsys):
    generator = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(40, 12, generator=generator), torch.randn(200, 12, generator=generator)
    target = (hidden @ weight.T).argmax(-1)
    exec(own_head(), {**USED, "weight": weight, "states": hidden, "target": target})
    shown = re.fullmatch(r"confidence ([\d.]+), activity index ([-\d.]+), fall ([\d.]+)\n", capsys.readouterr().out)
    assert shown
    z = hidden.double().numpy() @ weight.double().numpy().T  # independently: full logits
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    entropy, loss = -(np.exp(log_p) * log_p).sum(axis=1).mean(), -log_p[np.arange(200), target.numpy()].mean()
    assert float(shown[1]) == pytest.approx(np.exp(log_p).max(axis=1).mean(), abs=0.0051)
    index = (entropy - loss) / (0.1 * (-log_p.mean() - loss))
    assert float(shown[2]) == pytest.approx(index, abs=0.0051)
    fall = 0.1 * (np.exp(log_p).max(axis=1).mean() - 1 / 40) * max(0, 1 - index)
    assert float(shown[3]) == pytest.approx(fall, abs=0.0051)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_bad_head_does_not_fall_by_more_than_it_can(shift, capsys):
    """Wrong tokens: the index is far below 0, or minus infinity, and the fall is counted as at an index of -1."""
    generator = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(40, 12, generator=generator), 2 * torch.randn(200, 12, generator=generator)
    target = (hidden @ weight.T).argmin(-1) if shift else torch.arange(200) % 40
    exec(own_head(), {**USED, "weight": weight, "states": hidden, "target": target})
    confidence, index, fall = map(float, re.findall(r"-?(?:inf|[\d.]+)", capsys.readouterr().out))
    assert index < -1
    assert fall == pytest.approx(0.2 * (confidence - 1 / 40), abs=0.0051)


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


def test_the_reference_has_every_public_module_once():
    listed = [name for names in reference_pages.pages().values() for name in names]
    assert sorted(listed) == sorted(
        name for package in ("analysis", "kernel") for name, _ in modules(package) if name != "analysis"
    )


def test_tables_are_those_of_the_committed_data():
    for page in readme_tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert readme_tables.render(text) == text, f"{page.name}: run python docs/readme_tables.py"
    marked = [
        name for page in readme_tables.PAGES for name in readme_tables.PARTS if f"<!-- {name} -->" in page.read_text()
    ]
    assert sorted(marked) == sorted(readme_tables.PARTS)


def test_the_glossary_has_every_column_of_the_tables():
    from analysis.lab.tables import find_table, read_table

    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    words = set(re.findall(r"`(\w+)`", text))
    studies = (*(f"S{i}" for i in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12)), "S9_accuracy")
    for name in (*studies, "caps", "transition", "instruction_full", "verdicts", "findings"):
        path = find_table(readme_tables.DATA, name) or find_table(readme_tables.DATA / "quick", name)
        assert path is not None
        columns = {re.sub(r"_(error|exact|limit)$", "", c) if name == "S2" else c for c in read_table(path)}
        columns = {re.sub(r"_(fall|ridge|gap)_[\d.]+$", r"_\1_B", c) for c in columns}
        assert columns <= words, f"{name}: {sorted(columns - words)}"


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


def test_a_long_module_opens_with_the_list_of_what_it_offers():
    import analysis.calibration

    listed = re.findall(r"<analysis\.calibration\.(\w+)>", "\n".join(reference_pages.contents("analysis.calibration")))
    assert listed[0] == "calibration_error"
    assert sorted(listed) == sorted(analysis.calibration.__all__)
    assert reference_pages.contents("analysis.norm_ball") == []


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


def test_a_mark_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"<!-- cpu --> must be followed by <!-- end of cpu -->"):
        readme_tables.render("<!-- cpu -->\n")


def test_the_sentences_of_what_was_found_have_few_numbers_and_one_link_each():
    first, *lines = re.split(r"\n+\d\. ", readme_sentences.found(readme_tables.DATA))
    assert "[each verdict](docs/study.md#claims-and-verdicts)" in first
    assert len(lines) == 6
    for line, numbers in zip(lines, (3, 2, 1, 1, 1, 2), strict=True):
        assert len(re.findall(r"\]\((docs/[\w#/.-]+)\)", line)) == 1
        assert re.search(r"\)\)\.\s*$", line), line
        said = re.sub(r"\]\([^)]*\)", "", line)
        assert len(re.findall(r"[.?!](?=\s|$)", said)) == 1, f"one sentence: {line}"
        said = re.sub(r"(\d[\d.]*) to (?=\d)", "", said.replace("H200", ""))  # a GPU's name; a range is one
        assert len(re.findall(r"\d[\d.]*", said)) == numbers, line


_OF_SENTENCES = (
    "findings", "verdicts", "instruction_findings", "instruction_full", "kernel", "S7", "S11_findings", "S12_findings",
    "shared_changes", "audit_smollm2", "audit_gemma", "real_gemma", "real_smollm2", "real_gemma_findings",
    "real_gemma_verdicts", "real_smollm2_verdicts",
)  # fmt: skip


@pytest.fixture(scope="module")
def of_sentences(tmp_path_factory):
    """The tables that the README's sentences read, and no other."""
    from analysis.lab.tables import find_table

    folder = tmp_path_factory.mktemp("data")
    for name in _OF_SENTENCES:
        path = find_table(readme_tables.DATA, name)
        assert path is not None
        for file in (path, path.with_name(f"{name}.json")):
            (folder / file.name).symlink_to(file)
    assert readme_sentences.found(folder) == readme_sentences.found(readme_tables.DATA)
    return folder


@pytest.mark.parametrize(
    ("name", "rows", "column", "factor", "words"),
    [
        ("kernel", {"implementation": "torch.compile"}, "peak_mib", 0.9, "torch.compile needs as much memory as eager"),
        ("kernel", {"implementation": "triton, 32 MiB"}, "ms", 0.1, "tuned Liger is ahead at some sizes"),
        ("instruction_full", {"view": "text", "label_smoothing": 0.1}, "confidence", 1.3, "three times SmolLM2's excess"),
        ("instruction_full", {"view": "text", "label_smoothing": 0.1}, "accuracy", 1.5, "two of three real tunings lost accuracy on other text"),
        ("instruction_findings", {"finding": "gain_elsewhere"}, "high", -9, "smoothing harmed SmolLM2 on ordinary text"),
        ("S12_findings", {"finding": "scale_ratio"}, "mean", 0.3, "say too much in transformers"),
        ("findings", {"finding": "gain_of_both"}, "low", -1, "of five arms both were better than neither in one"),
        ("findings", {"finding": "gain_beyond_smoothing"}, "low", -1, "a temperature and early stopping take more of it"),
        ("findings", {"finding": "rise", "cell": "arm=trunk with free norms"}, "mean", 9, "with free norms a temperature restores nothing"),
        ("audit_gemma", {"part": "cap"}, "value", 0.5, "no real head is near a cap"),
        ("shared_changes", {"predictor": "clipped"}, "error", 0.3, "nothing predicts the fall of real models well"),
    ],
)  # fmt: skip
def test_words_for_a_number_are_refused_where_the_tables_say_something_else(
    of_sentences, tmp_path, name, rows, column, factor, words
):
    for file in of_sentences.iterdir():
        (tmp_path / file.name).symlink_to(file)
    path = tmp_path / f"{name}.csv"
    changed = pd.read_csv(path)
    changed.loc[(changed[list(rows)] == pd.Series(rows)).all(axis=1), column] *= factor
    path.unlink()
    changed.to_csv(path, index=False)
    with pytest.raises(ValueError, match=words):
        readme_sentences.found(tmp_path)


@pytest.mark.parametrize(
    ("table", "finding", "cell", "pages"),
    [
        ("S12", "fall_share_step", "", ("study", "transformer_notes", "will_smoothing_help")),
        ("S11", "fall_share_step", "", ("study", "transformer_notes")),
        ("S11", "share_step_of", "kind=tied", ("study", "transformer_notes", "will_smoothing_help")),
        ("S11", "share_step_of_at_epoch_2", "kind=tied", ("study", "transformer_notes")),
        ("S11", "share_step_of_at_epoch_2", "kind=dead", ("study", "transformer_notes")),
    ],
)
def test_pages_quote_what_a_small_hidden_size_takes(table, finding, cell, pages):
    found = pd.read_csv(readme_tables.DATA / f"{table}_findings.csv").fillna({"cell": ""})
    found = found.loc[(found["claim"] == "K4") & (found["finding"] == finding) & (found["cell"] == cell)]
    (row,) = found[["mean", "low", "high"]].to_numpy()
    least, mean, most = sorted(row if row[0] > 0 else -row)
    said = f"{mean:.2f} [{least:.2f}, {most:.2f}]".replace("-", "\N{MINUS SIGN}")
    for page in pages:
        assert said in " ".join((DOCS / f"{page}.md").read_text(encoding="utf-8").split()), page


def test_the_notes_quote_how_far_the_response_overstates_where_the_readme_draws_it():
    (most,) = re.findall(
        r"trained from scratch, P [\d.]+ to ([\d.]+) times", readme_sentences.caption(readme_tables.DATA)
    )
    assert f"as in the README's figure, up to {most} times" in (DOCS / "transformer_notes.md").read_text(
        encoding="utf-8"
    )


def test_the_glossary_quotes_the_rules_below_full_rank():
    """By what falls each is wrong how often, of the table of the notes on the theory."""
    head, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in study_tables.thresholds(readme_tables.DATA).splitlines()
    ]
    wrong = {name: dict(zip(head[2:], counts, strict=True)) for name, _, *counts in lines}
    plain, index, ranked = (
        next(rule for name, rule in wrong.items() if name.startswith(start))
        for start in ("plain", "activity", "rho with")
    )
    said = (
        f"falls above 0.002, that rule is wrong for {plain['0.002']} and $A < 1$ for {index['0.002']}; for falls above "
        f"0.01 these are {plain['0.01']} and {index['0.01']}, and $\\rho$ with the rank-aware bound is wrong for {ranked['0.01']}"
    )
    assert said in " ".join((DOCS / "glossary.md").read_text(encoding="utf-8").split())


def test_numbers_in_prose_have_a_digit_in_front_of_their_point():
    text = "A < .8, [-.01, .05] and > 3 %\n```sh\nrun --b .05\n```\n`x=.1` [.2](a/.5) V .\n3.11 ... 1/.4"
    want = "A < 0.8, [-0.01, 0.05] and > 3%\n```sh\nrun --b .05\n```\n`x=.1` [0.2](a/.5) V .\n3.11 ... 1/.4"
    assert numbers_in_full(text) == want
    assert readme_tables.render(text) == want


def test_full_verdicts_go_before_quick_ones(tmp_path):
    quick = (readme_tables.DATA / "quick" / "verdicts.csv").read_text()
    (tmp_path / "quick").mkdir()
    for name in ("instruction_verdicts.csv", "instruction_full.json", "findings.csv", "quick/findings.csv"):
        (tmp_path / name).write_text((readme_tables.DATA / name).read_text())
    (tmp_path / "quick" / "verdicts.csv").write_text(quick)
    assert "| K9 | accuracy kept, gap between training and held-out NLL narrower | supported" in study_tables.verdicts(
        tmp_path
    )
    (tmp_path / "verdicts.csv").write_text(quick.replace("held-out NLL narrower", "held-out NLL as it is"))
    assert "| K9 | accuracy kept, gap between training and held-out NLL as it is | supported" in study_tables.verdicts(
        tmp_path
    )
    (tmp_path / "verdicts.csv").write_text(quick.replace(",supported,", ",not decided,"))
    assert (
        "| K9 | accuracy kept, gap between training and held-out NLL narrower | supported (quick)"
        in study_tables.verdicts(tmp_path)
    )


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
    names += ("law_notes", "transformer_notes", "sparse_gradients")
    names += ("reference/commands", "reference/analysis.calibration", "reference/analysis.caps")
    for name in (*names, "notebooks/02_when_does_smoothing_act"):
        driven.open((site / f"{name}.html").as_uri())
        driven.evaluate("window.MathJax?.startup?.promise?.then(() => 1)")
        assert driven.evaluate("document.documentElement.scrollWidth") <= 375, name
        assert driven.evaluate(_CUT) == [], f"{name}: formulas in the text, cut at the edge"
        if name in ("theory", "kernel", "sparse_gradients"):
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
