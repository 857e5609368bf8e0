"""What the pages and the README say of the committed tables: generated anew it is the same, or it is refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
sys.path.insert(0, str(DOCS))
pd = pytest.importorskip("pandas")
import fall_ratios  # noqa: E402
import readme_sentences  # noqa: E402
import readme_tables  # noqa: E402
import study_tables  # noqa: E402
from table_text import DATA, numbers_in_full  # noqa: E402

from paper_figures import response  # noqa: E402


def test_tables_are_those_of_the_committed_data():
    for page in readme_tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert readme_tables.render(text) == text, f"{page.name}: run python docs/readme_tables.py"
    marked = [
        name for page in readme_tables.PAGES for name in readme_tables.PARTS if f"<!-- {name} -->" in page.read_text()
    ]
    assert len(marked) == len(set(marked))
    nothing_to_say = {name for name, part in readme_tables.PARTS.items() if name not in marked and not part(DATA)}
    assert {*marked, *nothing_to_say} == set(readme_tables.PARTS)


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


def test_a_mark_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"<!-- cpu --> must be followed by <!-- end of cpu -->"):
        readme_tables.render("<!-- cpu -->\n")


_OF_SENTENCES = (
    "findings", "verdicts", "instruction_findings", "instruction_full", "instruction_candidates", "kernel", "S7", "S11_findings",
    "S12_findings",
    "shared_changes", "audit_smollm2", "audit_gemma", "real_gemma_findings", "real_gemma_verdicts",
    "real_smollm2_verdicts", *response.TABLES, *response.OPTIONAL,
)  # fmt: skip


@pytest.fixture(scope="module")
def of_sentences(tmp_path_factory):
    """The tables that the README's sentences read, and no other."""
    from analysis.lab.tables import find_table

    folder = tmp_path_factory.mktemp("data")
    for name in dict.fromkeys(_OF_SENTENCES):
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
        ("kernel", {"implementation": "triton, 32 MiB"}, "ms", 0.1, "tuned Liger is ahead at some head"),
        ("instruction_full", {"view": "text", "label_smoothing": 0.1}, "confidence", 1.3, "three times SmolLM2's excess"),
        ("findings", {"finding": "rise_elsewhere_at_epoch_2"}, "mean", 3, "after two epochs the error has risen far less"),
        ("findings", {"finding": "gain_at_epoch_2"}, "mean", 3, "after two epochs smoothing takes next to nothing"),
        ("kernel", {"implementation": "torch.compile"}, "ms", 0.5, "the loss takes about the time of eager PyTorch"),
        ("real_gemma_findings", {"finding": "fall"}, "mean", 0.1, "smoothing acted on Gemma at the last epoch"),
        ("instruction_findings", {"finding": "gain_elsewhere"}, "high", -9, "smoothing harmed SmolLM2 on ordinary text"),
        ("S11_findings", {"finding": "gain_ratio"}, "mean", 0.4, "nothing else that was tried in transformers kept much closer"),
        ("instruction_candidates", {"view": "letter", "label_smoothing": 0.0}, "confidence", 0.96, "nothing else that was tried in"),
        ("S12_findings", {"finding": "clipped_ratio"}, "mean", 1.3, "near on new examples of transformers trained from"),
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


def test_the_notes_quote_what_two_epochs_do_where_the_readme_has_the_last():
    table = pd.read_csv(readme_tables.DATA / "findings.csv")
    of_all = table[table["cell"].isna()].set_index("finding")["mean"]
    notes = " ".join((DOCS / "study_notes.md").read_text(encoding="utf-8").split())
    assert f"(by {of_all['rise_elsewhere_at_epoch_2']:.3f} in the paper's two epochs)" in notes
    assert f"by {of_all['gain']:.3f} (by {of_all['gain_at_epoch_2']:.3f} in two epochs)" in notes


def test_the_notes_quote_how_far_the_response_overstates_where_the_readme_draws_it():
    (most,) = re.findall(
        r"trained\s+from\s+scratch\s+it\s+is\s+[\d.]+\s+to\s+([\d.]+)\s+times",
        readme_sentences.figure(readme_tables.DATA),
    )
    assert f"as in the README's figure, up to {most} times" in (DOCS / "transformer_notes.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("page", "times"),
    [
        ("README.md", 1), ("docs/law_notes.md", 1), ("docs/will_smoothing_help.md", 3),
        ("notebooks/07_audit_and_tune_a_real_model.ipynb", 2),
    ],
)  # fmt: skip
def test_pages_quote_how_far_tunings_fell_on_new_texts(page, times):
    """Over the clipped rule: the ends over the tables of real models, which the audit has as words of its own."""
    from analysis.audit._verdict import TUNED

    ratios = fall_ratios.on_new_texts(readme_tables.DATA)
    said = f"{min(ratios):.1f} to {max(ratios):.1f}"
    assert said == TUNED
    text = (DOCS.parent / page).read_text(encoding="utf-8")
    assert " ".join(re.sub(r'\\n",\s*"|\n>', " ", text).split()).count(f"{said} times") == times


def test_the_range_on_new_texts_follows_a_changed_table(of_sentences, tmp_path):
    for file in (*of_sentences.iterdir(), readme_tables.DATA / "S9_accuracy.csv"):
        (tmp_path / file.name).symlink_to(file)
    path = tmp_path / "instruction_candidates.csv"
    changed = pd.read_csv(path)
    changed.loc[changed["view"] == "letter", "confidence"] -= changed["label_smoothing"] * 0.1
    path.unlink()
    changed.to_csv(path, index=False)
    before, after = (min(fall_ratios.on_new_texts(folder)) for folder in (of_sentences, tmp_path))
    assert f"{before:.1f}" != f"{after:.1f}"
    assert f"by {after:.1f} to " in readme_sentences.figure(tmp_path).rpartition("on new texts")[2].replace("\n ", "")


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


@pytest.mark.parametrize("path", sorted(DOCS.parent.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_the_prose_of_a_notebook_has_numbers_in_full_and_no_list_within_a_formula(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            prose = "".join(cell["source"])
            assert numbers_in_full(prose) == prose
            for paragraph in prose.split("\n\n"):  # a line that begins with a minus would begin a list
                assert not [cut for cut in re.split(r"\n(?=[-+*] )", paragraph) if cut.count("$") % 2]


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
