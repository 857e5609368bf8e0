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

from analysis.audit import _studies, audit_model, recommendation, verdict
from analysis.audit._verdict import TUNED, TUNED_MODELS
from analysis.claims.effects import paired_effects
from analysis.command import committed_folder
from analysis.lab.tables import find_table, read_table

DATA = committed_folder()
NAN = math.nan


def audited(index, gap=(-0.12, -0.18, -0.07), *, b="0.1", **numbers):
    """The committed audit as if it had found this index at one b, this scale gap and these numbers."""
    table = pd.read_csv(DATA / "audit_smollm2.csv", dtype={"group": str})
    table = table.loc[~table["part"].isin(["smoothing", "cap"]) | (table["group"] == b)]
    table = table.loc[table["name"] != "predicted_fall"]  # that of the index that it did find
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
        ((0.4, 0.3, 0.5), "b = 0.1: yes.", "A of 0 to 0.8 it lowered confidence by 0.096 (b = 0.1) where one token was right"),
        ((0.9, 0.85, 0.95), "b = 0.1: a little where one next token is right, more where several are", "by 0.07 to 0.82 times b times confidence where several tokens were right (33 pairs), by 0.06"),
        ((1.0, 0.7, 1.2), "b = 0.1: this text cannot tell.", "explained 96% where one token was right; where several were, 90%, and rho, of norms and sizes alone, 97% [K4"),
        ((1.1, 1.05, 1.2), "b = 0.1: hardly where one next token is right, somewhat where several are", "A of 0.8 to 1.25"),
        ((2.0, 1.8, 2.2), "b = 0.1: not once", "A was 1 to 3, by up to 0.052 [S9, S9.csv.gz]"),
        ((2.0, 1.8, 2.2), "b = 0.1: not once trained to the end where one next token is right, somewhat where several", "A above 1.25 it lowered confidence by 0.0000"),
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
    assert re.search(r": 0\.\d{3} \(b = 0\.05\), 0\.\d{3} \(b = 0\.1\) of a mean confidence of 0\.480;", most)


def test_a_softcap_is_said_with_what_the_studies_found_of_caps():
    verdicts = pd.read_csv(DATA / "verdicts.csv").set_index("claim")
    act, _, _ = lines(audited((2.0, 1.8, 2.2), softcap=30))
    assert f"capped at 30, as this model's are; whether a cap adds to what smoothing does {verdicts.loc['K6', 'verdict']} " in act  # fmt: skip
    assert act.endswith(f"{verdicts.loc['K6', 'depends_on']} [K6, verdicts.csv].")


@pytest.mark.parametrize(
    ("index", "low"),
    [
        ((0.4, 0.3, 0.5), 0.3), ((0.4, NAN, NAN), 0.4), ((2.0, 1.5, 2.5), 1.5), ((-0.3, -0.5, -0.1), -0.5),
        ((0.2, -3.0, 1.1), -3.0), ((1.0, 0.7, 1.2), 0.7),
    ],
)  # fmt: skip
def test_the_most_is_the_larger_rule_at_the_lower_end_of_the_index(index, low):
    amplitude = 0.1 * (0.4795771 - 1 / 49152)
    rules = [amplitude * min(max(0.0, 1 - low), 2.0)] + ([amplitude / (1 + low)] if low > 0 else [])
    _, most, _ = lines(audited(index))
    said = "clipped_fall, or rational_fall where it is larger" if low > 0 else "clipped_fall"
    end = "with A as it is here" if math.isnan(index[1]) else "with the lower end of A's interval"
    assert most.startswith(
        f"How much confidence would it take? By {said}, {end}: {max(rules):.3f} (b = 0.1) of a mean confidence of 0.480; rules, no bounds"
    )
    tunings = f"no bounds: tunings of {TUNED_MODELS} took {TUNED} times what clipped_fall says."
    assert (tunings in most) == (low < 1)
    assert ("rational_fall missed" in most or "rational_fall by up to" in most) == (low > 0)
    assert "at most" not in most  # tunings exceeded it three times
    assert ("times clipped_fall" in most) == (low < 1)  # 3.2 times nothing says nothing


def test_the_most_is_no_less_than_the_fall_that_the_verdict_predicts():
    table = audited((0.4, 0.3, 0.5))
    fall = pd.DataFrame([{"part": "smoothing", "name": "predicted_fall", "group": "0.1", "value": 0.029, "low": 0.02, "high": 0.2}])  # fmt: skip
    _, most, _ = lines(pd.concat([table, fall]))
    assert "interval: 0.200 (b = 0.1)" in most


