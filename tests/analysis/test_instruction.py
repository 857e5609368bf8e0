"""The tuning study on a tiny random model: measurements equal to plain computations from full logits, and one command."""

import copy
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from tiny_models import save_folder

from analysis.calibration import calibration_error, score_predictions
from analysis.instruction import main
from analysis.lab.records import config_key
from analysis.language_models.documents import batches, encode_text
from analysis.language_models.features import HiddenStates, ModelHead, hidden_states
from analysis.smoothing import activity_index
from analysis.study.real_tuning.encoding import encode_question, letter_tokens, load
from analysis.study.real_tuning.evaluation import Reading, measure, spectrum
from analysis.study.real_tuning.facts import Fact
from analysis.study.real_tuning.questions import (
    LETTERS,
    _with_digest,
    make_questions,
    read_questions,
    write_questions,
)
from analysis.study.real_tuning.responses import shared_falls
from analysis.study.real_tuning.tuning import InstructionConfig, configs, seconds, tune


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a tiny random model and a tokenizer of single characters, and a file of questions."""
    folder = tmp_path_factory.mktemp("study")
    save_folder(folder / "tiny")
    facts = [Fact("sum", "made up", f"{i}+7?", str(i + 7), f"sum:{i}") for i in range(160)]
    sources = {"made up": {"version": "1", "licence": "MIT"}}
    made = _with_digest(make_questions(facts), ["Some text, which is ordinary.", "More of it."], sources)
    write_questions(made, folder / "questions.json")
    return folder / "tiny", folder / "questions.json"


@pytest.fixture(scope="module")
def loaded(files):
    return load(files[0])


def encoded(tokenizer, questions):
    return [encode_question(tokenizer, q) for q in questions]


def small(files, **changes):
    known = read_questions(files[1])
    common = {"model": files[0].name, "questions": known.digest, "examples": 24, "epochs": 2, "batch_size": 8}
    return InstructionConfig(**{**common, "evaluated": 20, "step_size": 3e-3, **changes})


def rows(config, files):
    row = tune(config, model=files[0], questions=files[1])
    return row, pd.DataFrame(row["measurements"])


def test_only_the_answer_is_predicted(files, loaded):
    tokenizer = loaded[1]
    question = next(q for q in read_questions(files[1]).questions if not q.options)
    document = encode_question(tokenizer, question)
    kept = [token for token, label in zip(document.tokens, document.labels, strict=True) if label != -100]
    assert tokenizer.convert_ids_to_tokens(kept) == [*question.answer, "[EOS]"]
    assert "".join(tokenizer.convert_ids_to_tokens(document.tokens[: -len(kept)])) == f"<{question.prompt}>="
    assert (
        encode_question(tokenizer, dataclasses.replace(question, answer="7")).tokens[:-2]
        == document.tokens[: -len(kept)]
    )
    text = encode_text(tokenizer, "ab")
    assert tokenizer.convert_ids_to_tokens(text.tokens) == ["[BOS]", "a", "b"]
    assert text.labels == [-100, *text.tokens[1:]]
    assert tokenizer.convert_ids_to_tokens(letter_tokens(tokenizer)) == list(LETTERS)


def test_a_template_that_hides_the_answer_is_refused(files, loaded):
    tokenizer = copy.deepcopy(loaded[1])
    tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(
        ValueError, match="the chat template must put the answer after its generation prompt '1', got '2'"
    ):
        encode_question(tokenizer, read_questions(files[1]).questions[0])


def test_batches_are_padded_and_whole(files, loaded):
    documents = encoded(loaded[1], read_questions(files[1]).questions[:7])
    seen = []
    for batch in batches(documents, 3, pad=1):
        assert batch.tokens.shape == batch.labels.shape == batch.mask.shape
        assert (batch.tokens[batch.mask == 0] == 1).all()
        assert (batch.labels[batch.mask == 0] == -100).all()
        seen += [row[mask.bool()].tolist() for row, mask in zip(batch.tokens, batch.mask, strict=True)]
    assert seen == [d.tokens for d in documents]


def test_features_are_the_hidden_states_before_each_predicted_token(files, loaded):
    model, tokenizer = loaded
    documents = encoded(tokenizer, read_questions(files[1]).questions[:9])
    known = hidden_states(model, documents, pad=1, batch_size=4)
    at = 0
    for i, document in enumerate(documents):
        with torch.no_grad():
            hidden = model.base_model(torch.tensor([document.tokens])).last_hidden_state[0]
        places = [t for t, label in enumerate(document.labels) if label != -100]
        for place in places:
            torch.testing.assert_close(known.hidden[at], hidden[place - 1], rtol=1e-4, atol=1e-5)
            assert known.target[at] == document.tokens[place]
            assert known.document[at] == i
            assert known.first[at] == (place == places[0])
            assert known.last[at] == (place == places[-1])
            at += 1
    assert at == len(known.target)


@pytest.mark.parametrize("reading", [Reading("x"), Reading("x", 0.5), Reading("x", 2.0, 3.0)])
def test_scores_are_those_of_full_logits(files, loaded, reading):
    model, tokenizer = loaded
    known = read_questions(files[1])
    letters = letter_tokens(tokenizer)
    data = {
        "test": {
            "choice": encoded(tokenizer, known.select("test", choice=True)),
            "short": encoded(tokenizer, known.select("test", choice=False)),
            "text": [encode_text(tokenizer, t) for t in known.texts],
        }
    }
    lines = measure(model, data, letters=letters, pad=1, readings=[reading], post_hoc=False)
    table = {line["view"]: line for line in lines}
    assert set(table) == {"options", "letter", "tokens", "first", "text"}

    def plain(documents, keep):
        z, y = [], []
        for document in documents:
            with torch.no_grad():
                logits = model(torch.tensor([document.tokens])).logits[0].double()
            places = [t for t, label in enumerate(document.labels) if label != -100]
            for place in keep(places):
                z.append(logits[place - 1])
                y.append(document.tokens[place])
        z = torch.stack(z)
        z = z if reading.softcap is None else reading.softcap * torch.tanh(z / reading.softcap)
        return z / reading.temperature, torch.tensor(y)

    expected = {
        "letter": plain(data["test"]["choice"], lambda p: p[:1]),
        "tokens": plain(data["test"]["short"], lambda p: p[:-1]),
        "first": plain(data["test"]["short"], lambda p: p[:1]),
        "text": plain(data["test"]["text"], lambda p: p),
    }
    z, y = expected["letter"]
    expected["options"] = z[:, letters], torch.tensor([letters.index(i) for i in y.tolist()])
    for view, (z, y) in expected.items():
        log_p = z.log_softmax(-1)
        confidence, guess = log_p.exp().max(-1)
        line = table[view]
        assert line["n"] == len(y)
        assert line["nll"] == pytest.approx(F.nll_loss(log_p, y).item(), rel=1e-5)
        assert line["accuracy"] == pytest.approx((guess == y).double().mean().item())
        assert line["confidence"] == pytest.approx(confidence.mean().item(), rel=1e-5)
        assert line["ece"] == pytest.approx(calibration_error(confidence, guess == y, n_bins=15), rel=1e-3)
        assert line["rms"] >= line["ece"] - 1e-9
        if view != "options":
            entropy = -(log_p.exp() * log_p).sum(-1).mean().item()
            uniform = -log_p.mean(-1).mean().item()
            assert line["entropy"] == pytest.approx(entropy, rel=1e-5)
            assert line["uniform_cross_entropy"] == pytest.approx(uniform, rel=1e-5)
            assert line["activity"] == pytest.approx(activity_index(entropy, line["nll"], uniform, 0.1), rel=1e-3)


def test_the_post_hoc_temperature_fits_the_validation_questions(files, loaded):
    model, tokenizer = loaded
    known = read_questions(files[1])
    choice = {s: known.select(s, choice=True) for s in ("validation", "test")}
    # Answers that the model prefers, but for every fourth: the optimum is inside the bounds of the search.
    with torch.no_grad():
        logits = [
            model(torch.tensor([encode_question(tokenizer, q).tokens[:-2]])).logits[0, -1] for q in choice["validation"]
        ]
    favourite = torch.stack(logits)[:, letter_tokens(tokenizer)].argmax(-1).tolist()
    choice["validation"] = [
        dataclasses.replace(q, answer=LETTERS[(f + (i % 4 == 0)) % 4])
        for i, (q, f) in enumerate(zip(choice["validation"], favourite, strict=True))
    ]
    data = {
        s: {"choice": encoded(tokenizer, choice[s]), "short": encoded(tokenizer, known.select(s, choice=False))}
        for s in choice
    }
    base = Reading("as_trained", 2.0, 1.0)  # a cap that bites
    letters = letter_tokens(tokenizer)
    lines = measure(model, data, letters=letters, pad=1, readings=[base], post_hoc=True)
    fitted = {line["view"]: line["read_at"] for line in lines if line["reading"] == "post_hoc"}
    assert set(fitted) == {"options", "letter", "tokens", "first"}
    assert 0.1 < fitted["options"] < 10
    for view, temperature in fitted.items():
        near = [Reading(str(f), f * temperature, 1.0) for f in (0.8, 1.0, 1.25)]
        on_validation = measure(
            model, {"test": data["validation"]}, letters=letters, pad=1, readings=near, post_hoc=False
        )
        below, at, above = (line["nll"] for line in on_validation if line["view"] == view)
        if 0.06 < temperature < 19:  # inside the bounds of the search
            assert at <= min(below, above) + 1e-7, view


def test_spectrum_of_known_features():
    rows = torch.cat([torch.eye(6), -torch.eye(6)])
    assert spectrum(rows)["effective_rank"] == pytest.approx(6)
    assert spectrum(rows)["smallest_share"] == pytest.approx(0.5)
    assert spectrum(rows)["feature_norm_rms"] == pytest.approx(1)
    flat = torch.cat([rows[:, :1], torch.zeros(12, 5)], dim=1)
    assert spectrum(flat)["effective_rank"] == pytest.approx(1)


def test_scores_of_a_sure_and_wrong_model():
    made = score_predictions(np.full(200, 0.75), np.arange(200) % 4 == 0)
    assert made["accuracy"] == 0.25
    assert made["ece"] == made["rms"] == pytest.approx(0.5)
    assert made["rms_sorted"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "loss", [{"label_smoothing": 0.2}, {"temperature": 0.5}, {"softcap": 1.5, "label_smoothing": 0.1}]
)
def test_the_training_loss_is_the_one_asked_for(files, loaded, loss):
    config = small(files, epochs=1, batch_size=24, step_size=1e-12, **loss)
    _, table = rows(config, files)
    model, tokenizer = loaded
    pool = read_questions(files[1]).select("train")
    drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))[:24]
    z, y = [], []
    for document in encoded(tokenizer, [pool[i] for i in drawn.tolist()]):
        with torch.no_grad():
            logits = model(torch.tensor([document.tokens])).logits[0]
        labels = torch.tensor(document.labels)
        z.append(logits[:-1][labels[1:] != -100])
        y.append(labels[labels != -100])
    z, y, cap = torch.cat(z), torch.cat(y), loss.get("softcap")
    z = (z if cap is None else cap * torch.tanh(z / cap)) / loss.get("temperature", 1.0)
    expected = F.cross_entropy(z, y, label_smoothing=loss.get("label_smoothing", 0.0)).item()
    assert table.loc[table["epoch"] == 1, "training_loss"].iloc[0] == pytest.approx(expected, rel=1e-4)


def test_tuning_is_plain_adamw_on_shuffled_examples(files, loaded):
    """Against eager cross entropy of full logits, one document at a time."""
    config = small(files, epochs=2, batch_size=8, label_smoothing=0.1)
    _, table = rows(config, files)
    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    pool = read_questions(files[1]).select("train")
    generator = torch.Generator().manual_seed(0)
    train = encoded(tokenizer, [pool[i] for i in torch.randperm(len(pool), generator=generator)[:24].tolist()])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)  # 6 steps: no warm-up
    order = torch.Generator().manual_seed(0)
    for _ in range(2):
        losses = []
        for part in torch.randperm(24, generator=order).split(8):
            parts = [
                (model(torch.tensor([train[i].tokens])).logits[0, :-1], train[i].labels[1:]) for i in part.tolist()
            ]
            z, y = torch.cat([z for z, _ in parts]), torch.tensor([label for _, labels in parts for label in labels])
            optimiser.zero_grad()
            loss = F.cross_entropy(z, y, label_smoothing=0.1)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item())
    assert table.loc[table["epoch"] == 2, "training_loss"].iloc[0] == pytest.approx(np.mean(losses), rel=1e-4)


def test_tuning_learns_and_is_measured_on_the_way(files):
    row, table = rows(small(files, epochs=4, step_size=1e-2), files)
    assert sorted(table["epoch"].unique()) == [0, 1, 2, 4]
    train = table.loc[(table["split"] == "train") & (table["view"] == "tokens")].set_index("epoch")["nll"]
    assert train[4] < train[0] - 0.5
    first = table.loc[(table["epoch"] == 0) & (table["reading"] == "as_trained")]
    assert set(zip(first["split"], first["view"], strict=True)) == {
        (split, view) for split in ("train", "validation", "test") for view in ("options", "letter", "tokens", "first")
    } | {("test", "text")}
    assert set(table.loc[table["reading"] == "post_hoc", "epoch"]) == {0, 4}
    assert row["data_seed"] == 0


def test_a_shared_scale_falls_as_its_own_minimisation_says():
    """Against a search over one number of torch's losses; a gain of every dimension reaches at least as low a loss."""
    generator = torch.Generator().manual_seed(0)
    w, h = (torch.randn(n, 6, generator=generator) for n in (11, 400))
    y = torch.distributions.Categorical(logits=1.5 * h @ w.T).sample()
    none = torch.zeros(400, dtype=torch.long)
    seen = HiddenStates(h, y, none, none.bool(), none.bool())
    found = shared_falls(seen, ModelHead(w, None, 1.0, None), {"seen": seen}, (0.1, 0.2))["seen"]
    assert set(found) == {
        f"{kind}_{name}" for kind in ("scale", "gain") for name in ("confidence", "fall_0.1", "fall_0.2")
    }

    def confidence(b):
        losses = lambda s: F.cross_entropy(s * h @ w.T, y, label_smoothing=b).item()  # noqa: E731
        best = minimize_scalar(losses, bounds=(0.1, 5), method="bounded").x
        return (best * h @ w.T).softmax(-1).amax(-1).mean().item()

    assert found["scale_confidence"] == pytest.approx(confidence(0.0), abs=2e-3)
    for b in (0.1, 0.2):
        assert found[f"scale_fall_{b}"] == pytest.approx(confidence(0.0) - confidence(b), abs=2e-3)
        assert found[f"gain_fall_{b}"] > 0.01


