"""The law on transformers, and verdicts on real text, against tables in which every effect is planted."""

import itertools

import pandas as pd
import pytest

from analysis.claims.findings import Findings
from analysis.claims.foretold import foretold
from analysis.claims.sizes import Grid, shares_of_fall
from analysis.claims.sources import Tables
from analysis.claims.texts import capped_on_text, foretells_on_text, little_effect_on_text
from analysis.claims.transformers import judge_transformers
from analysis.lab.provenance import made_here
from analysis.lab.tables import write_table
from analysis.study.from_scratch.predictions import TEXT

GRID = Grid((1024, 65536), (32, 256))


def planted(
    *,
    near=(1.1, 1.1, 0.9, 0.9),  # what a gain predicts over the fall, at each (V, D)
    scale=3.0,
    free=2.0,  # P over the fall
    narrow_confidence=-0.1,
    narrow_bits=0.5,
    large_share=0.0,
    narrow_share=0.0,
    activity=0.5,
):
    """Rows of S12 of three seeds: smoothing takes 40 % of b (confidence - 1/V)."""
    rows = []
    for (size, seed), method, epoch, distribution in itertools.product(
        itertools.product(enumerate(itertools.product(*GRID)), range(3)),
        ("b=0", "b=0.1"),
        (0, 2, 16),
        ("train", "text", "pairs"),
    ):
        if epoch == 0 and method != "b=0":
            continue
        (place, (v, d)), noise = size, 1e-4 * (seed - 1)
        narrow, large = d == 32, v > 1024
        confidence = 0.6 + narrow_confidence * narrow + noise
        fall = 0.1 * (confidence - 1 / v) * (0.4 + large_share * large + narrow_share * narrow) + noise / 10
        rows.append({
            "key": f"{v}{d}{seed}", "vocab_size": v, "hidden_size": d, "data_seed": seed, "model_seed": 1000 + seed,
            "converged": True, "method": method, "label_smoothing": 0.1 * (method != "b=0"), "epoch": epoch,
            "distribution": distribution, "confidence": confidence - fall * (method != "b=0"),
            "accuracy": 0.5, "estimated_ece": 0.1 - 0.05 * (method != "b=0"),
            "bits_per_byte": 2.0 + narrow_bits * narrow + noise, "activity": activity + noise,
            "gain_fall_0.1": near[place] * fall, "scale_fall_0.1": scale * fall,
            "frozen_fall_0.1": free * fall if distribution == "train" else None,
        })  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("effects", "word"),
    [
        ({}, "supported"),  # a gain is near everywhere, one scale nowhere, P above
        ({"near": (1.1, 1.1, 0.9, 0.7)}, "depends on"),
        ({"near": (1.1, 1.1, 0.9, 0.7), "scale": 1.0}, "supported"),  # the other is near
        ({"near": (1.3, 1.5, 0.7, 0.5)}, "refuted"),
        ({"free": 0.5}, "refuted"),
        ({"near": (float("nan"), 1.1, 1.0, 1.0)}, "depends on"),  # nothing predicted at one size
    ],
)
def test_the_law(effects, word):
    found = Findings("law")
    assert foretells_on_text(planted(**effects), found, GRID) == word
    assert found("gain_ratio", V=1024, D=256).mean == pytest.approx(effects.get("near", (1.1,) * 4)[1])
    assert found("frozen_ratio", V=65536, D=32).mean == pytest.approx(effects.get("free", 2.0))
    # .1 (p - 1/V) (1 - A) over .04 (p - 1/V), and / (1 + A)
    assert found("clipped_ratio", V=65536, D=256).mean == pytest.approx(0.05 / 0.04, rel=1e-2)
    assert found("rational_ratio", V=65536, D=256).mean == pytest.approx(0.1 / 1.5 / 0.04, rel=1e-2)


def test_without_a_size_the_law_is_not_decided():
    table = planted().query("not (vocab_size == 1024 and hidden_size == 32)")
    assert foretells_on_text(table, Findings("law"), GRID) == "not decided"
    alone = shares_of_fall(planted().query("epoch == 16 and distribution == 'pairs' and data_seed == 0"))
    assert foretold(alone, alone, Findings("law"), GRID) == "not decided"  # one seed has no interval


@pytest.mark.parametrize(
    ("rule", "effects", "word"),
    [
        (capped_on_text, {}, "refuted"),  # less sure, and needs more bits
        (capped_on_text, {"narrow_bits": 0.0}, "supported"),
        (capped_on_text, {"narrow_confidence": 0.0, "narrow_bits": 0.0}, "refuted"),
        (little_effect_on_text, {}, "refuted"),
        (little_effect_on_text, {"activity": 1.5}, "depends on"),
        (little_effect_on_text, {"large_share": -0.3}, "depends on"),
        (little_effect_on_text, {"large_share": -0.3, "narrow_share": -0.3}, "supported"),
    ],
)
def test_claims_on_text(rule, effects, word):
    table = planted(**effects)
    assert rule(table, Findings("K"), GRID) == word
    assert rule(table.query("hidden_size == 32"), Findings("K"), GRID) == "not decided"


def test_every_prediction_on_text_has_a_line(tmp_path):
    sizes = {1024: 300, 65536: 600, 32: 4, 256: 16}  # those of the preset
    table = planted().replace({"vocab_size": sizes, "hidden_size": sizes})
    made = made_here("python -m analysis.study run S12", config={}, seeds=[0], wall_seconds=0.0)
    write_table(table, tmp_path / "S12.csv", made)
    lines = judge_transformers(Tables([tmp_path]), "quick", "S12").verdicts.set_index("claim")
    assert lines["predicted"].to_dict() == {claim: p.verdict for p in TEXT for claim in [p.claim]}
    assert "not decided" not in set(lines["verdict"])
    assert lines.loc["law", "statement"].startswith("the model tuned without smoothing foretells")
    assert "a gain for each dimension 0.90 to 1.10, within 20 % at 4" in lines.loc["law", "condition"]


def test_ordinary_text_and_the_mean_over_v_of_the_step_in_d_are_findings():
    found = Findings("K4")
    little_effect_on_text(planted(narrow_share=-0.3, narrow_confidence=0.0), found, GRID)
    assert found("fall_share_step").mean == pytest.approx(0.3, abs=1e-3)
    assert found("fall_share_elsewhere", V=1024, D=256).mean == pytest.approx(0.4, abs=1e-3)
    assert found("excess_elsewhere_at_epoch_2", V=1024, D=256).mean == pytest.approx(0.1)
    assert found("gain_elsewhere_at_epoch_2", V=1024, D=32).mean == pytest.approx(0.05)
