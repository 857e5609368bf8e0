"""Runs of tuning on files of pairs: what is measured when, runs that go on, tiers, and the command."""

import dataclasses
import json
from argparse import Namespace

import pandas as pd
import pytest
from tiny_tuning import config, tuned

from analysis.lab import sweep
from analysis.lab.records import config_key
from analysis.lab.tables import read_table
from analysis.real_tuning import main
from analysis.study.real_tuning import grid_command, pair_measures, pair_tuning
from analysis.study.real_tuning.choice_scores import VIEWS
from analysis.study.real_tuning.pair_configs import configs, seconds
from analysis.study.real_tuning.pair_documents import documents_of
from analysis.study.real_tuning.pair_measures import kept_before
from analysis.study.real_tuning.pair_tuning import tune_on_pairs
from analysis.study.real_tuning.sample import write_sample
from analysis.study.real_tuning.token_files import read_tokens, write_tokens


def test_every_gpu_has_its_processes(monkeypatch):
    monkeypatch.setattr(grid_command, "visible_gpus", lambda: ["4", "7"])
    options = Namespace(device="cuda", workers=2)
    engine = grid_command._engine(options)
    lanes = engine.keywords["lanes"]
    assert [lane.environment["CUDA_VISIBLE_DEVICES"] for lane in lanes] == ["4", "7", "4", "7"]
    assert {lane.workers for lane in lanes} == {1}
    monkeypatch.setattr(grid_command, "visible_gpus", lambda: ["4"])
    assert grid_command._engine(options) is None
    assert grid_command._engine(Namespace(device="cuda:1", workers=2)) is None


def test_a_tuning_is_measured_after_each_epoch(place, known):
    row, table = tuned(place, known, epochs=2)
    assert sorted(set(table["epoch"])) == [0, 1, 2]
    assert {"response", "text", *VIEWS} == set(table["view"])
    response = table.loc[(table["view"] == "response") & (table["reading"] == "as_trained")]
    assert set(response["split"]) == {"train", "fit", "scored"}
    seen = response.loc[response["split"] == "train"].set_index("epoch")["nll"]
    assert seen[2] < seen[0]
    ends = response.loc[response["epoch"] != 1]
    assert ends[["gain_fall_0.1", "activity"]].notna().any().all()
    maps = table.loc[table["affine_fall_0.1"].notna() & table["low_rank_fall_0.1"].notna()]
    assert set(maps["epoch"]) == {2}
    assert set(zip(maps["split"], maps["view"], strict=True)) == {
        ("train", "response"), ("scored", "response"), ("scored", "text"),
    }  # fmt: skip
    assert set(table.loc[table["reading"] == "post_hoc", "epoch"]) >= {0, 2}
    assert (row["rows"], row["vocabulary"], row["pairs"]) == (97, None, 12)


@pytest.mark.parametrize(("changes", "falls"), [({}, False), ({"within": 97}, True)])
def test_predicted_falls_are_left_out_where_asked_and_on_some_documents(place, known, changes, falls):
    where = {"model": place / "tiny", "tokens": place / "tokens.npz"}
    row = tune_on_pairs(config(known, **changes), **where, falls=falls)
    assert not any("fall" in name for line in row["measurements"] for name in line)
    assert any(line["view"] == "response" and line["epoch"] == 1 for line in row["measurements"])