@pytest.mark.parametrize("kind", ["gain", "scale"])
def test_where_a_shared_change_separates_the_tokens_nothing_is_predicted(kind):
    """The plain loss then falls to 0 with the change without bound: where a solver stops is no optimum."""
    generator = torch.Generator().manual_seed(0)
    w, h = (torch.randn(n, 64, generator=generator) for n in (500, 400))
    separating = 0.2 + 2 * torch.rand(64 if kind == "gain" else 1, generator=generator)
    y = ((h * separating) @ w.T).argmax(-1)
    none = torch.zeros(400, dtype=torch.long)
    seen = HiddenStates(h, y, none, none.bool(), none.bool())
    found = shared_falls(seen, ModelHead(w, None, 1.0, None), {"seen": seen}, (0.1, 0.2))["seen"]
    unknown = {"gain"} if kind == "gain" else {"gain", "scale"}
    assert {name for name, value in found.items() if np.isnan(value)} == {
        f"{each}_{name}" for each in unknown for name in ("confidence", "fall_0.1", "fall_0.2")
    }


def test_tunings_without_smoothing_record_what_shared_changes_predict(files):
    plain, smoothed = (rows(small(files, label_smoothing=b, epochs=1), files)[1] for b in (0.0, 0.1))
    names = [f"{kind}_fall_{b}" for kind in ("scale", "gain") for b in ("0.1", "0.2")]
    assert not set(names) & set(smoothed)
    there = plain.loc[plain[names].notna().all(axis=1)]
    assert set(there["epoch"]) == {1}
    assert set(there["reading"]) == {"as_trained"}
    assert {("train", "letter"), ("test", "tokens"), ("test", "text")} <= set(
        zip(there["split"], there["view"], strict=True)
    )
    assert len(there) == plain[names].notna().any(axis=1).sum()
    maps = there.loc[there["split"] != "validation", ["affine_fall_0.1", "low_rank_fall_0.2", "affine_ridge_0"]]
    assert len(maps) == 5
    assert maps.notna().all(axis=None)


