"""The three lines that an audit ends with: right in each regime, never against its verdict, their numbers in tables."""

from __future__ import annotations

import math
import re
import shutil
from io import StringIO

import pandas as pd
import pytest
import torch
from tiny_models import make

from analysis.audit import _recommendation, audit_model, recommendation, verdict
from analysis.command import committed_folder
from analysis.lab.tables import find_table, read_table

DATA = committed_folder()
NAN = math.nan


def audited(index, gap=(-0.12, -0.18, -0.07), *, b="0.1", **numbers):
    """The committed audit as if it had found this index at one b, this scale gap and these numbers."""
    table = pd.read_csv(DATA / "audit_smollm2.csv", dtype={"group": str})
    table = table.loc[~table["part"].isin(["smoothing", "cap"]) | (table["group"] == b)]
    changed = {"activity": index, "scale_gap": gap, **numbers}
    for name, value in changed.items():
        at = table["name"] == name
        at &= table["part"].isin(["smoothing", "prediction", "calibration", "temperature", "model"])
        assert at.sum() == 1
        table.loc[at, ["value", "low", "high"]] = (
            (*value, NAN, NAN)[:3] if isinstance(value, tuple) else (value, NAN, NAN)
        )
    return table


def lines(table):
    act, most, instead = recommendation(table).split("\n")
    return act, most, instead


@pytest.mark.parametrize(
    ("index", "said", "evidence"),
    [
        ((-0.07, -0.11, -0.04), "b = 0.1: yes, and plain training on this text would lower confidence too.", "A of 0 to 0.8"),
        ((-0.07, NAN, NAN), "b = 0.1: yes, and plain training on this text", "A of 0 to 0.8"),
        ((0.0, -0.1, 0.1), "b = 0.1: yes.", "A of 0 to 0.8"),
        ((0.4, 0.3, 0.5), "b = 0.1: yes.", "A of 0 to 0.8 it lowered confidence by 0.134"),
        ((0.9, 0.85, 0.95), "b = 0.1: a little.", "About the turn at 1 A explained 96% of the fall"),
        ((1.0, 0.7, 1.2), "b = 0.1: this text cannot tell.", "About the turn at 1"),
        ((1.1, 1.05, 1.2), "b = 0.1: hardly where one next token is right, somewhat where several are", "the turn at 1"),
        ((2.0, 1.8, 2.2), "b = 0.1: not once trained to the end where one next token is right, a little where several", "A above 1.25 it lowered confidence by 0.0000"),
    ],
)  # fmt: skip
def test_each_regime_of_the_index_has_its_answer(index, said, evidence):
    act, _, _ = lines(audited(index))
    assert act.startswith(f"Would smoothing act, if the text is like the training data? {said}")
    assert evidence in act
    assert "capped" not in act


def test_several_b_are_told_apart():
    table = pd.concat(
        [audited((0.4, 0.3, 0.5), b="0.1"), audited((2.0, 1.9, 2.1), b="0.05").query("part == 'smoothing'")]
    )
    act, most, _ = lines(table)
    assert "b = 0.05: not once trained to the end" in act
    assert "; b = 0.1: yes. In small" in act
    assert "A above 1.25" in act
    assert "A of 0 to 0.8" in act
    assert re.search(r"rational_fall 0\.\d{3} \(b = 0\.05\), 0\.\d{3} \(b = 0\.1\) of 0\.480 at the upper", most)


def test_a_softcap_is_said_with_what_the_studies_found_of_caps():
    verdicts = pd.read_csv(DATA / "verdicts.csv").set_index("claim")
    act, _, _ = lines(audited((2.0, 1.8, 2.2), softcap=30))
    assert f"capped at 30, as this model's are; whether a cap adds to what smoothing does {verdicts.loc['K6', 'verdict']} " in act  # fmt: skip
    assert act.endswith(f"{verdicts.loc['K6', 'depends_on']} [K6, verdicts.csv].")


