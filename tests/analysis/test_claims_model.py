"""Verdicts on a real model's tuning, against tables in which every effect is planted."""

import itertools

import pandas as pd
import pytest

from analysis.claims.judging import MODEL_CLAIMS, judge_model
from analysis.instruction import main
from analysis.study.real_tuning.predictions import PREDICTIONS

ARMS = [(1.0, None, 0.0), (1.0, None, 0.1), (1.0, None, 0.2)] + [
    (t, c, b) for t, c in ((0.5, None), (2.0, None), (1.0, 30.0), (1.0, 15.0)) for b in (0.0, 0.1)
]


def planted(
    gain=0.05,
    text_gain=0.03,
    growth=0.02,
    tempered=0.04,
    capped=-0.01,
    rank=3.0,
    accuracy=0.01,
    gap=0.4,
    sign=-1,
    activity=1.5,
    opposed=0.0,
    narrowed=0.0,
    rank_apart=0.0,
    felt=True,
):
    """A table with these effects of b = .1 at the last epoch, each larger by a little from seed to seed.

    Confidence falls by as much as the error, or, if that is not ``felt``, by as much everywhere.
    """
    rows = []
    for (t, c, b), seed, epoch, (split, view) in itertools.product(
        ARMS,
        range(3),
        (0, 1, 2, 4),
        [
            *itertools.product(("train", "validation", "test"), ("options", "letter", "tokens", "first")),
            ("test", "text"),
        ],
    ):
        strength, noise = (b / 0.1) * (epoch / 4), 0.001 * (seed - 1)
        extra = tempered * (t == 0.5) + capped * (c == 15.0)
        side = {"letter": 1, "tokens": -1}.get(view, 0)  # what differs between views and not in their mean
        base = 0.2 + growth * epoch / 3 + noise + (0.02 * (t - 1) if b == 0 else 0)
        lower = text_gain if view == "text" else gain + extra
        row = {
            "temperature": t,
            "softcap": c,
            "label_smoothing": b,
            "data_seed": seed,
            "epoch": epoch,
            "split": split,
            "view": view,
            "reading": "as_trained",
            "accuracy": 0.5 - (accuracy + opposed * side) * strength + noise,
            "confidence": 0.8 - (lower - (0 if felt else extra) + noise) * strength,
            "ece": base - (lower + noise) * strength,
            "rms": base,
            "aurc": 0.3 + noise - opposed * side * strength,
            "nll": (1.0 + 0.1 * strength if split == "train" else 2.0 - (gap + narrowed * side) * strength)
            + 0.1 * (epoch - 2 + 0.9 * side) ** 2
            + noise,
            "activity": activity,
            "effective_rank": 20 + (rank + rank_apart * side) * strength + sign * 100 * (base - 0.2) + noise,
            "smallest_share": 0.1,
        }
        rows.append(row)
        if epoch in (0, 4) and split == "test":
            rows.append({**row, "reading": "post_hoc", "ece": 0.01 + b})
    return pd.DataFrame(rows)


def judge(table):
    return judge_model(table, PREDICTIONS).verdicts


def verdict(claim, **effects):
    return judge(planted(**effects)).set_index("claim").loc[claim]


@pytest.mark.parametrize(
    ("claim", "effects", "word", "mean"),
    [
        ("K1", {}, "supported", 0.02 * 4 / 3),
        ("K1", {"growth": -0.02}, "refuted", -0.02 * 4 / 3),
        ("K2", {}, "supported", 0.05),
        ("K2", {"gain": -0.05}, "refuted", -0.05),
        ("K2", {"text_gain": -0.05}, "depends on", 0.05),
        ("K5", {}, "supported", 0.04),
        ("K5", {"activity": 0.6}, "depends on", 0.04),  # smoothing acted: nothing to restore
        ("K5", {"felt": False}, "refuted", 0.0),  # the error falls by more, the confidence does not
        ("K5", {"gain": -0.05}, "refuted", 0.04),  # the confidence falls by more, to no gain
        ("K5", {"tempered": -0.04}, "refuted", -0.04),
        ("K5", {"tempered": -0.04, "activity": 0.6}, "depends on", -0.04),
        ("K6", {"capped": 0.02, "activity": 0.6}, "depends on", 0.02),
        ("K6", {"capped": 0.02}, "supported", 0.02),
        ("K6", {}, "refuted", -0.01),
        ("K6", {"activity": 0.6}, "depends on", -0.01),  # nothing to restore: nothing refuted either
        ("K8", {}, "supported", 3.0),
        ("K8", {"sign": 1}, "refuted", 3.0),  # more rank and more error in every kind, as the simulation is judged
        ("K8", {"rank": -3.0}, "refuted", -3.0),
        ("K8", {"rank": -3.0, "rank_apart": 5.0}, "depends on", -3.0),  # lower in one view, higher in the other
        ("K8", {"rank": 3.0, "rank_apart": 5.0}, "depends on", 3.0),
        ("K9", {}, "supported", 0.4 + 0.1),
        ("K9", {"accuracy": 0.05}, "depends on", 0.4 + 0.1),
        ("K9", {"gap": -0.4}, "refuted", -0.4 + 0.1),
        ("K9", {"accuracy": 0.0, "opposed": 0.04}, "depends on", 0.4 + 0.1),  # lost in one view, won in the other
        ("K9", {"narrowed": 0.6}, "depends on", 0.4 + 0.1),
        ("K9", {"gap": -0.4, "narrowed": 0.6}, "depends on", -0.4 + 0.1),
    ],
)
def test_planted_effects_are_found(claim, effects, word, mean):
    line = verdict(claim, **effects)
    assert line["mean"] == pytest.approx(mean, abs=2e-3)
    assert line["verdict"] == word
    assert line["low"] <= line["mean"] <= line["high"]
    assert (line["seeds"], line["cells"]) == (3, 1 if claim == "K1" else 2)


