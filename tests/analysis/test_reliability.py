"""Predictions out of files: every form gives the same numbers, lm-eval's samples its own, and bad rows are named."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy.special import softmax

from analysis import calibration
from analysis.reliability import _files, draw_predictions, measure_predictions, read_predictions
from analysis.reliability.__main__ import main

SAMPLES = Path(__file__).parent.parent / "lm_eval_samples"
FILES = sorted(SAMPLES.glob("*.jsonl"))
RAW, NORMALISED = "log-likelihood", "log-likelihood per character"


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sample(task):
    (path,) = SAMPLES.glob(f"samples_{task}_*")
    return path


def write_lines(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def data():
    """Logits twice as large as those that the labels are drawn with, of three options; groups of 250."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 3))
    label = np.array([rng.choice(3, p=p) for p in softmax(z, -1)])
    return pd.DataFrame(2 * z, columns=[f"logit_{k}" for k in range(3)]).assign(
        label=label, side=["left", "right"] * 250
    )


class TestSamplesOfLmEval:
    def test_accuracies_are_those_of_the_files_by_task_and_pooled(self):
        read = read_predictions(FILES)
        assert (len(FILES), read.rows, read.left_out) == (4, 70, [])
        assert [view.score for view in read.predictions] == [RAW, NORMALISED]
        scores = measure_predictions(read.predictions).scores.set_index(["score", "group"])
        every = {RAW: [], NORMALISED: []}
        for path in FILES:
            task = path.name.split("_")[1]
            for score, metric in ((RAW, "acc"), (NORMALISED, "acc_norm")):
                own = [row[metric] for row in lines_of(path) if metric in row]
                every[score] += own
                if own:
                    assert scores.loc[(score, task), "accuracy"] == pytest.approx(np.mean(own))
                    assert scores.loc[(score, task), "n"] == len(own)
        for score, own in every.items():
            assert scores.loc[(score, "all"), ["n", "accuracy"]].tolist() == pytest.approx([len(own), np.mean(own)])
        assert (NORMALISED, "blanks") not in scores.index  # its options are contexts
        assert "options are contexts" in read.said[0]

    @pytest.mark.parametrize(("task", "delimiter"), [("sums", " "), ("words", ""), ("information", " ")])
    def test_confidence_and_likelihood_are_those_of_the_options_that_the_document_names(self, task, delimiter):
        raw, normalised = read_predictions([sample(task)]).predictions
        for i, row in enumerate(lines_of(sample(task))):
            options = row["doc"]["options"]
            assert row["arguments"]["gen_args_0"]["arg_1"] == delimiter + options[0]
            lls = np.array([float(ll) for ll, _ in row["filtered_resps"]])[: len(options)]
            right = options.index(row["doc"]["right"]) if task == "words" else row["doc"]["right"]
            for view, p in ((raw, softmax(lls)), (normalised, softmax(lls / [len(o) for o in options]))):
                assert view.confidence[i] == pytest.approx(p.max())
                assert view.nll[i] == pytest.approx(-np.log(p[right]))
                assert view.correct[i] == (p.argmax() == right)
                assert np.exp(view.log1m_confidence[i]) == pytest.approx(1 - p.max())

    def test_an_option_that_begins_with_a_space_of_its_own_is_told_by_acc_norm(self, tmp_path):
        row = lines_of(sample("words"))[0]
        path = write_lines(
            tmp_path / "s.jsonl", [{**row, "filtered_resps": [["-4.0", "x"], ["-4.1", "x"], ["-6.1", "x"]]}]
        )
        assert "count the space" in read_predictions([path]).said[0]  # -6.1 / 6 is the largest, not -6.1 / 5

    def test_what_is_no_question_is_named(self, tmp_path):
        good = lines_of(sample("sums"))
        rows = [
            good[0],
            json.dumps(good[1])[:50],
            {**good[2], "acc": 1 - good[2]["acc"]},
            {**good[3], "target": "[0, 1]"},
            {**good[4], "target": "9"},
            {**good[5], "filtered_resps": ["an answer"], "arguments": {"gen_args_0": {"arg_0": "?", "arg_1": {}}}},
            {**good[6], "acc": 0.4},
            '"a text"',
            {"doc_id": 6},
            {**good[6], "arguments": [3]},
            good[0],
            {**good[7], "acc_norm": 1 - good[7]["acc_norm"]},
            {**good[8], "filtered_resps": [["nan", "False"], *good[8]["filtered_resps"][1:]]},
        ]
        read = read_predictions([write_lines(tmp_path / "samples_x.jsonl", rows)])
        assert [len(view.label) for view in read.predictions] == [2, 1]
        found = {line: problem for _, line, problem in read.left_out}
        assert found.pop(2).startswith("is no JSON: ")
        assert found == {
            3: f"acc is {1 - good[2]['acc']:g}, the log-likelihoods say otherwise",
            4: "target must name one of 4 options, got '[0, 1]'",
            5: "target must name one of 4 options, got '9'",
            6: "arguments must be a context and an option each: the task is no multiple choice",
            7: "acc must be 0 or 1, got 0.4: the task grades its answers",
            8: "is no JSON object",
            9: "is no line of a sample file",
            10: "arguments must be a context and an option each: the task is no multiple choice",
            11: "doc_id 0 was in line 1 before",
            12: f"acc_norm is {1 - good[7]['acc_norm']:g}, the log-likelihoods per character say otherwise",
            13: "log-likelihood must be a number, got 'nan'",
        }

    def test_a_table_of_them_has_nothing_where_a_question_has_fewer_options(self, tmp_path):
        pytest.importorskip("pyarrow")
        pd.DataFrame(lines_of(sample("words"))).to_parquet(tmp_path / "words.parquet")
        there, here = (read_predictions(path).predictions for path in (tmp_path / "words.parquet", sample("words")))
        for one, other in zip(there, here, strict=True):
            assert one.nll.tolist() == other.nll.tolist()

    def test_groups_may_be_fields_of_the_document_or_files(self):
        names = set(read_predictions([sample("sums")], group="right").predictions[0].group)
        assert names == {"0", "1", "2", "3"}
        assert set(read_predictions(FILES[:2], group="file").predictions[0].group) == set(map(str, FILES[:2]))

    def test_one_task_twice_is_refused_unless_files_are_groups(self, tmp_path):
        twin = tmp_path / FILES[0].name
        twin.write_bytes(FILES[0].read_bytes())
        with pytest.raises(ValueError, match=r"^files must be one of each task unless group is 'file', got .*\.$"):
            read_predictions([FILES[0], twin])
        assert len(read_predictions([FILES[0], twin], group="file").predictions[0].label) == 40

    def test_what_lm_eval_writes_here_is_what_is_committed(self, tmp_path):
        pytest.importorskip("lm_eval", reason="lm-eval is not installed; the committed files are of 0.4.13")
        from lm_eval_samples.write_samples import write_samples

        now, before = (read_predictions(files).predictions for files in (sorted(write_samples(tmp_path)), FILES))
        for new, old in zip(now, before, strict=True):
            np.testing.assert_array_equal(new.label, old.label)
            np.testing.assert_allclose(new.nll, old.nll, atol=1e-3)