@pytest.mark.parametrize(
    ("index", "low"),
    [((0.4, 0.3, 0.5), 0.3), ((0.4, NAN, NAN), 0.4), ((2.0, 1.5, 2.5), 1.5), ((-0.3, -0.5, -0.1), -0.5)],
)
def test_the_most_is_the_larger_rule_at_the_lower_end_of_the_index(index, low):
    amplitude = 0.1 * (0.4795771 - 1 / 49152)
    rules = [amplitude * max(0.0, 1 - low)] + ([amplitude / (1 + low)] if low > 0 else [])
    _, most, _ = lines(audited(index))
    assert most.startswith(
        f"How much confidence would it take? By clipped_fall and rational_fall {max(rules):.3f} (b = 0.1) of 0.480"
    )
    assert ("0.480 at the upper end of the interval; they" in most) == (index[1] == index[1])
    assert "no bounds" in most
    assert ("times clipped_fall" in most) == (low < 1)  # 3.1 times nothing says nothing


def test_the_most_is_no_less_than_the_fall_that_the_verdict_predicts():
    table = audited((0.4, 0.3, 0.5))
    fall = pd.DataFrame([{"part": "smoothing", "name": "predicted_fall", "group": "0.1", "value": 0.029, "low": 0.02, "high": 0.2}])  # fmt: skip
    _, most, _ = lines(pd.concat([table, fall]))
    assert "rational_fall 0.200 (b = 0.1)" in most


OVER, UNDER, NEITHER = (-0.12, -0.18, -0.07), (0.2, 0.1, 0.3), (0.0, -0.1, 0.1)


@pytest.mark.parametrize(
    ("gap", "numbers", "said", "evidence"),
    [
        (OVER, {}, "Fit a temperature (the best one, 1.023, takes the ECE from 0.023 to 0.018).", "raised it in 20 of 21 arms"),
        (OVER, {"ece_after": 0.03}, "A temperature does not mend it", "early stopping"),
        (OVER, {"ece": 0.015}, "Leave it: an ECE of 0.015 is seen of calibrated predictions too (up to 0.018).", "b = 0.1 raised the ECE by 0.029"),
        (UNDER, {"best": 0.9}, "Do not smooth, as the model is under-confident; a temperature may help (the best one, 0.900,", "77 of 96 cells"),
        (NEITHER, {}, "Do not smooth, as confidence is right on average; a temperature may help", "raised the ECE by 0.029"),
    ],
)  # fmt: skip
def test_what_to_do_instead_follows_from_calibration(gap, numbers, said, evidence):
    _, _, instead = lines(audited((-0.07, -0.11, -0.04), gap, **numbers))
    assert instead.startswith(f"What to do for calibration, if the text is new to the model? {said}")
    assert evidence in instead


def test_a_text_that_no_temperature_fits_gets_no_advice_from_it():
    table = audited((-0.07, -0.11, -0.04), best=20.0, ece_after=0.4)
    table.loc[table["part"].eq("temperature") & table["name"].eq("best"), "text"] = "at a bound"
    _, _, instead = lines(table)
    assert "Take another text, as no temperature fits this one (at 20 its ECE is 0.400). No study had" in instead


def test_without_an_index_there_is_no_rule():
    act, most, _ = lines(audited((-math.inf, NAN, NAN), pull=-0.2))
    assert (
        "b = 0.1: not as elsewhere: on this text it only weakens the data's own pull to smaller logits. No study" in act
    )
    assert (
        most == "How much confidence would it take? No rule says: each needs an activity index, and there is none here."
    )


@pytest.mark.parametrize("gap", [OVER, UNDER, NEITHER])
@pytest.mark.parametrize(
    "index", [(-0.4, -0.5, -0.3), (0.5, 0.4, 0.6), (0.9, 0.8, 0.95), (1.0, 0.9, 1.1), (1.5, 1.4, 1.6)]
)
def test_it_never_says_what_the_verdict_denies(gap, index):
    table = audited(index, gap)
    said, (act, _, instead) = verdict(table), lines(table)
    assert ("cannot tell whether smoothing would act" in said) == ("cannot tell" in act)
    assert ("below 1: smoothing would act" in said) == (": yes" in act or ": a little." in act)
    assert ("above 1: smoothing would not act at first" in said) == (": not once" in act or ": hardly" in act)
    assert ("the model is slightly over-confident (by 0.020): entropy" in said) == ("Do not smooth" not in instead)
    assert ("under-confident: entropy" in said) == ("under-confident" in instead)