def test_what_is_measured_before_tuning_is_shared(place, known, tmp_path, monkeypatch):
    """By runs of other losses and seeds; a row does not depend on it."""
    asked, plain = [], pair_measures.ask

    def counted(*arguments, **options):
        asked.append(1)
        return plain(*arguments, **options)

    monkeypatch.setattr(pair_measures, "ask", counted)
    files = {"model": place / "tiny", "tokens": place / "tokens.npz"}
    for changes in ({"label_smoothing": 0.1}, {"seed": 1}):  # the first keeps, the second finds
        alone = tune_on_pairs(config(known, **changes), **files)["measurements"]
        asked.clear()
        together = tune_on_pairs(config(known, **changes), shared=tmp_path, **files)["measurements"]
        assert len(asked) == (4 if "label_smoothing" in changes else 2)  # two parts, before and after
        for a, b in zip(together, alone, strict=True):
            assert list(a) == list(b)
            for x, y in zip(a.values(), b.values(), strict=True):
                assert x == (pytest.approx(y, rel=1e-5, nan_ok=True) if isinstance(y, float) else y)
    assert len(list(tmp_path.glob("*.kept"))) == 1
    names = {kept_key(known, tmp_path, **c) for c in ({}, {"seed": 3, "lora": 4}, {"evaluated": 9}, {"vocabulary": 0})}
    assert len(names) == 3


def kept_key(known, folder, **changes):
    place = folder / "_".join(map(str, changes))
    kept_before(config(known, **changes), place, "cpu")(list)
    (found,) = place.glob("*.kept")
    return found.name


def test_the_same_questions_are_asked_at_every_epoch(place, known):
    _, table = tuned(place, known, epochs=2, whole=True, evaluated=8)
    asked = table.loc[(table["view"] == "cloze") & (table["source"] == "all") & table["accuracy"].notna()]
    asked = asked.loc[(asked["reading"] == "as_trained") & asked["nll"].notna()]
    assert asked.loc[asked["exam"] == "along", "epoch"].tolist() == [0, 1, 2]
    assert asked.loc[asked["exam"] == "whole", "epoch"].tolist() == [0, 2]
    data = documents_of(known, config(known, whole=True, evaluated=8))
    assert len(data.along["scored"].questions) < len(data.ends["scored"].questions)
    fitted = table.loc[(table["reading"] == "post_hoc") & (table["view"] == "response")]
    assert fitted["epoch"].tolist() == [0, 1, 2]