def as_lists(data, name="logits"):
    return [{name: row[:3], "label": row[3], "side": row[4]} for row in data.values.tolist()]


FORMS = {
    "columns.csv": lambda data, path: data.to_csv(path, index=False),
    "columns.tsv": lambda data, path: data.to_csv(path, index=False, sep="\t"),
    "packed.csv.gz": lambda data, path: data.to_csv(path, index=False),
    "lists.csv": lambda data, path: pd.DataFrame(as_lists(data)).to_csv(path, index=False),
    "lists.jsonl": lambda data, path: write_lines(path, as_lists(data)),
    "lists.json": lambda data, path: path.write_text(json.dumps(as_lists(data), indent=1)),
    "packed.jsonl.gz": lambda data, path: path.write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in as_lists(data)).encode())
    ),
    "named.jsonl": lambda data, path: write_lines(
        path, [{"logits": dict(zip("xyz", r["logits"], strict=True)), "label": "xyz"[r["label"]]} for r in as_lists(data)]
    ),
    "letters.jsonl": lambda data, path: write_lines(path, [{**r, "label": "ABC"[r["label"]]} for r in as_lists(data)]),
    "columns.parquet": lambda data, path: data.to_parquet(path),
    "lists.parquet": lambda data, path: pd.DataFrame(as_lists(data)).to_parquet(path),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_predictions(form, data, tmp_path):
    if form.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    FORMS[form](data, tmp_path / form)
    (found,) = read_predictions([tmp_path / form]).predictions
    p = softmax(data.values[:, :3].astype(float), -1)
    label = data["label"].to_numpy()
    np.testing.assert_allclose(found.confidence, p.max(-1))
    np.testing.assert_allclose(found.nll, -np.log(p[np.arange(500), label]))
    np.testing.assert_array_equal(found.correct, p.argmax(-1) == label)