def test_seeds_draw_the_examples_and_runs_of_a_seed_share_them(files):
    tables = [rows(small(files, **c), files)[1] for c in ({}, {"label_smoothing": 0.2}, {"seed": 1}, {})]
    nll = [t.loc[(t["split"] == "train") & (t["view"] == "letter") & (t["reading"] == "as_trained")].set_index("epoch")["nll"] for t in tables]  # fmt: skip
    assert nll[0][0] == nll[1][0]  # the same examples before tuning
    assert nll[0][0] != nll[2][0]
    assert nll[0][2] != nll[1][2]
    assert nll[0].equals(nll[3])  # reproducible


def test_a_trained_temperature_is_also_read_without(files):
    _, table = rows(small(files, epochs=1, temperature=0.5), files)
    assert set(table["reading"]) == {"as_trained", "plain", "post_hoc"}
    read = table.loc[table["epoch"] == 1].groupby("reading")["read_at"].first()
    assert (read["as_trained"], read["plain"]) == (0.5, 1.0)


def test_what_does_not_fit_is_refused(files):
    with pytest.raises(ValueError, match="model and questions must be other and"):
        rows(small(files, model="other"), files)
    with pytest.raises(ValueError, match=r"examples must be at most the \d+ training questions, got 1000"):
        rows(small(files, examples=1000), files)
    with pytest.raises(
        FileNotFoundError, match="model must be a folder, a GGUF file or a hub's owner/name, got nowhere"
    ):
        load("nowhere")
    with pytest.raises(ValueError, match="preset must be one of"):
        configs("m", "q", "huge")