def test_rivals_of_smoothing_are_named():
    line = verdict("K2")
    assert "temperature of b = 0 (one a view) 0.2167" in line["condition"]  # .2267 at the last epoch, .01 afterwards
    # The mean NLL of both views is least at epoch 2, that of the letters at 1: one model cannot have stopped at both.
    assert "early stopping of b = 0 (one epoch a run) 0.0133" in line["condition"]
    assert line["counter_evidence"].startswith(
        "lowers the ECE further: b = .2, post-hoc temperature of b = 0 (one a view); change"
    )


def test_rivals_are_compared_with_smoothing_in_pairs():
    """Two gains over b = 0 share its noise, and their intervals do not tell which is larger."""
    found = judge_model(planted(), PREDICTIONS).findings
    found = found.loc[(found["claim"] == "K2") & (found["finding"] == "gain_beyond_smoothing")].set_index("cell")
    fitted, stopped = (found.loc[f"method={name}"] for name in ("b=0 post_hoc", "early stopping"))
    assert fitted["mean"] == pytest.approx(0.2267 - 0.05 - 0.01, abs=1e-4)  # what b = .1 leaves, and a temperature
    assert stopped["mean"] == pytest.approx(0.0133 - 0.05, abs=1e-4)
    assert fitted["low"] == pytest.approx(fitted["high"], abs=1e-9)  # only the plain twin has noise


def test_views_are_told_apart():
    line = verdict("K9", accuracy=0.0, opposed=0.04)
    assert "accuracy, b = 0 minus b = .1: multiple choice 0.0400" in line["condition"]
    assert "short answers -0.0400" in line["condition"]
    assert "mean -0.0000" in line["condition"] or "mean 0.0000" in line["condition"]
    assert "(multiple choice 0.0400" in line["counter_evidence"].split("AURC")[1]


def test_arms_are_compared_over_the_b_that_all_have():
    """Without a temperature or cap b = .2 was run too, and has a lower ECE, .1267."""
    line = verdict("K5")
    assert line["counter_evidence"].startswith("the lowest ECE over b of 0, 0.1 is")
    assert line["counter_evidence"].endswith("0.1767 without")


@pytest.mark.parametrize(("activity", "words"), [(0.6, "nothing to restore"), (1.5, "smoothing did not act")])
def test_a_restoration_needs_something_to_restore(activity, words):
    assert words in verdict("K5", activity=activity)["condition"]


def test_every_claim_was_predicted():
    assert [p.claim for p in PREDICTIONS] == list(MODEL_CLAIMS)
    table = judge(planted())
    assert table["predicted"].tolist() == [p.verdict for p in PREDICTIONS]
    assert table["statement"].iloc[0] == "instruction tuning degrades calibration"


def test_missing_runs_are_named():
    with pytest.raises(ValueError, match="table must hold all runs of the preset full; K5 lacks some"):
        judge(planted().query("temperature == 1"))


def test_the_command(tmp_path, capsys):
    planted().to_csv(tmp_path / "table.csv", index=False)
    assert main(["verdicts", str(tmp_path / "table.csv"), str(tmp_path / "verdicts.csv")]) == 0
    assert "K9  supported" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "verdicts.csv")) == len(MODEL_CLAIMS)
