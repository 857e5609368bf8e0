"""Tuning on files of pairs, with a tiny random model: files, token ids that travel, cut vocabularies, scores, runs."""

import copy
import dataclasses
import gzip
import json
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import make, save_folder

from analysis.calibration import calibration_error
from analysis.lab import sweep
from analysis.lab.records import config_key
from analysis.lab.tables import read_table
from analysis.language_models import load_model
from analysis.language_models.documents import Encoded, batches
from analysis.language_models.families import _row, family_states, reads_families
from analysis.language_models.features import head_of, hidden_states
from analysis.language_models.packing import packed
from analysis.language_models.scoring import score_tokens
from analysis.real_tuning import main
from analysis.study.real_tuning import grid_command, pair_measures, pair_tuning
from analysis.study.real_tuning.choice_scores import VIEWS, Asked, ask, choice_lines, letter_documents, option_documents
from analysis.study.real_tuning.files import ChoiceQuestion, Pair, read_choices, read_pairs
from analysis.study.real_tuning.pair_configs import PairConfig, configs, seconds
from analysis.study.real_tuning.pair_documents import _runs, documents_of
from analysis.study.real_tuning.pair_measures import kept_before
from analysis.study.real_tuning.pair_tuning import tune_on_pairs
from analysis.study.real_tuning.sample import write_sample
from analysis.study.real_tuning.token_files import encode, read_tokens, write_tokens
from analysis.study.real_tuning.vocabulary import cut_vocabulary, kept_rows, renumbered
from kernel.huggingface import fuse_loss