def test_every_citation_names_a_table_that_has_the_claim():
    """And the numbers are read from it: a table of other numbers gives another text."""
    several = [audited(i, g, softcap=30) for i in ((-0.4,), (0.9,), (1.5,)) for g in (OVER, UNDER)]
    cited = set(re.findall(r"\[(\w+), (\w+)\.csv\]", " ".join(recommendation(table) for table in several)))
    assert len(cited) == 7
    for claim, name in cited:
        (path,) = DATA.glob(f"{name}.csv*")
        table = pd.read_csv(path)
        assert claim in set(table.get("claim", ["K2" if name == "instruction_full" else "S9"]))


def test_the_heads_behind_the_first_line_have_the_index_that_it_says():
    """None below 0, where an audit's text may lie, and none between the two ends that count as near the turn."""
    plain = read_table(find_table(DATA, "S3")).query("label_smoothing == 0")["activity_index"]
    assert -1e-4 < plain.min() < 0.01
    rule = (DATA / "verdicts.csv").read_text(encoding="utf-8")
    assert "fall in confidence by smoothing where A < .8 (A > 1.25: 0.0000), det teacher" in rule
    assert _recommendation.NEAR == (0.8, 1.25)


def test_the_numbers_are_those_of_the_tables(tmp_path, monkeypatch):
    for name in ("findings", "instruction_findings", "S9_accuracy", "verdicts", "instruction_full"):
        for end in (".csv", ".json"):
            shutil.copy(DATA / f"{name}{end}", tmp_path / f"{name}{end}")
    findings = pd.read_csv(tmp_path / "findings.csv")
    findings.loc[findings["finding"] == "fall_where_acting", "mean"] = 0.777
    findings.loc[(findings["finding"] == "gain_of") & (findings["cell"] == "method=b=0 post_hoc"), "mean"] = 0.888
    findings.to_csv(tmp_path / "findings.csv", index=False)
    monkeypatch.setattr(_recommendation, "committed_folder", lambda: tmp_path)
    act, _, instead = lines(audited((-0.4, -0.5, -0.3)))
    assert "it lowered confidence by 0.777 where" in act
    assert "lowered the ECE by 0.888, " in instead


def test_an_installation_without_the_tables_keeps_the_advice(tmp_path, monkeypatch):
    table = audited((-0.4, -0.5, -0.3))
    whole = lines(table)
    monkeypatch.setattr(_recommendation, "committed_folder", lambda: tmp_path)
    for line, before in zip(lines(table), whole, strict=True):
        advice, _, rest = line.partition(" What the studies found is not in this installation: it lacks their tables.")
        assert before.startswith(advice)
        assert rest == ""
        assert len(advice) > 50
        assert "[" not in advice


def test_an_audit_has_it_in_its_table_and_a_file_of_it_gives_it_again():
    model = make()
    found = audit_model(model, torch.randint(3, 50, (8, 12), generator=torch.Generator().manual_seed(0)))
    rows = found.table.loc[found.table["part"] == "recommendation"]
    assert rows["name"].tolist() == ["act", "at_most", "instead"]
    assert found.recommendation == "\n".join(rows["text"]) == recommendation(found.table)
    again = pd.read_csv(StringIO(found.table.to_csv(index=False)))
    assert recommendation(again) == found.recommendation
    assert found.recommendation.count("\n") == 2


def test_what_is_no_audit_is_refused():
    with pytest.raises(ValueError, match="it is no table of an audit"):
        recommendation(pd.DataFrame(columns=["part", "name", "group", "value", "low", "high", "text"]))