def test_scores_are_those_of_analysis_calibration_and_the_temperature_is_known(data, tmp_path):
    data.to_csv(tmp_path / "t.csv", index=False)
    found = measure_predictions(read_predictions([tmp_path / "t.csv"], group="side").predictions)
    assert found.scores["group"].tolist() == ["all", "left", "right"]
    pooled, left, _ = found.scores.itertuples()
    assert pooled.temperature_low < 2 < pooled.temperature_high
    assert pooled.temperature == pytest.approx(2, abs=0.4)
    p = softmax(data.values[:, :3].astype(float), -1)
    c, y = p.max(-1), p.argmax(-1) == data["label"]
    assert pooled.ece == pytest.approx(calibration.calibration_error(c, y.to_numpy()))
    assert pooled.rms == pytest.approx(calibration.calibration_error(c, y.to_numpy(), norm="l2"))
    assert pooled.aurc == pytest.approx(calibration.selective_scores(c, y.to_numpy()).aurc)
    assert pooled.brier == pytest.approx(((c - y) ** 2).mean())
    assert left.accuracy == pytest.approx(y[::2].mean())
    assert pooled.over - pooled.under == pytest.approx(c.mean() - y.mean())
    after = softmax(data.values[:, :3].astype(float) / pooled.temperature, -1).max(-1)
    assert pooled.ece_after == pytest.approx(calibration.calibration_error(after, y.to_numpy()))
    assert found.bins.groupby("group")["n"].sum().to_dict() == {"all": 500, "left": 250, "right": 250}


def test_probabilities_and_confidences_are_taken_as_they_stand(tmp_path):
    """Two decimals that lie on ends of bins: a softmax of their logarithms would put them anywhere about these."""
    p = np.array([0.6, 0.8, 0.8, 1.0, 0.6])
    rows = [{"prob_0": x, "prob_1": round(1 - x, 2), "label": y} for x, y in zip(p, (0, 0, 1, 0, 1), strict=True)]
    path = write_lines(tmp_path / "p.jsonl", rows)
    plain = write_lines(tmp_path / "c.jsonl", [{"conf": r["prob_0"], "correct": r["label"] == 0} for r in rows])
    (a,), (b,) = read_predictions([path]).predictions, read_predictions([plain]).predictions
    for view in (a, b):
        assert view.confidence.tolist() == p.tolist()
        assert view.correct.tolist() == [True, True, False, True, False]
    one, other = (measure_predictions([view]).scores.iloc[0] for view in (a, b))
    assert one.temperature == pytest.approx(other.temperature)  # of two options being right is the label
    assert one.nll == pytest.approx(other.nll)
    assert one.nll == pytest.approx(-np.log([0.6, 0.8, 0.2, 1, 0.4]).mean())