OVER, UNDER, NEITHER = (-0.12, -0.18, -0.07), (0.2, 0.1, 0.3), (0.0, -0.1, 0.1)
SURE = {"confidence": (0.8, 0.75, 0.85), "accuracy": (0.5, 0.45, 0.55)}


@pytest.mark.parametrize(
    ("gap", "numbers", "said", "evidence"),
    [
        (OVER, {}, "The model is slightly over-confident, and its ECE of 0.023 is above what chance alone shows (up to 0.018); fit a temperature (the best one, 1.023, takes the ECE from 0.023 to 0.018, fitted and measured on this text).", "raised it in 20 of 21 arms"),
        (OVER, {"ece": (0.04, 0.03, 0.05)}, "The model is slightly over-confident, and its ECE of 0.040 is above what chance alone shows (up to 0.018); fit a temperature (the best one, 1.023, takes the ECE from 0.040 to 0.018, fitted and measured on this text).", "raised the ECE of ordinary text from 0.060 to 0.181 [instruction_full.csv]"),
        (OVER, {"ece": (0.04, 0.03, 0.05), "ece_after": 0.05}, "The model is slightly over-confident, and its ECE of 0.040 is above what chance alone shows (up to 0.018); no temperature mends it (the best one, 1.023, takes the ECE from 0.040 to 0.050, fitted and measured on this text): stop earlier, or smooth and compare.", "early stopping"),
        (OVER, {"ece": 0.015}, "The model is slightly over-confident; leave it: an ECE of 0.015 is seen of calibrated predictions too (up to 0.018).", "b = 0.1 raised the ECE by 0.029"),
        (UNDER, {"best": 0.9}, "Do not smooth, as the model is under-confident; a temperature may help (the best one, 0.900,", "76 of 94 cells"),
        (NEITHER, {"ece": 0.015}, "Do not smooth, as confidence is right on average; leave it: an ECE of 0.015", "raised the ECE by 0.029"),
        (NEITHER, {}, "Take more documents, as this text cannot tell whether the model is over- or under-confident; a temperature may help", "raised the ECE by 0.029"),
        (NEITHER, {"ece_after": 0.09}, "Take more documents, as this text cannot tell whether the model is over- or under-confident; no temperature mends it", ""),
        (NEITHER, SURE | {"ece": 0.3}, "The model is over-confident, and its ECE of 0.300 is above what chance alone shows (up to 0.018); fit a temperature", "early stopping"),
        (NEITHER, {"confidence": (0.5, 0.45, 0.55), "accuracy": (0.8, 0.75, 0.85), "ece": 0.3}, "Do not smooth, as the model is under-confident; a temp", ""),
        (UNDER, SURE | {"ece": 0.3}, "This text cannot tell whether the model is over- or under-confident, as entropy and confidence disagree; a temp", ""),
        (NEITHER, {"confidence": 0.8, "accuracy": 0.5, "ece": 0.3}, "The model is over-confident, and its ECE of 0.300 is above what", ""),
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
    assert (
        "; take another text, as no temperature fits this one (the best lies beyond 20, where the ECE is 0.400). No"
        in instead
    )


@pytest.mark.parametrize("index", [(2.0, 1.8, 2.2), (1.0, 0.7, 1.2), (0.4, 0.3, 0.5)])
def test_smoothing_is_no_remedy_where_it_would_not_act(index):
    act, _, instead = lines(audited(index, OVER, ece=(0.1, 0.09, 0.11), ece_after=0.2))
    assert ("smooth and compare" in instead) == ("not once trained" not in act)
    assert "stop earlier" in instead


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("after", [0.018, 0.3])
@pytest.mark.parametrize("ece", [0.015, (0.023, 0.012, 0.027), (0.1, 0.08, 0.12)])
@pytest.mark.parametrize("numbers", [{}, {"confidence": (0.8, 0.75, 0.85), "accuracy": (0.5, 0.45, 0.55)}])
@pytest.mark.parametrize("gap", [(-0.12, -0.18, -0.07), (0.2, 0.1, 0.3), (-0.5, -1.2, 0.1)])
def test_no_temperature_is_offered_that_does_not_help_and_no_calibration_claimed_that_is_not_seen(
    gap, numbers, ece, after, bounded, tmp_path, monkeypatch
):
    monkeypatch.setattr(_studies, "committed_folder", lambda: tmp_path)  # of no matter for the advice
    table = audited((-0.07, -0.11, -0.04), gap, best=0.05, ece=ece, ece_after=after, **numbers)
    if bounded:
        table.loc[table["part"].eq("temperature") & table["name"].eq("best"), "text"] = "at a bound"
    said, (_, _, instead) = verdict(table).partition("\n")[0], lines(table)
    value = ece[0] if isinstance(ece, tuple) else ece
    offered = "temperature may help" in instead or "fit a temperature" in instead
    assert offered <= (after < value and not bounded)
    assert ("take another text" in instead.lower()) == bounded
    assert ("lies beyond 0.05" in instead) == bounded
    assert ("fitted and measured on this text" in instead) == ("the best one" in instead)
    calibrated = gap[1] < 0 < gap[2] and not numbers and value <= 0.018
    assert ("right on average" in instead) == ("as confident as it should be" in said) == calibrated


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
def test_it_never_says_what_the_verdict_denies(gap, index, tmp_path, monkeypatch):
    monkeypatch.setattr(_studies, "committed_folder", lambda: tmp_path)
    table = audited(index, gap, ece=0.015 if gap == NEITHER else 0.1)
    said, (act, _, instead) = verdict(table), lines(table)
    assert ("cannot tell whether smoothing would act" in said) == ("cannot tell" in act)
    assert ("below 1: smoothing would act" in said) == (": yes" in act or ": a little where" in act)
    assert ("above 1: smoothing would not act at first" in said) == (": not once" in act or ": hardly" in act)
    assert ("the model is slightly over-confident (by 0.020): entropy" in said) == ("Do not smooth" not in instead)
    assert ("under-confident: entropy" in said) == ("under-confident" in instead)


def test_every_citation_names_a_table_that_has_the_claim():
    """And the numbers are read from it: a table of other numbers gives another text."""
    several = [audited(i, g, ece=0.1, softcap=30) for i in ((-0.4,), (0.9,), (1.5,)) for g in (OVER, UNDER)]
    cited = set(re.findall(r"\[(?:(\w+), )?(\w+)\.csv(?:\.gz)?\]", " ".join(map(recommendation, several))))
    assert len(cited - {("", name) for name in _studies.TUNED_ON_PAIRS}) == 9
    for source, name in cited:
        table = read_table(find_table(DATA, name))
        if source.startswith("K"):
            assert source in set(table["claim"])
        else:  # rows of an experiment
            assert "claim" not in table
            assert name in _studies.TUNED_ON_PAIRS or name.partition("_")[0] == (source or "instruction")


def test_the_heads_behind_the_first_line_have_the_index_that_it_says():
    """None below 0, where an audit's text may lie, and none between the two ends that count as near the turn."""
    plain = read_table(find_table(DATA, "S3")).query("label_smoothing == 0")["activity_index"]
    assert -1e-4 < plain.min() < 0.01
    rule = (DATA / "verdicts.csv").read_text(encoding="utf-8")
    assert "fall in confidence by smoothing where A < .8 (A > 1.25: 0.0000), det teacher" in rule
    assert _studies.NEAR == (0.8, 1.25)


def test_the_fall_is_that_of_the_b_that_was_asked():
    """It is about b times confidence: a mean over b says little of any."""
    pairs = paired_effects(read_table(find_table(DATA, "S3"))).query("teacher == 'det' and activity_index < 0.8")
    falls = pairs.groupby("label_smoothing")["confidence_fall"].mean()
    for b, said in (
        ("0.1", "0.096 (b = 0.1)"),
        ("0.4", "0.325 (b = 0.4)"),
        ("0.3", "0.020 (b = 0.02), 0.325 (b = 0.4)"),
    ):
        table = audited((0.4, 0.3, 0.5))
        table.loc[table["group"] == "0.1", "group"] = b
        assert f"it lowered confidence by {said} where one token was right" in lines(table)[0]
        for value, of in re.findall(r"([\d.]+) \(b = ([\d.]+)\)", said):
            assert falls[float(of)] == pytest.approx(float(value), abs=6e-4)


def test_the_tunings_are_those_that_the_verdict_speaks_of():
    _, most, _ = lines(audited((0.4, 0.3, 0.5)))
    cited = "[instruction_full.csv] [instruction_candidates.csv]"
    assert f"on new texts by {TUNED} times clipped_fall in the mean over seeds {cited};" in most
    ends = [float(end) for end in TUNED.split(" to ")]
    of_pairs = re.findall(r"those of (\S+) on pairs, with b = 0.1, by ([\d.]+) to ([\d.]+) \[real_\w+\.csv", most)
    assert of_pairs[0] == ("Gemma-3-270M", "1.3", "2.0")
    for model, low, high in of_pairs:
        assert model.partition("-")[0] in TUNED_MODELS
        assert ends[0] <= float(low) <= float(high) <= ends[1]


def test_a_table_of_pairs_that_is_not_there_is_left_out(monkeypatch):
    monkeypatch.setattr(_studies, "TUNED_ON_PAIRS", {"real_nothing": "Nothing"})
    _, most, _ = lines(audited((0.4, 0.3, 0.5)))
    cited = "[instruction_full.csv] [instruction_candidates.csv]"
    assert most.endswith(f"by {TUNED} times clipped_fall in the mean over seeds {cited}.")


def test_the_numbers_are_those_of_the_tables(tmp_path, monkeypatch):
    for name in (
        "findings",
        "instruction_findings",
        "S9_accuracy",
        "verdicts",
        "instruction_full",
        "S3",
        "S4",
        "S5",
        "S9",
    ):
        for path in (find_table(DATA, name), DATA / f"{name}.json"):
            shutil.copy(path, tmp_path / path.name)
    findings = pd.read_csv(tmp_path / "findings.csv")
    findings.loc[findings["cell"] == "b=0.1", "mean"] = 0.777
    findings.loc[findings["finding"] == "largest_fall_blurred", "mean"] = 0.666
    findings.loc[(findings["finding"] == "gain_of") & (findings["cell"] == "method=b=0 post_hoc"), "mean"] = 0.888
    findings.to_csv(tmp_path / "findings.csv", index=False)
    tuned = pd.read_csv(tmp_path / "instruction_full.csv")
    tuned.loc[tuned["label_smoothing"] > 0, "confidence"] = 0.0
    tuned.to_csv(tmp_path / "instruction_full.csv", index=False)
    monkeypatch.setattr(_studies, "committed_folder", lambda: tmp_path)
    act, most, instead = lines(audited((-0.4, -0.5, -0.3)))
    assert "it lowered confidence by 0.777 (b = 0.1) where" in act
    assert re.search(r"lowered confidence on new texts by \d\.\d to \d+\.\d times clipped_fall", most)
    assert f"by {TUNED} times" not in most
    assert "lowered the ECE by 0.888, " in instead


def test_an_installation_without_the_tables_keeps_the_advice(tmp_path, monkeypatch):
    table = audited((-0.4, -0.5, -0.3))
    whole = lines(table)
    monkeypatch.setattr(_studies, "committed_folder", lambda: tmp_path)
    for line, before in zip(lines(table), whole, strict=True):
        advice, _, rest = line.partition(" What the studies found is not in this installation: it lacks their tables.")
        assert before.startswith(advice)
        assert rest == ""
        assert len(advice) > 50
        assert ".csv" not in advice


@pytest.mark.parametrize("index", [(-0.4, -0.5, -0.3), (2.0, 1.8, 2.2), -math.inf])
def test_the_answer_alone_is_the_recommendation_without_its_evidence(index):
    table = audited(index)
    short = recommendation(table, evidence=False).split("\n")
    assert len(short) == 3
    for answer, whole in zip(short, lines(table), strict=True):
        assert whole.startswith(answer)
        assert answer.endswith(".")
        assert ".csv" not in answer
    assert len(" ".join(short)) < 900


def test_an_audit_has_it_in_its_table_and_a_file_of_it_gives_it_again():
    model = make()
    found = audit_model(model, torch.randint(3, 50, (8, 12), generator=torch.Generator().manual_seed(0)))
    rows = found.table.loc[found.table["part"] == "recommendation"]
    assert rows["name"].tolist() == ["act", "at_most", "instead"]
    assert found.recommendation == "\n".join(rows["text"]) == recommendation(found.table)
    again = pd.read_csv(StringIO(found.table.to_csv(index=False)))
    assert recommendation(again) == found.recommendation
    assert found.recommendation.count("\n") == 2
    assert found.answer == recommendation(found.table, evidence=False)


def test_what_is_no_audit_is_refused():
    with pytest.raises(ValueError, match="it is no table of an audit"):
        recommendation(pd.DataFrame(columns=["part", "name", "group", "value", "low", "high", "text"]))
