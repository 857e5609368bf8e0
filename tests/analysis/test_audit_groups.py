"""Numbers of an audit for groups of tokens, and intervals that take documents as units."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from full_logits import close, plain, tokens_of
from matplotlib.figure import Figure
from tiny_models import V, make

from analysis.audit import audit_model, draw_audit
from analysis.audit._intervals import Documents
from analysis.audit._measure import Tokens, groups
from analysis.audit._verdict import Lookup
from analysis.calibration import calibration_error, frequency_groups


def test_fifths_split_the_tokens():
    model = make()
    tokens = tokens_of(model, 40)
    get, want = Lookup(audit_model(model, tokens).table), plain(model, tokens)
    n = len(want["nll"])
    order = np.argsort(want["entropy"])
    for fifth in range(5):
        part = order[math.ceil(fifth * n / 5) : math.ceil((fifth + 1) * n / 5)]
        close(get("entropy", "n", str(fifth + 1)), len(part))
        over = (want["confidence"] - want["correct"])[part].mean()
        close(get("entropy", "over_confidence", str(fifth + 1)), over)
        ece = calibration_error(want["confidence"][part], want["correct"][part])
        close(get("entropy", "ece", str(fifth + 1)), ece)
    target, choice = (want[name].reshape(40, 11) for name in ("target", "choice"))  # a line for each document
    others = (np.bincount(np.delete(target, i, axis=0).ravel(), minlength=V) for i in range(40))
    fifths = np.array([frequency_groups(counts, 5)[row] for counts, row in zip(others, choice, strict=True)])
    assert [get("frequency", "n", g).value for g in get.groups("frequency", "n")] == [
        count for fifth in range(5) if (count := (fifths == fifth).sum())
    ]
    close(get("frequency", "accuracy", "1"), want["correct"][fifths.ravel() == 0].mean())


def calibrated(documents, length, seed, vocab_size=1500):
    """Tokens of a model that is right exactly as often as it says, on words of Zipf frequencies."""
    rng = np.random.default_rng(seed)
    n, zipf = documents * length, 1 / np.arange(1, vocab_size + 1)
    predicted, other = rng.choice(vocab_size, size=(2, n), p=zipf / zipf.sum())
    confidence, nothing = rng.uniform(0.05, 0.95, n), np.zeros(n)
    target = np.where((rng.random(n) < confidence) & (other != predicted), predicted, other)
    confidence = confidence + (1 - confidence) * zipf[predicted] / zipf.sum()  # the other may be the predicted one
    return Tokens(
        np.repeat(np.arange(documents), length), 1 + np.arange(n) % length, target, predicted, nothing, nothing,
        nothing, confidence, np.log1p(-confidence), target == predicted,
    )  # fmt: skip


def test_a_calibrated_model_is_calibrated_at_every_frequency():
    """Fifths must not be made of the tokens that are scored: then rare means guessed in vain."""
    found, counted_in = [], []
    for seed in range(30):
        tokens = calibrated(30, 60, seed)
        rows = pd.DataFrame(groups(tokens, Documents(tokens.document, resamples=2)))
        rows = rows.loc[(rows["part"] == "frequency") & (rows["name"] == "over_confidence")]
        found.append(rows["value"].to_numpy())
        own = frequency_groups(np.bincount(tokens.target, minlength=1500), 5)[tokens.predicted]
        excess = tokens.confidence - tokens.correct
        counted_in.append([excess[own == fifth].mean() for fifth in range(5)])
    error = np.std(found, axis=0) / math.sqrt(30)
    assert error.max() < 0.01
    assert (np.abs(np.mean(found, axis=0)) < 3.5 * error).all()
    assert np.mean(counted_in, axis=0)[0] > 0.05  # what such fifths would show


def test_one_document_has_no_other_to_count_in():
    table = audit_model(make(), tokens_of(make(), 1, 30)).table
    assert "frequency" not in set(table["part"])
    assert "entropy" in set(table["part"])
    draw_audit(table, Figure().subplots(2, 2).ravel().tolist())


def test_ranges_of_context_count_the_tokens_before():
    model = make()
    documents = [tokens_of(model, 1, n, seed=n)[0] for n in (40, 12, 5)]
    want = [plain(model, d[None]) for d in documents]
    get = Lookup(audit_model(model, documents).table)
    assert get.groups("context", "n") == ["1", "8", "32"]
    for low, high, n in ((1, 8, 7 + 7 + 4), (8, 32, 24 + 4), (32, 128, 8)):
        kept = {name: np.concatenate([w[name][low - 1 : high - 1] for w in want]) for name in want[0]}
        close(get("context", "n", str(low)), n)
        close(get("context", "cross_entropy", str(low)), kept["nll"].mean())
        close(get("context", "scale_gap", str(low)), (kept["entropy"] - kept["nll"]).mean())
        close(get("context", "over_confidence", str(low)), (kept["confidence"] - kept["correct"]).mean())


def test_intervals_resample_whole_documents():
    rng = np.random.default_rng(0)
    document = np.repeat(np.arange(400), 10)
    shared = np.repeat(rng.normal(size=400), 10)  # tokens of a document are alike: 400 samples, not 4000
    estimate = Documents(document).mean(shared)
    assert estimate.value == pytest.approx(shared.mean())
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * shared.std() / 20, rel=0.1)
    single = Documents(np.zeros(5, np.int64)).mean(np.arange(5.0))
    assert single.value == 2
    assert math.isnan(single.low)


def test_the_temperature_interval_takes_documents_as_units():
    model = make("llama", initializer_range=0.1)
    once = tokens_of(model, 12, 30)
    four = once.repeat_interleave(4, 0)  # four times the documents: half the interval
    both = [Lookup(audit_model(model, t).table)("temperature", "best") for t in (once, four)]
    assert both[0].value == pytest.approx(both[1].value, rel=1e-4)
    assert (both[1].high - both[1].low) == pytest.approx((both[0].high - both[0].low) / 2, rel=0.01)
    get, want = Lookup(audit_model(model, once).table), plain(model, once, both[0].value)
    slope = (want["entropy"] - want["nll"]).reshape(12, -1).sum(-1)  # of each document
    z, h = torch.from_numpy(want["logits"]) / both[0].value, 1e-4
    turned = [(z / t).log_softmax(-1) for t in (1 - h, 1 + h)]
    mean = [(-(q.exp() * q).sum(-1).mean() + q[range(len(q)), want["target"]].mean()).item() for q in turned]
    curvature = (mean[1] - mean[0]) / (2 * h)
    half = 1.96 * both[0].value * np.sqrt((slope**2).sum()) / (12 * 29) / curvature
    assert get("temperature", "best").high - both[0].value == pytest.approx(half, rel=0.01)