class WithSpaces:
    """The tiny tokenizer of single characters, to which ' A' to ' H' are one token each."""

    def __init__(self, plain):
        self.plain = plain
        self.bos_token_id, self.eos_token_id, self.pad_token_id = plain.bos_token_id, plain.eos_token_id, None

    def __call__(self, texts, add_special_tokens):
        ids = self.plain(texts, add_special_tokens=add_special_tokens)["input_ids"]
        short = {self.plain(f" {c}", add_special_tokens=False)["input_ids"][1]: c for c in "ABCDEFGH"}
        space = self.plain(" ", add_special_tokens=False)["input_ids"]
        return {"input_ids": [x[1:] if len(x) == 2 and x[:1] == space and x[1] in short else x for x in ids]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model in a folder, and the sample in its token ids."""
    folder = tmp_path_factory.mktemp("real")
    save_folder(folder / "tiny")
    questions, pairs = write_sample(folder)
    loaded = load_model(folder / "tiny")
    facts = {
        "model": "tiny",
        "revision": loaded.revision,
        "vocab_size": 97,
        "transformers": "9",
        "files": {},
        "text": "t",
    }
    made = encode(
        WithSpaces(loaded.tokenizer), read_pairs([pairs])[0], read_choices([questions])[0], ["Some text.", "More of it"],
        "x" * 700, {**facts, "checked_cross_entropy": None}, max_length=160,
    )  # fmt: skip
    write_tokens(made, folder / "tokens.npz")
    return folder


@pytest.fixture(scope="module")
def known(place):
    return read_tokens(place / "tokens.npz")


def config(known, **changes):
    common = {"pairs": 12, "epochs": 1, "batch_size": 6, "evaluated": 20, "held_out": 6, "step_size": 3e-3}
    return PairConfig(model="tiny", tokens=known.digest, **{**common, **changes})


def tuned(place, known, **changes):
    row = tune_on_pairs(config(known, **changes), model=place / "tiny", tokens=place / "tokens.npz")
    return row, pd.DataFrame(row["measurements"])


def write_lines(path, rows):
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_files_of_questions_and_pairs(tmp_path):
    question = {"question": "q?", "options": ["a", "b"], "answer": 1, "subject": "s"}
    path = write_lines(tmp_path / "some_test.jsonl.gz", [question, question, {**question, "question": " r?\n"}])
    found, (facts,) = read_choices([path])
    assert [q[:4] for q in found] == [("some_test", "q?", ("a", "b"), 1), ("some_test", "r?", ("a", "b"), 1)]
    assert (facts.name, facts.rows, len(facts.sha256)) == ("some_test.jsonl.gz", 3, 64)
    pairs = write_lines(tmp_path / "p.jsonl", [{"instruction": " do ", "input": "x", "response": "y\n"}])
    assert read_pairs([pairs])[0][0][:3] == ("p", "do\nx", "y")


def test_a_text_is_in_one_part_for_good(tmp_path):
    many = [{"question": f"question {i}", "options": ["a", "b"], "answer": 0} for i in range(400)]
    first = read_choices([write_lines(tmp_path / "a.jsonl", many)])[0]
    other = [{**row, "question": row["question"] + " ", "options": ["c", "d"]} for row in reversed(many)]
    second = read_choices([write_lines(tmp_path / "b.jsonl", other)])[0]
    assert [q.part for q in first] == [q.part for q in reversed(second)]
    share = np.mean([q.part == "fit" for q in first])
    assert 0.15 < share < 0.35
    assert {q.part for q in first} == {"fit", "scored"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "options": ["a", "b"]}, "has no field 'answer'"),
        ({"question": "q", "options": ["a", "b"], "answer": 2}, "answer must be the index of an option, got 2"),
        ({"question": "q", "options": ["a", "b"], "answer": "b"}, "answer must be the index of an option, got 'b'"),
        ({"question": "q", "options": ["a"], "answer": 0}, "options must be a list of two or more texts"),
        ({"question": " ", "options": ["a", "b"], "answer": 0}, "question must be a text that is not empty"),
        (["q"], "line 1 of .* is not as it must be"),
    ],
)
def test_questions_that_are_none_are_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_choices([write_lines(tmp_path / "a.jsonl", [row])])


def test_pairs_that_are_none_are_refused(tmp_path):
    for row in ({"instruction": "a", "response": ""}, {"instruction": "a", "response": "b", "input": 3}):
        with pytest.raises(ValueError, match="instruction and response must be texts"):
            read_pairs([write_lines(tmp_path / "a.jsonl", [row])])
    with pytest.raises(ValueError, match="must hold a line, got none"):
        read_pairs([write_lines(tmp_path / "a.jsonl", [])])
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="packed where it is called"):
        read_pairs([tmp_path / "b.jsonl.gz"])


def test_prompts_are_masked_and_in_the_stated_format(place, known):
    tokenizer = load_model(place / "tiny").tokenizer

    def text(ids):
        return "".join(tokenizer.convert_ids_to_tokens(list(ids)))

    pair = next(p for p in known.pairs if "digits" in text(p.prompt))
    assert text(pair.prompt).startswith("[BOS]Instruction: Write zero in digits.\nResponse:")
    assert text(pair.response) == " 0[EOS]"
    q = known.questions[0]
    assert text(q.prompt) == "[BOS]Question: What is the opposite of hot?\nAnswer:"
    assert [text(option) for option in q.options] == [" cold", " late", " dry", " slow"]
    assert q.characters == (4, 4, 3, 4)
    assert text(q.lettered).endswith("hot?\nA. cold\nB. late\nC. dry\nD. slow\nAnswer:")
    data = documents_of(known, config(known))
    for document in (*data.train, *data.along["scored"].options, *data.along["scored"].letters):
        kept = [label for label in document.labels if label != -100]
        assert document.tokens[-len(kept) :] == kept
        assert set(document.labels[: -len(kept)]) == {-100}


def test_token_ids_travel(place, known, tmp_path):
    write_tokens(known, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (place / "tokens.npz").read_bytes()
    again = read_tokens(tmp_path / "again.npz")
    assert again == known
    assert len(known.checked) == 3
    other = dataclasses.replace(known.questions[0], answer=1)
    changed = dataclasses.replace(known, questions=(other, *known.questions[1:]))
    write_tokens(changed, tmp_path / "other.npz")
    assert read_tokens(tmp_path / "other.npz").digest != known.digest
    elsewhere = dataclasses.replace(known, facts={**known.facts, "transformers": "10", "checked_cross_entropy": 2.7})
    write_tokens(elsewhere, tmp_path / "elsewhere.npz")
    assert read_tokens(tmp_path / "elsewhere.npz").digest == known.digest
    assert read_tokens(tmp_path / "elsewhere.npz").facts["transformers"] == "10"
    for content in (b"", b"no npz", (place / "tokens.npz").read_bytes()[:500]):
        (tmp_path / "none.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"must be a file of python -m analysis\.real_tuning encode"):
            read_tokens(tmp_path / "none.npz")


def test_letters_must_be_tokens(place):
    tokenizer = load_model(place / "tiny").tokenizer  # a space and a letter are two of its tokens
    with pytest.raises(ValueError, match="tokenizer must have one token for each of"):
        encode(tokenizer, [], [], [], "x", {})
    nine = ChoiceQuestion("s", "q", tuple("abcdefghi"), 0, "fit")
    with pytest.raises(ValueError, match="questions must have at most 8 options, got one of 9"):
        encode(WithSpaces(tokenizer), [Pair("s", "a", "b", "fit")], [nine], [], "x", {"vocab_size": 97})


def test_rows_are_kept_by_frequency():
    counts = np.array([0, 5, 0, 9, 1, 0, 7, 1])
    assert kept_rows(counts, None, None, []).tolist() == list(range(8))
    assert kept_rows(counts, 0, None, [0]).tolist() == [0, 1, 3, 4, 6, 7]
    assert kept_rows(counts, 0, 3, [0]).tolist() == [0, 3, 6]
    assert kept_rows(counts, 5, 3, [0]).tolist() == [0, 1, 3, 4, 6]  # of equal ones that with the lower id
    assert kept_rows(counts, 7, None, [0]).tolist() == [0, 1, 2, 3, 4, 6, 7]
    for size in (4, 9):
        with pytest.raises(ValueError, match=f"size must be at least 6, .* at most 8, got {size}"):
            kept_rows(counts, size, None, [0])


def test_a_cut_model_has_the_logits_of_the_rows_that_are_kept(place):
    model = load_model(place / "tiny").model
    kept = np.array([0, 1, 5, 20, 21, 60])
    cut = copy.deepcopy(model)
    cut_vocabulary(cut, kept)
    assert cut.get_input_embeddings().weight is cut.get_output_embeddings().weight
    assert cut.config.vocab_size == head_of(cut).weight.shape[0] == 6
    ids = torch.tensor([[1, 20, 60, 5]])
    place_of = {token: i for i, token in enumerate(kept.tolist())}
    inside = torch.tensor([[place_of[i] for i in ids[0].tolist()]])
    with torch.no_grad():
        torch.testing.assert_close(cut(inside).logits, model(ids).logits[..., kept])
    with pytest.raises(ValueError, match="documents must lie within"):
        renumbered([Encoded([2], [2])], kept, 97)


def test_options_are_scored_as_full_logits_say(place, known):
    model = load_model(place / "tiny").model
    asked = list(known.questions[:6])
    letters = known.facts["letters"]
    documents = {"options": option_documents(asked), "letters": letter_documents(asked, letters)}
    found = ask(model, head_of(model), asked, documents, letters=letters, pad=0, temperature=2.0, batch_size=5)

    def log_p(ids):
        with torch.no_grad():
            return (model(torch.tensor([ids])).logits[0].double() / 2.0).log_softmax(-1)

    for i, q in enumerate(asked):
        for k, option in enumerate(q.options):
            of = log_p([*q.prompt, *option])
            total = sum(of[len(q.prompt) - 1 + t, token].item() for t, token in enumerate(option))
            assert found.logits["cloze"][i, k] == pytest.approx(total, rel=1e-4)
            assert found.logits["cloze_norm"][i, k] == pytest.approx(total / q.characters[k], rel=1e-4)
        z = log_p(list(q.lettered))[-1, letters[:4]]
        np.testing.assert_allclose(
            found.logits["letters"][i] - found.logits["letters"][i].max(), (z - z.max()).numpy(), atol=1e-4
        )
    assert found.answer.tolist() == [q.answer for q in asked]


def test_batches_change_no_hidden_state(place, known):
    model = load_model(place / "tiny").model
    documents = option_documents(known.questions[:9])
    at_once = hidden_states(model, documents, pad=0)
    longest = max(len(d.tokens) for d in documents)
    for options in ({"batch_tokens": 2 * longest + 5}, {"batch_tokens": 1}, {"batch_size": 4, "batch_tokens": 10**6}):
        seen = []
        found = hidden_states(model, documents, pad=0, progress=seen.append, **options)
        assert sum(seen) == len(documents)
        assert len(seen) >= {1: len(documents)}.get(options["batch_tokens"], 2)
        for a, b in zip(found[1:], at_once[1:], strict=True):
            assert torch.equal(a, b)
        torch.testing.assert_close(found.hidden, at_once.hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model_type", "attention"), [("llama", "sdpa"), ("gemma3_text", "eager"), ("gpt2", "sdpa")])
def test_what_documents_begin_with_is_read_once(model_type, attention):
    model = make(model_type, attn_implementation=attention)
    families = [
        [Encoded([1, *range(3, 3 + n), *end], [-100] * (1 + n) + end) for end in ([9, 8, 7], [9, 5], [4])]
        + [Encoded([1, *range(3, 3 + n // 2), 6, 6], [-100] * (2 + n // 2) + [6])]
        for n in (2, 30, 7, 11)
    ]
    documents = [document for family in families for document in family]
    expected = hidden_states(model, documents, pad=0)
    assert reads_families(model, families[1], pad=0)
    assert len(_row(families[1], 0).tokens) == 16 + (15 + 3) + (15 + 2) + (15 + 1) + 2
    for options in ({}, {"batch_size": 3}, {"batch_tokens": 70}):
        found = family_states(model, families, pad=0, **options)
        for a, b in zip(found[1:], expected[1:], strict=True):
            assert torch.equal(a, b)
        torch.testing.assert_close(found.hidden, expected.hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model_type", "attention"), [("llama", "sdpa"), ("gemma3_text", "eager")])
def test_packed_documents_have_the_gradients_of_padded_ones(model_type, attention):
    """With the end of one document in front of the next, whose first token is not predicted."""
    documents = [Encoded([1, *range(3, 3 + n)], [1, -100, *range(4, 3 + n)]) for n in (2, 30, 7, 11, 9, 20)]
    model = make(model_type, attn_implementation=attention).train()
    (batch,) = batches(documents, 6, 0)
    found = []
    for given in (
        packed(model, documents, 0),
        {"input_ids": batch.tokens, "attention_mask": batch.mask, "labels": batch.labels},
    ):
        with fuse_loss(model, label_smoothing=0.1):
            loss = model(**given).loss
        model.zero_grad()
        loss.backward()
        found.append((given["input_ids"].shape, loss.detach(), [p.grad.clone() for p in model.parameters()]))
    assert [shape for shape, _, _ in found] == [(3, 31), (6, 31)]
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=1e-4, atol=1e-5)


def test_where_a_model_sees_less_each_document_is_read_by_itself():
    """A window of attention that is shorter than the documents, and attention that takes no such mask."""
    family = [Encoded([1, *range(3, 30), k], [-100] * 28 + [k]) for k in (40, 41)]
    model = make("gemma3_text", sliding_window=8)
    assert not reads_families(model, family, pad=0)
    torch.testing.assert_close(
        family_states(model, [family], pad=0).hidden, hidden_states(model, family, pad=0).hidden, rtol=1e-5, atol=1e-6
    )
    assert reads_families(make("gemma3_text", sliding_window=32), family, pad=0)
    data = Namespace(train=family, pad=0)
    for window, packs in ((8, False), (32, True)):
        (given,) = pair_tuning._inputs(make("gemma3_text", sliding_window=window), data, 2)(family)
        assert (given["attention_mask"].ndim == 4) == ("position_ids" in given) == packs
    model.config._attn_implementation = "flash_attention_2"
    assert not reads_families(model, family, pad=0)


def test_scores_under_autocast_are_those_of_rounded_features(place, known):
    """As on a GPU, where in float32 the products of a large head would take most of a run."""
    model = load_model(place / "tiny").model
    states, head = hidden_states(model, option_documents(known.questions[:9]), pad=0), head_of(model)
    rounded = states._replace(hidden=states.hidden.bfloat16().float())
    expected = score_tokens(rounded, head._replace(weight=head.weight.bfloat16().float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = score_tokens(states, head)
    np.testing.assert_allclose(found.nll, expected.nll, rtol=1e-4)
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=1e-4)
    exact = score_tokens(states, head)
    assert 0 < np.abs(found.confidence - exact.confidence).max() < 0.05 * exact.confidence.max()


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


def test_scores_of_choices():
    draw = np.random.default_rng(0)
    z = 3 * draw.normal(size=(400, 5))
    z[::3, 4] = -np.inf  # four options, or five
    p = np.exp(z / 2)
    p /= p.sum(-1, keepdims=True)
    answer = np.array([draw.choice(5, p=row) for row in p])  # right at a temperature of 2
    asked = Asked(dict.fromkeys(VIEWS, z), answer, np.array(["a", "b"] * 200))
    half = np.arange(400) < 200
    lines = choice_lines(asked.take(half), asked.take(~half), bins=True)
    table = pd.DataFrame(lines)
    scores = table.loc[table["bin"].isna()].set_index(["view", "source", "reading"])
    assert len(scores) == 3 * 3 * 2
    at = scores.loc["cloze", "all", "as_trained"]
    own = np.exp(z[~half]) / np.exp(z[~half]).sum(-1, keepdims=True)
    right = own.argmax(-1) == answer[~half]
    assert at["accuracy"] == pytest.approx(right.mean())
    assert at["ece"] == pytest.approx(calibration_error(own.max(-1), right, n_bins=15))
    assert at["nll"] == pytest.approx(-np.log(own[np.arange(200), answer[~half]]).mean())
    assert at["ece_low"] < at["ece"] < at["ece_high"]
    fitted = scores.loc["cloze", "all", "post_hoc"]
    assert 1.4 < fitted["read_at"] < 2.8
    assert fitted["ece"] < at["ece"]
    bins = table.loc[table["bin"].notna() & (table["source"] == "all") & (table["view"] == "cloze")]
    assert bins.loc[bins["reading"] == "as_trained", "n"].sum() == 200


def test_the_interval_of_a_calibrated_models_error_begins_at_zero():
    """Quantiles of resamples lie above an error that is noise: the smallest of them is no lower end."""
    draw = np.random.default_rng(1)
    z = draw.normal(size=(1500, 4))
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    answer = (p.cumsum(-1) < draw.random((1500, 1))).sum(-1).clip(0, 3)
    asked = Asked(dict.fromkeys(VIEWS, z), answer, np.array(["a"] * 1500))
    line = choice_lines(asked, asked, bins=True)[0]
    assert line["ece"] < 0.05
    assert line["ece_low"] == 0
    assert line["ece_low"] < line["ece_high"] < 2 * line["ece"]


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
    for config in configs:
        if take(config):
            yield config, function(config), None


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


def test_what_is_cut_off_is_drawn_from_all_of_a_file(known):
    """Files are sorted, by subject or source: neither their first questions nor their first pairs stand for them."""
    question = next(q for q in known.questions if q.part == "scored")
    pair = next(p for p in known.pairs if p.part == "scored")
    many = dataclasses.replace(
        known,
        questions=tuple(
            dataclasses.replace(question, part=part, characters=(*question.characters[:-1], i + 1))
            for i in range(400)
            for part in ("fit", "scored")
        ),
        pairs=(
            *known.pairs,
            *(dataclasses.replace(pair, response=(*pair.response, i % 20, i // 20)) for i in range(400)),
        ),
    )
    data = documents_of(many, config(known, evaluated=100, held_out=60))
    for part, count in (("fit", 25), ("scored", 75)):
        places = [q.characters[-1] for q in data.along[part].questions]
        assert len(places) == count
        assert max(places) > 300
    assert max(d.tokens[-1] for d in data.responses["scored"]) > 14


def test_text_is_cut_where_it_leaves_the_vocabulary():
    within = np.ones(9, bool)
    within[8] = False
    text = (0, *[1] * 20, 8, *[2] * 15, 8, 8, *[3] * 16)
    assert list(_runs(text, within)) == [(0, *[1] * 20), (0, *[3] * 16)]
    assert list(_runs((0, 1, 2), within)) == [(0, 1, 2)]  # whole, however short
    assert list(_runs((0, 8), within)) == []