def test_a_run_that_was_stopped_goes_on(place, known, tmp_path, monkeypatch):
    whole, _ = tuned(place, known, epochs=3)
    plain = pair_tuning.measure
    calls = []

    def stops(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:  # after epoch 2, before it is kept
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(pair_tuning, "measure", stops)
    monkeypatch.setattr(pair_tuning, "_KEPT_EVERY", 0.0)
    three = config(known, epochs=3)
    files = {"model": place / "tiny", "tokens": place / "tokens.npz", "checkpoints": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        tune_on_pairs(three, **files)
    assert (tmp_path / f"{config_key(three)}.pt").exists()
    (tmp_path / f"{config_key(three)}.unfinished").write_bytes(b"of a process that was killed")
    again = tune_on_pairs(three, **files)
    assert not list(tmp_path.iterdir())
    assert len(calls) == 3 + 2  # epochs 2 and 3
    assert [line["epoch"] for line in again["measurements"]] == [line["epoch"] for line in whole["measurements"]]
    for a, b in zip(again["measurements"], whole["measurements"], strict=True):
        assert a.get("nll", 0) == pytest.approx(b.get("nll", 0), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of PEFT
def test_other_losses_and_adapters(place, known):
    row, table = tuned(place, known, temperature=0.5, softcap=30.0, label_smoothing=0.1, vocabulary=0)
    assert row["rows"] < 97
    assert {"as_trained", "plain", "post_hoc"} == set(table["reading"])
    pytest.importorskip("peft")
    before = tuned(place, known)[1].query("epoch == 0 and view == 'text'")["nll"].iloc[0]
    _, adapted = tuned(place, known, lora=2, confidence_penalty=0.1, step_size=1e-2)
    nll = adapted.query("view == 'text' and reading == 'as_trained'").set_index("epoch")["nll"]
    assert nll[0] == pytest.approx(before, rel=1e-6)
    assert nll[1] != nll[0]
    assert adapted["head_norm"].nunique() == 1  # not tuned


def test_what_does_not_fit_is_refused(place, known, tmp_path):
    facts = {**known.facts, "revision": "sha256:0"}
    write_tokens(dataclasses.replace(known, facts=facts), tmp_path / "of_another.npz")
    other = read_tokens(tmp_path / "of_another.npz")
    with pytest.raises(ValueError, match=r"model must be the one of tokens \(sha256:0\), got .*tiny \(sha256:"):
        tune_on_pairs(config(other), model=place / "tiny", tokens=tmp_path / "of_another.npz")
    with pytest.raises(ValueError, match="model and tokens must be tiny and 0, got tiny and"):
        tuned(place, dataclasses.replace(known, digest="0"))
    with pytest.raises(ValueError, match=r"pairs must be at most the \d+ of the training part"):
        tuned(place, known, pairs=500)
    with pytest.raises(ValueError, match="questions and pairs must have some of the part 'fit'"):
        documents_of(dataclasses.replace(known, questions=known.questions[:1]), config(known))
    with pytest.raises(ValueError, match="tier must be one of"):
        configs("m", "t", 99, "4")


def test_tiers_in_the_order_in_which_they_matter():
    first = configs("m", "t", 262144, "1")
    assert len({config_key(c) for c in first}) == len(first) == 6 + 4 * 6
    assert all(c.whole and c.within is None for c in first[:6])
    assert [c.vocabulary for c in first[6::6]] == [0, None, 65536, 16384]
    assert configs("m", "t", 49152, "1") == first[:6]
    every = [c for tier in "123" for c in configs("m", "t", 262144, tier)]
    assert len({config_key(c) for c in every}) == len(every)
    assert all(seconds(c, "cuda", 262144, 20000) < seconds(c, "cpu", 262144, 20000) for c in every)


def in_this_process(function, configs, workers, stop, take):
    """What computes rows, without a fresh process; that one is tested with :mod:`analysis.instruction`."""
    for one in configs:
        if take(one):
            yield one, function(one), None


def test_the_command(place, known, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "local_engine", in_this_process)
    files = [str(place / "tiny"), str(place / "tokens.npz")]
    rows = [*files, "--tier", "smoke", "--out", str(tmp_path)]
    assert main(["plan", *rows]) == 0
    assert "2 runs" in capsys.readouterr().out
    assert main(["status", *rows]) == 1
    assert main(["run", *rows]) == 0
    assert "2 computed now, 2 of 2 there, 0 failed" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "real_tuning_tiny_smoke.csv")
    assert set(table["label_smoothing"]) == {0.0, 0.1}
    sidecar = json.loads((tmp_path / "real_tuning_tiny_smoke.json").read_text())
    assert sidecar["source"]["tokens"] == known.digest
    assert sidecar["command"].endswith("real_tuning run tiny tokens.npz --tier smoke --device cpu")  # of no machine
    assert main(["table", *rows, "--short", str(tmp_path / "short.csv")]) == 0
    short = read_table(tmp_path / "short.csv")
    assert 0 < len(short) < len(table)
    assert set(short["step_size"]) == {2e-5}
    for path in (tmp_path / "rows").glob("*.json"):  # as before predicted falls were solved for otherwise
        stored = json.loads(path.read_text())
        path.write_text(json.dumps({name: x for name, x in stored.items() if name != "measurement_version"}))
    capsys.readouterr()
    assert main(["status", *rows]) == 1
    assert "1 done, 0 failed, 1 left" in capsys.readouterr().out
    assert main(["check", *files]) == 1
    assert "does not say what it was" in capsys.readouterr().out
    assert main(["check", "nowhere", files[1]]) == 2
    assert "error: MODEL must be gemma, smollm2, a folder or a GGUF file, got nowhere" in capsys.readouterr().err
    questions, pairs = write_sample(tmp_path)
    wanted = ["--questions", str(questions), "--tuning", str(pairs)]
    assert main(["encode", files[0], str(tmp_path / "t.npz"), *wanted]) == 2  # two tokens for a space and a letter
    assert "tokenizer must have one token for each of" in capsys.readouterr().err
