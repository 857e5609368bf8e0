"""The committed tables of the real model: verdicts follow from them, and the notes quote them."""

import json
import re
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

import analysis
from analysis.audit import verdict
from analysis.audit._verdict import Lookup
from analysis.claims.judging import judge_model
from analysis.study.real_tuning.predictions import PREDICTIONS
from analysis.study.real_tuning.tuning import configs

ROOT = Path(analysis.__file__).parent.parent
DATA = ROOT / "paper_figures" / "data"
NOTES = (ROOT / "docs" / "real_model_notes.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tuning():
    return pd.read_csv(DATA / "instruction_full.csv")


@pytest.fixture(scope="module")
def audit():
    return pd.read_csv(DATA / "audit_smollm2.csv")


def rows_of(start):
    """Cells of the table of the notes whose header begins so."""
    lines = NOTES.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(start))
    table = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            return table
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def test_every_run_is_there(tuning):
    grid = configs("m", "q", "full")
    keys = ["label_smoothing", "temperature", "softcap", "data_seed"]
    runs = tuning[keys].fillna(0).drop_duplicates()
    expected = {(c.label_smoothing, c.temperature, c.softcap or 0, c.seed) for c in grid}
    assert set(runs.itertuples(index=False, name=None)) == expected
    sidecar = json.loads((DATA / "instruction_full.json").read_text())
    assert "dequantised" in sidecar["source"]["model"]
    assert sidecar["grid"]["failed"] == {}


def test_the_verdicts_follow_from_the_table(tuning):
    for table, name in zip(judge_model(tuning, PREDICTIONS), ("verdicts", "findings"), strict=True):
        committed = pd.read_csv(DATA / f"instruction_{name}.csv", keep_default_na=False, na_values=[])
        fresh = pd.read_csv(StringIO(table.to_csv(index=False)), keep_default_na=False, na_values=[])
        pd.testing.assert_frame_equal(fresh, committed, check_dtype=False, rtol=1e-6)


def test_the_notes_quote_the_tuning(tuning):
    plain = tuning.loc[
        (tuning["split"] == "test") & (tuning["reading"] == "as_trained")
        & (tuning["temperature"] == 1) & tuning["softcap"].isna()
    ]  # fmt: skip
    rows = rows_of("| b | epoch |")
    assert len(rows) == 5
    for b, epoch, *cells in rows:
        smoothing = 0.0 if epoch == "0" else float(b)
        at = plain.loc[(plain["label_smoothing"] == smoothing) & (plain["epoch"] == int(epoch))]
        means = at.groupby("view")[["ece", "accuracy"]].mean()
        numbers = [means.loc[v, "ece"] for v in ("letter", "tokens", "text")]
        numbers += [means.loc[v, "accuracy"] for v in ("letter", "tokens")]
        assert cells == [f"{x:.3f}" for x in numbers]


def test_the_notes_quote_what_rivals_leave_beside_smoothing():
    found = pd.read_csv(DATA / "instruction_findings.csv").query("finding == 'gain_beyond_smoothing'").set_index("cell")
    for method, words in (("b=0 post_hoc", "in pairs {} more"), ("early stopping", "whether that is more, {}, three")):
        mean, low, high = (f"{found.loc[f'method={method}', end]:.3f}" for end in ("mean", "low", "high"))
        said = words.format(f"{mean} [{low}, {high}]").replace("-", "\N{MINUS SIGN}")
        assert said in " ".join(NOTES.split())


def test_the_notes_quote_the_training_step():
    steps = pd.read_csv(DATA / "training_step.csv")
    rows = rows_of("| loss | smoothing |")
    assert len(rows) == 4
    for loss, smoothing, *cells in rows:
        at = steps.loc[(steps["loss"] == loss) & (steps["label_smoothing"] == float(smoothing))]
        at = at.set_index("checkpointing")
        assert cells == [f"{at.loc[way, name]:.0f}" for name in ("peak_mib", "ms") for way in (False, True)]


def test_the_notes_quote_the_audit(audit):
    get, notes = Lookup(audit), " ".join(NOTES.split())
    for part, name, group in (
        ("prediction", "confidence", ""), ("prediction", "accuracy", ""), ("calibration", "ece", ""),
        ("temperature", "best", ""), ("smoothing", "activity", "0.1"), ("context", "scale_gap", "1"),
        ("context", "scale_gap", "8"), ("context", "scale_gap", "32"), ("context", "scale_gap", "128"),
    ):  # fmt: skip
        value, low, high = get(part, name, group)
        assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in notes, name
    rare = [f"{x:.3f}" for x in get("frequency", "over_confidence", "1")]
    assert f"rare tokens {rare[0]} [{rare[1]}, {rare[2]}]" in notes
    left_out, tokens = (int(get("model", name).value) for name in ("left_out", "tokens"))
    assert f"{left_out} of {tokens + left_out:,} predictions" in notes
    assert left_out == get("model", "documents").value  # one a document
    assert "over-confident" in verdict(audit)
    said = audit.loc[audit["part"] == "source"].set_index("name")["text"]
    assert "dequantised" in said["quantisation"]
    assert re.fullmatch(r"sha256:[0-9a-f]{16}", said["revision"])