def test_predicted_and_label_say_what_was_right(tmp_path):
    rows = ["confidence,prediction,label", "0.9,cat,cat", "0.8,2.0,2", "0.7,dog,cat"]
    (found,) = read_predictions([write_lines(tmp_path / "a.csv", rows)]).predictions
    assert found.correct.tolist() == [True, True, False]


def test_columns_of_any_name_and_labels_by_the_name_of_the_column(tmp_path):
    rows = ["cat,dog,answer", "0.9,0.1,cat", "0.3,0.7,cat"]
    path = write_lines(tmp_path / "a.csv", rows)
    (found,) = read_predictions([path], probabilities=["cat", "dog"], label="answer").predictions
    assert found.correct.tolist() == [True, False]
    (same,) = read_predictions([path], probabilities="[cd]*", label="answer").predictions
    assert same.confidence.tolist() == [0.9, 0.7]


def test_labels_that_count_from_1_are_no_predictions_of_the_option_before(tmp_path):
    rows = [{"logits": [1.0, 2.0, 0.0], "label": label} for label in (1, 2, 3)]
    with pytest.raises(
        ValueError, match=r"^label must count options from 0, got none of 0 in .*0 to 2 or .*, got 3\.$"
    ):
        read_predictions(write_lines(tmp_path / "a.jsonl", rows))


def columns_from(path, first, labels, form="logit_{}"):
    """Four options, of which the label's is most likely, in columns of numbers from ``first`` on."""
    names = ",".join(form.format(first + k) for k in range(4))
    rows = [",".join("0.7" if k == y else "0.1" for k in range(4)) for y in range(4)]
    return write_lines(path, [f"{names},label", *(f"{row},{label}" for row, label in zip(rows, labels, strict=True))])


@pytest.mark.parametrize("form", ["logit_{}", "p{}", "prob_0{}"])
@pytest.mark.parametrize("first", [0, 1])
def test_labels_count_as_the_columns_do_or_the_file_is_refused(first, form, tmp_path):
    """A perfect model: labels one off would let it be always wrong, but for a row left out."""
    path = columns_from(tmp_path / "a.csv", first, range(first, first + 4), form)
    options = {"probabilities": form.replace("{}", "?"), "label": "label"}
    read = read_predictions(path, **options)
    assert read.predictions[0].correct.all()
    assert read.said[0].endswith("; labels count from 1, as the columns do") == bool(first)
    other = 1 - first
    columns_from(path, first, range(other, other + 4), form)
    line, label = (2, 0) if first else (5, 4)
    names = ", ".join(map(str, range(first, first + 4)))
    problem = f"label must count options as their names do, {names}, got {label}, in {path}, line {line}."
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        read_predictions(path, **options)


@pytest.mark.parametrize("missing", ["nan", "NaN", "NA", "None", "null", " ", "N/A"])
def test_a_label_that_is_missing_is_no_label(missing, tmp_path):
    """Two that are missing are not equal, and a prediction beside one is not wrong."""
    rows = [f"0.9,{missing},{missing}", f"0.9,b,{missing}", f"0.9,{missing},b", "0.8,b,b", "0.7,b,a"]
    read = read_predictions(write_lines(tmp_path / "a.csv", ["confidence,predicted,label", *rows]))
    assert read.predictions[0].correct.tolist() == [True, False]
    text = repr(missing.strip())
    problems = [
        f"predicted is missing, got {text}",
        f"label is missing, got {text}",
        f"predicted is missing, got {text}",
    ]
    assert [(bad.line, bad.problem) for bad in read.left_out] == list(zip((2, 3, 4), problems, strict=True))
    rows = ["logit_a,logit_b,label", f"1,-1,{missing}", "1,-1,a"]
    assert len(read_predictions(write_lines(tmp_path / "b.csv", rows)).left_out) == 1
    rows = [{"logits": [1.0, -2.0], "label": label} for label in (missing, float("nan"), 1)]
    assert len(read_predictions(write_lines(tmp_path / "c.jsonl", rows)).left_out) == 2  # and no label of 0


