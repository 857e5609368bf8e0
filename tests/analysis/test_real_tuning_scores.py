"""What a tuning trains and scores: cut vocabularies, packed documents, and options of questions."""

import copy
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import make

from analysis.calibration import calibration_error
from analysis.language_models import load_model
from analysis.language_models.documents import Encoded, batches
from analysis.language_models.families import _row, family_states, reads_families
from analysis.language_models.features import head_of, hidden_states
from analysis.language_models.packing import packed
from analysis.language_models.scoring import score_tokens
from analysis.study.real_tuning import pair_tuning
from analysis.study.real_tuning.choice_scores import VIEWS, Asked, ask, choice_lines, letter_documents, option_documents
from analysis.study.real_tuning.vocabulary import cut_vocabulary, kept_rows, renumbered
from kernel.huggingface import fuse_loss


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