def test_the_full_grid():
    grid = configs("m", "q", "full")
    assert len({config_key(c) for c in grid}) == len(grid) == 33
    plain = [c for c in grid if c.temperature == 1 and c.softcap is None]
    assert sorted({c.label_smoothing for c in plain}) == [0.0, 0.1, 0.2]
    assert {c.seed for c in grid} == {0, 1, 2}
    assert grid[: len(plain)] == plain  # what matters most comes first
    assert all(seconds(c, "cuda") < seconds(c, "cpu") for c in grid)


def test_the_command(files, tmp_path, capsys):
    place = [str(files[0]), str(files[1]), "--preset", "rehearsal", "--out", str(tmp_path)]
    assert main(["plan", *place]) == 0
    assert "2 runs" in capsys.readouterr().out
    assert main(["status", *place]) == 1
    assert main(["run", *place, "--shard", "2/2"]) == 0
    assert "1 computed now, 1 of 1 there, 0 failed" in capsys.readouterr().out
    assert main(["table", *place]) == 1
    assert set(pd.read_csv(tmp_path / "instruction_rehearsal.csv")["label_smoothing"]) == {0.1}
    assert main(["run", *place]) == 0
    assert "1 computed now, 2 of 2 there, 0 failed" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "instruction_rehearsal.csv")
    assert set(table["label_smoothing"]) == {0.0, 0.1}
    sidecar = json.loads((tmp_path / "instruction_rehearsal.json").read_text())
    assert sidecar["source"]["questions"]["sources"] == {"made up": {"version": "1", "licence": "MIT"}}
    assert sidecar["source"]["model"] == "tiny"
    assert sidecar["seeds"]["data"] == [0]
    assert main(["run", *place]) == 0
    assert "0 computed now, 2 of 2 there" in capsys.readouterr().out
    assert main(["status", *place]) == 0
    assert main(["run", "nowhere.gguf", *place[1:]]) == 2
    assert "error: MODEL must be a folder or a GGUF file, got nowhere.gguf" in capsys.readouterr().err