def test_an_option_may_have_the_name_of_what_is_missing(tmp_path):
    path = write_lines(tmp_path / "a.csv", ["prob_NA,prob_EU,label", "0.9,0.1,NA"])
    assert read_predictions(path, probabilities="prob_*").predictions[0].correct.all()


def test_probabilities_in_percent_are_refused(tmp_path):
    rows = [{"probs": [0.5, 0.5], "label": 0}, {"probs": [70.0, 30.0], "label": 0}]
    with pytest.raises(ValueError, match=r"sum of 100 \(divide percentages by 100\), in .*, line 2\.$"):
        read_predictions(write_lines(tmp_path / "a.jsonl", rows))


def test_functions_name_their_own_arguments(tmp_path):
    path = write_lines(tmp_path / "a.csv", ["x,y,label,n", *(f"0.9,0.1,x,{i}" for i in range(201))])
    with pytest.raises(ValueError, match=r"^group must have at most 200 values, got 201\.$"):
        measure_predictions(read_predictions(path, probabilities=["x", "y"], group="n").predictions)
    with pytest.raises(
        ValueError, match=r"^logits must be logits, .* sum to 1: read these columns as probabilities\.$"
    ):
        read_predictions(path, logits=["x", "y"])
    with pytest.raises(ValueError, match=r"^probabilities must name a column of .*, got 'z'"):
        read_predictions(path, probabilities="z")
    with pytest.raises(ValueError, match=r"^files must end in "):
        read_predictions("a.txt")


def test_what_happened_at_probability_0_has_an_infinite_loss_and_no_temperature(tmp_path):
    path = write_lines(tmp_path / "a.csv", ["confidence,correct", "1.0,0", "0.7,1"])
    line = measure_predictions(read_predictions([path]).predictions).scores.iloc[0]
    assert line.nll == np.inf
    assert np.isnan(line.temperature)
    assert line.accuracy == 0.5


def test_rows_of_unlike_numbers_of_options_do_not_touch_each_other(tmp_path):
    rows = [{"logits": [1.0, 0.0], "label": 0}, {"logits": [0.0, 2.0, 1.0, -3.0], "label": 2}] * 20
    line = measure_predictions(read_predictions([write_lines(tmp_path / "a.jsonl", rows)]).predictions).scores.iloc[0]
    t = line.temperature
    slopes = [(z @ softmax(z / t) - z[y]) for z, y in ((np.array([1.0, 0]), 0), (np.array([0, 2, 1, -3.0]), 2))]
    assert sum(slopes) == pytest.approx(0, abs=1e-6)


BAD = {  # row of a CSV of confidence, correct and lang -> what is wrong with it
    "0.9,1": "has 2 of 3 columns",
    "1.5,1,en": "confidence must be in [0, 1], got 1.5",
    "-0.1,1,en": "confidence must be in [0, 1], got -0.1",
    ",1,en": "confidence is empty",
    "high,1,en": "confidence must be a number, got 'high'",
    "nan,1,en": "confidence must be a number, got 'nan'",
    "0.9,maybe,en": "correct must be true or false, 1 or 0, got 'maybe'",
    "0.9,1,": "lang is empty",
}


