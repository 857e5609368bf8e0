"""Tables of the docs on real models, from a table made by hand."""

import re
import sys
from pathlib import Path
from shutil import copyfile

import pandas as pd
import pytest
from tuned_pairs import made

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs"))
import real_predictions
import real_tables

from analysis.claims.pairs import judge_pairs
from analysis.study.real_tuning.predictions import PAIR_PREDICTIONS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, table = tmp_path_factory.mktemp("data"), made()
    table.to_csv(folder / "real_gemma.csv.gz", index=False)
    table.loc[table["within"].isna()].to_csv(folder / "real_smollm2.csv", index=False)
    write_judged(folder, "gemma", table)
    write_judged(folder, "smollm2", table.loc[table["within"].isna()])
    return folder


def write_judged(folder, name, table):
    judged = judge_pairs(table, PAIR_PREDICTIONS)
    judged.verdicts.to_csv(folder / f"real_{name}_verdicts.csv", index=False)
    judged.findings.to_csv(folder / f"real_{name}_findings.csv", index=False)


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_models_stand_in_the_stages_of_the_paper(data):
    head, _, *lines = rows(real_tables.models(data))
    found = {tuple(line[:3]): dict(zip(head[3:], line[3:], strict=True)) for line in lines}
    ece = found["Gemma-3-270M", "held-out responses", "ECE"]
    assert ece["before tuning"].startswith("0.011 [")
    assert ece["b = 0"].startswith("0.171 [")
    assert ece["b = 0.1"].startswith("0.091 [")
    assert ece["b = 0, T fitted"].startswith("0.013 [")
    assert ece["b = 0, stopped early"].startswith("0.031 [")  # epoch 1
    asked = found["SmolLM2-135M-Instruct", "questions, normalised cloze", "ECE"]
    assert (asked["before tuning"][:5], asked["b = 0"][:5], asked["b = 0, stopped early"]) == ("0.101", "0.181", "")
    assert found["Gemma-3-270M", "questions, normalised cloze", "accuracy"]["b = 0"] == "0.400"  # seeds do not differ


def test_the_vocabulary_and_the_verdicts_have_a_line_each(data):
    _, _, *lines = rows(real_tables.vocabulary(data))
    assert [line[:2] for line in lines] == [[n, epoch] for n in ("12,288", "16,384", "262,144") for epoch in "28"]
    assert all(re.match(r"0\.161 \[", line[2]) and line[3].startswith("0.080") for line in lines[1::2])
    assert all(re.match(r"0\.041 \[", line[2]) and line[3].startswith("0.020") for line in lines[::2])
    _, _, *lines = rows(real_tables.verdicts(data))
    assert ["K4", "Gemma-3-270M", "refuted", "refuted"] in [line[:4] for line in lines]
    assert "refuted of the rise in rank; that it helps was not asked" in [line[2] for line in lines]
    assert len(lines) == 2 * 5


def test_what_was_predicted_is_held_against_both_models():
    """What the prediction says of the first alone, of its index and its vocabulary, is not asked of the other."""
    table = made()
    asked = table.loc[(table["view"] == "cloze_norm") & (table["exam"] == "whole")]
    table = pd.concat([table, asked.assign(view="letters")], ignore_index=True)
    both = {"Gemma-3-270M": table, "SmolLM2-135M-Instruct": table.loc[table["within"].isna()]}
    head, _, *lines = rows(real_predictions.predictions(both))
    assert head == ["", "predicted", "Gemma-3-270M", "holds", "SmolLM2-135M-Instruct", "holds"]
    alone = [line[1] for line in lines if line[4:] == ["", ""]]
    assert len(alone) == 4
    assert all(said.startswith(("A of b = 0.1", "and below 0.5", "cut to")) for said in alone)
    assert all(line[2:4] == line[4:] for line in lines if line[1] not in alone)  # one table stands for both
    fall = next(line for line in lines if line[1].startswith("confidence on responses falls"))
    assert fall[2].startswith("0.080")
    assert fall[3] == "yes"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ["it is refuted", "smoothing of 0.1 acted: confidence falls by 0.080", "does not shrink by 0.03"]),
        (
            {"fall": 0.001},
            [
                "it is borne out",
                "smoothing of 0.1 did next to nothing",
                "the first less the second 0.079",
                "so it shrinks",
            ],
        ),
        ({"fall": 0.06, "cut_fall": 0.09}, ["seeds do not tell."]),
    ],
)
def test_sentences_follow_from_the_findings(tmp_path, changes, said):
    table = made(**changes)
    write_judged(tmp_path, "gemma", table)
    table.to_csv(tmp_path / "real_gemma.csv", index=False)
    assert "SmolLM2" not in real_tables.found(tmp_path) + real_tables.verdicts(tmp_path)
    copyfile(tmp_path / "real_gemma.csv", tmp_path / "real_smollm2.csv")
    for end in ("verdicts", "findings"):
        copyfile(tmp_path / f"real_gemma_{end}.csv", tmp_path / f"real_smollm2_{end}.csv")
    lines = real_tables.found(tmp_path).replace("\n  ", " ").splitlines()
    assert len(lines) == 6
    assert "is 0.041 [" in lines[5]
    assert lines[0].startswith('- **"Large-vocabulary models of small hidden size')
    assert "Gemma-3-270M became over-confident: confidence less accuracy is 0.161 [" in lines[0]
    assert all(words in lines[0] for words in said), lines[0]
    assert "(K1, " in lines[1]
    assert "A fitted temperature gains 0.158" in lines[2]
    left = 0.14 - changes.get("fall", 0.08)  # what early stopping gains, less what smoothing does
    assert f"early stopping lowers it further, by {left:.3f}." in lines[2]
    assert "on ordinary text the ECE is " in lines[2]


def test_a_table_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data must hold real_gemma\.csv or real_gemma\.csv\.gz, got neither"):
        real_tables.vocabulary(tmp_path)