def test_bad_rows_are_counted_and_named(tmp_path, capsys):
    text = 'confidence,correct,lang\n0.9,TRUE,"of two\nlines"\n' + "".join(f"{row}\n" for row in BAD) + "\n0.5,0.0,en\n"
    path = tmp_path / "a.csv"
    path.write_text(text)
    read = read_predictions([path], group="lang")
    assert [tuple(bad) for bad in read.left_out] == [
        (str(path), i, text) for i, text in enumerate(BAD.values(), start=4)
    ]
    assert (read.rows, read.predictions[0].confidence.tolist()) == (10, [0.9, 0.5])
    assert main([str(path), "--group", "lang", "--out", str(tmp_path / "o.csv")]) == 0
    shown = capsys.readouterr().out
    assert "left out: 8 of 10 rows\n" in shown
    assert f"  {path}, line 5: confidence must be in [0, 1], got 1.5\n" in shown
    beside = json.loads((tmp_path / "o.json").read_text())
    assert beside["left_out"][0] == {"file": "a.csv", "line": 4, "problem": "has 2 of 3 columns"}
    assert len(beside["left_out"]) == 8
    assert beside["read"] == [
        "a.csv: 2 predictions; confidence from confidence (guessed); correct from correct (guessed)"
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"logits": [1.0], "label": 0}, "logits must hold at least two numbers, got [1.0]"),
        ({"logits": [1.0, None], "label": 0}, "logits must be a number, got None"),
        ({"logits": [1e999, 0], "label": 0}, "logits must be finite or -inf, and not all -inf"),
        ({"logits": [1.0, 2.0], "label": 2}, "label must be an option's number from 0 to 1 or its letter, got 2"),
        ({"logits": {"a": 1, "b": 2}, "label": "c"}, "label must be one of a, b, got 'c'"),
        ({"logits": [1.0, 2.0]}, "label is empty"),
        ({"probs": [0.5, 0.4], "label": 0}, "probabilities must be at least 0 and sum to 1, got a sum of 0.9"),
    ],
)  # fmt: skip
def test_bad_rows_of_options_are_named(row, problem, tmp_path):
    good = {name: {"logits": [0.0, 3.0], "probs": [0.5, 0.5]}.get(name, 0) for name in (*row, "label")}
    read = read_predictions([write_lines(tmp_path / "a.jsonl", [good, row])])
    assert [bad.problem for bad in read.left_out] == [problem]


def refused(arguments, capsys):
    assert main(list(map(str, arguments))) == 2
    return capsys.readouterr().err.removeprefix("error: ").strip()


def test_what_cannot_be_measured_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = write_lines(Path("good.csv"), ["confidence,correct", "0.9,1", "0.8,0"])
    other = write_lines(Path("other.csv"), ["logit_0,logit_1,label,gold", "0.9,0.1,1,0"])
    empty = write_lines(Path("empty.csv"), ["confidence,correct"])
    quote = write_lines(Path("quote.csv"), ["confidence,correct", '"0.9,1', "0.8,0"])
    cut = Path("cut.csv.gz")
    cut.write_bytes(gzip.compress(good.read_bytes())[:-9])
    many = write_lines(Path("many.csv"), ["confidence,correct,n", *(f"0.9,1,{i}" for i in range(201))])
    twin = Path(FILES[0].name)
    twin.write_bytes(FILES[0].read_bytes())
    percent = write_lines(Path("percent.csv"), ["confidence,correct", "0.9,1", "87,1"])
    before = sorted(tmp_path.iterdir())
    for arguments, text in (
        (["a.txt"], "FILE must end in .csv, .tsv, .jsonl, .ndjson, .jsonlines, .json, .parquet (but for Parquet also"),
        (["no.csv"], "[Errno 2] No such file or directory: 'no.csv'"),
        ([good, "./good.csv"], "FILE must name each file once, got good.csv twice."),
        ([good, "--out", "good.csv"], "--out must not overwrite what is read, got good.csv and FILE good.csv."),
        (
            [good, "--confidence", "p"],
            "--confidence must name a column of good.csv, got 'p'; it has confidence, correct.",
        ),
        ([good, "--group", "lang"], "--group must name a column of good.csv, got 'lang'; it has confidence, correct."),
        ([good, "--label", "correct"], "good.csv must have columns for logits or probabilities and label, for confid"),
        ([other], "--label must name one column of other.csv, which has label, gold."),
        (
            [percent],
            "confidence must be in [0, 1], got 87 (divide percentages by 100), in percent.csv, line 3.",
        ),
        ([many, "--group", "n"], "--group must have at most 200 values, got 201."),
        ([FILES[0], twin], f"FILE must be one of each task unless --group is file, got {FILES[0]} and {twin}."),
        ([other, "--label", "gold"], "--logits must be logits, got rows without a negative number that sum to 1"),
        ([quote], "quote.csv must be a whole file of the form that its name says: unexpected end of data"),
        ([empty], "FILE must hold at least one prediction, got 0 rows without."),
        ([cut], "cut.csv.gz must be a whole file of the form that its name says: Compressed file ended before"),
    ):
        assert refused(arguments, capsys).startswith(text)
    assert sorted(tmp_path.iterdir()) == before
    lines = write_lines(Path("lines.jsonl"), [{"logits": [3.0, 1.0], "label": 0}])
    assert (
        refused([good, lines], capsys) == "FILE must be of one kind, got confidence (good.csv), logits (lines.jsonl)."
    )
    monkeypatch.setattr(_files, "find_spec", lambda name: None)
    Path("a.parquet").touch()
    assert refused(["a.parquet"], capsys) == "a.parquet needs pyarrow to be read: pip install pyarrow."
    with pytest.raises(TypeError, match=r"^columns must be of confidence, .*, got colour\.$"):
        read_predictions([good], colour="x")


def test_the_command_writes_table_bins_sidecar_and_figure_and_says_what_it_read(tmp_path, capsys):
    out = tmp_path / "new" / "o.csv"
    assert main([*map(str, FILES), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["o.csv", "o.json", "o.png", "o_bins.csv"]
    shown = capsys.readouterr().out
    assert "task words; lengths of options count the space before them" in shown
    assert "log-likelihood per character, 50 predictions: no further from calibrated" in shown
    with out.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 9
    assert str(tmp_path) not in (tmp_path / "new" / "o.json").read_text()


def test_panels_follow_what_there_is(data, tmp_path):
    data["many"] = np.arange(500) // 20
    data.to_csv(tmp_path / "t.csv", index=False)
    for group, panels in ((None, 2), ("side", 3), ("many", 3)):
        read = read_predictions([tmp_path / "t.csv"], group=group)
        figure = Figure(layout="constrained")
        draw_predictions(read.predictions, measure_predictions(read.predictions), figure)
        assert len(figure.axes) == panels
    assert len(figure.axes[-1].get_yticks()) == 24
    assert figure.axes[-1].get_title(loc="left") == "the 23 largest groups"


def test_the_run_of_the_docs_prints_and_draws_what_the_page_shows(capsys):
    root = Path(__file__).parent.parent.parent
    page = (root / "docs" / "how_calibrated.md").read_text(encoding="utf-8")
    block, shown = (
        re.findall(rf"^```{kind}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[0] for kind in ("python", "text")
    )
    names = {}
    exec(block, names)
    printed = capsys.readouterr().out.replace(f"{names['folder']}/", "")
    number = r"\d*\.\d+"
    assert re.sub(number, "#", printed) == re.sub(number, "#", shown)
    values = [np.array(re.findall(number, text), float) for text in (printed, shown)]
    np.testing.assert_allclose(*values, atol=2.1e-3)
    (english,) = pd.read_csv(names["folder"] / "reliability.csv").query("group == 'English'").itertuples()
    said = [english.ece, english.ece_low, english.ece_high, english.ece_if_calibrated, 100 * english.ece_p_value]
    (told,) = re.findall(r"English above.*?error may be", page, re.DOTALL)
    told = [
        float(x) for x in re.findall(r"\d\.\d+", told)
    ]  # 0.043, 0.026, 0.043, 0.9 %, 0.026, 0.043, and the interval
    np.testing.assert_allclose(said, [told[0], *told[-2:], told[1], told[3]], atol=2.1e-3, rtol=0.3)
    drawn, committed = (imread(p) for p in (names["folder"] / "reliability.png", root / "docs/_static/reliability.png"))
    if f'matplotlib=={matplotlib.__version__}; python_version >= "3.11"' in (root / "constraints.txt").read_text():
        assert drawn.shape == committed.shape
        assert (abs(drawn - committed).max(-1) > 2 / 255).sum() <= 200  # else copy what the page's run draws there
