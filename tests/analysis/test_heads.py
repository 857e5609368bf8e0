"""The audit of a head: every number against a plain float64 computation from full logits of the whole model."""

import codecs
import copy
import gzip
import inspect
import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from collections import UserDict

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import torch
from matplotlib.figure import Figure
from tiny_models import V, make, save_folder

from analysis.audit import audit_model, draw_audit, verdict
from analysis.audit.__main__ import _parser, main
from analysis.audit._intervals import Documents
from analysis.audit._measure import Tokens, groups
from analysis.audit._panels import reliability_of
from analysis.audit._verdict import Lookup
from analysis.calibration import calibration_error, frequency_groups, reliability_table
from analysis.command import committed_folder
from analysis.language_models import load_model, packaged_smollm2, read_text
from analysis.language_models.documents import cut, python_text

CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"  # read by transformers/modeling_utils.py
ARCHITECTURES = ("cohere", "gemma2", "gemma3_text", "gpt2", "granite", "llama", "mistral", "phi", "qwen2", "qwen3")


def tokens_of(model, rows=16, length=12, seed=1):
    """Sampled from the model, so that it is right now and then."""
    generator = torch.Generator().manual_seed(seed)
    tokens = 3 + torch.randperm(V - 3, generator=generator)[:rows, None]  # no two begin alike
    with torch.no_grad():
        while tokens.shape[1] < length:
            p = model(tokens).logits[:, -1].float().softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=generator)], dim=1)
    return tokens


def plain(model, tokens, temperature=1.0):
    """Full logits of the model itself in float64, and everything from them."""
    wide = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        logits = wide(tokens).logits[:, :-1].double().reshape(-1, wide.config.vocab_size)
    target = tokens[:, 1:].reshape(-1)
    log_p = (logits / temperature).log_softmax(-1)
    p = log_p.exp()
    confidence, choice = p.max(-1)
    others = p.scatter(-1, choice.unsqueeze(-1), 0.0).sum(-1)
    return {
        "logits": logits.numpy(),
        "target": target.numpy(),
        "nll": -log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1).numpy(),
        "entropy": -(p * log_p).sum(-1).numpy(),
        "uniform": -log_p.mean(-1).numpy(),
        "confidence": confidence.numpy(),
        "gap": (confidence.log() - others.log()).numpy() + math.log(logits.shape[-1] - 1),
        "correct": (choice == target).numpy(),
        "choice": choice.numpy(),
    }


def close(actual, expected, tolerance=1e-5):
    assert actual.value == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_numbers_are_those_of_full_logits(model_type):
    model = make(model_type)
    tokens = tokens_of(model)
    get = Lookup(audit_model(model, tokens, label_smoothing=(0.1, 0.3), batch_size=3).table)
    want = plain(model, tokens)
    h, ce, u = (want[name].mean() for name in ("entropy", "nll", "uniform"))
    close(get("prediction", "cross_entropy"), ce)
    close(get("prediction", "entropy"), h)
    close(get("prediction", "uniform_cross_entropy"), u)
    close(get("prediction", "scale_gap"), h - ce)
    close(get("prediction", "accuracy"), want["correct"].mean())
    close(get("prediction", "confidence"), want["confidence"].mean())
    for b in (0.1, 0.3):
        close(get("smoothing", "activity", str(b)), (h - ce) / (b * (u - ce)))
        index = max((h - ce) / (b * (u - ce)), -1.0)
        fall = b * (want["confidence"].mean() - 1 / V) * max(0.0, 1 - index)
        close(get("smoothing", "predicted_fall", str(b)), fall)
        close(get("smoothing", "slope", str(b)), h - ce - b * (u - ce))
        asked = math.log(1 + (1 - b) * V / b)
        close(get("smoothing", "asked_gap", str(b)), asked)
        close(get("smoothing", "share_above", str(b)), (want["gap"] > asked).mean())
    close(get("gap", "largest"), want["gap"].max())
    close(get("gap", "median"), np.median(want["gap"]))
    close(get("calibration", "ece"), calibration_error(want["confidence"], want["correct"]))
    close(get("calibration", "rms"), calibration_error(want["confidence"], want["correct"], norm="l2"))


@pytest.mark.parametrize("model_type", ["gemma2", "cohere", "phi"])
def test_the_temperature_is_the_best_one_of_full_logits(model_type):
    model = make(model_type)
    tokens = tokens_of(model)
    get, want = Lookup(audit_model(model, tokens).table), plain(model, tokens)

    def loss(log_t):
        z = torch.from_numpy(want["logits"]) / math.exp(log_t)
        return torch.nn.functional.cross_entropy(z, torch.from_numpy(want["target"])).item()

    found = scipy.optimize.minimize_scalar(loss, bounds=(-2.9, 2.9), method="bounded", options={"xatol": 1e-10})
    best = math.exp(found.x)
    close(get("temperature", "best"), best, 1e-4)
    after = plain(model, tokens, get("temperature", "best").value)
    close(get("temperature", "cross_entropy_after"), found.fun)
    close(get("temperature", "ece_after"), calibration_error(after["confidence"], after["correct"]))


@pytest.mark.parametrize(("model_type", "scale"), [("cohere", 0.25), ("llama", 1.0), ("phi", 1.0)])
def test_the_caps_hold_for_scaled_features_and_a_bias(model_type, scale):
    model = make(model_type)
    tokens = tokens_of(model)
    found = audit_model(model, tokens).table
    get = Lookup(found)
    with torch.no_grad():
        hidden = scale * model.base_model(tokens).last_hidden_state[:, :-1].reshape(-1, 16).double()
        head = model.get_output_embeddings()
        weight = head.weight.double()
    if head.bias is not None:
        hidden = torch.cat([hidden, torch.ones(len(hidden), 1)], -1)
        weight = torch.cat([weight, head.bias.detach().double().unsqueeze(-1)], -1)
    close(get("head", "norm_product"), (hidden.norm(dim=-1).max() * weight.norm(dim=-1).max()).item())
    close(get("spectrum", "singular_values", "1"), torch.linalg.svdvals(weight)[0].item())
    cosine = torch.nn.functional.cosine_similarity(hidden, weight[tokens[:, 1:].reshape(-1)], dim=-1).mean()
    close(get("head", "target_cosine"), cosine.item())
    one_token = found.loc[(found["part"] == "cap") & (found["name"] == "single_token")]
    assert (one_token["value"] >= get("gap", "largest").value).all()


def test_a_softcap_is_a_cap_of_its_own():
    model = make("gemma2")
    table = audit_model(model, tokens_of(model)).table
    caps = table.loc[(table["part"] == "cap") & (table["group"] == "0.05")].set_index("name")
    assert caps.loc["softcap", "value"] <= 2 * 3.0
    assert caps.loc["softcap", "text"] == "binds"  # b = .05 asks for log(1 + 19 * 67) = 7.1
    assert table.loc[table["name"] == "softcap", "value"].iloc[0] == 3.0


def test_documents_of_any_length_are_read_one_by_one():
    model = make()
    documents = [tokens_of(model, 1, n, seed=n)[0] for n in (5, 12, 3, 9, 2)]
    get = Lookup(audit_model(model, [*map(torch.Tensor.tolist, documents), [7]], batch_size=2).table)
    alone = [plain(model, d[None])["nll"] for d in documents]
    close(get("prediction", "cross_entropy"), np.concatenate(alone).mean())
    assert get("model", "tokens").value == 26
    assert get("model", "documents").value == 5
    cut_off = Lookup(audit_model(model, documents, max_tokens=13, max_length=4).table)  # 3 + 3 + 2 + 3 + 1
    close(cut_off("prediction", "cross_entropy"), np.concatenate([nll[:3] for nll in alone]).mean())
    few = Lookup(audit_model(model, documents, max_tokens=6).table)
    close(few("prediction", "cross_entropy"), np.concatenate([alone[0], alone[1][:2]]).mean())


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


@pytest.mark.parametrize(
    ("scale_gap", "index", "expected"),
    [
        ((-0.3, -0.4, -0.2), (-0.2, -0.3, -0.1), ("is over-confident", "below 1", "the right way here")),
        ((0.3, 0.2, 0.4), (0.4, 0.3, 0.5), ("is under-confident", "below 1", "the wrong way here")),
        ((0.0, -0.1, 0.1), (0.0, -0.1, 0.1), ("as confident as it should be", "away from where")),
        (
            (3.0, 2.9, 3.1),
            (1.9, 1.8, 2.0),
            ("is under-confident", "above 1", "would not act", "targets and unfinished"),
        ),
        ((1.0, 0.5, 1.5), (0.9, 0.7, 1.1), ("cannot tell whether",)),
    ],
)
def test_the_verdict_says_what_the_numbers_say(scale_gap, index, expected):
    model = make()
    table = audit_model(model, tokens_of(model), label_smoothing=(0.1,)).table.set_index(["part", "name"])
    table.loc[("prediction", "scale_gap"), ["value", "low", "high"]] = scale_gap
    table.loc[("smoothing", "activity"), ["value", "low", "high"]] = index
    for name in ("confidence", "accuracy"):  # as good as each other, and no error: the scale decides
        table.loc[("prediction", name), ["value", "low", "high"]] = (0.5, 0.4, 0.6)
    table.loc[("calibration", "ece"), ["value", "low", "high"]] = 0.0
    text = verdict(table.reset_index())
    for words in expected:
        assert words in text


@pytest.mark.parametrize(
    ("scale_gap", "accuracy", "said"),
    [
        (-0.3, 0.48, "slightly over-confident (by 0.020):"),
        (0.3, 0.54, "slightly under-confident (by 0.040):"),
        (-0.3, 0.4, "is over-confident:"),
        (-0.3, 0.52, "is over-confident by one measure and under-confident by the other:"),
    ],
)
def test_the_verdict_calls_a_little_little(scale_gap, accuracy, said):
    table = pd.read_csv(committed_folder() / "audit_smollm2.csv")
    for name, value in (("scale_gap", scale_gap), ("confidence", 0.5), ("accuracy", accuracy)):
        table.loc[table["part"].eq("prediction") & table["name"].eq(name), ["value", "low", "high"]] = value
    assert said in verdict(table)


def test_a_text_worse_than_uniform_tokens_has_no_activity_index():
    """Both losses want smaller logits then, and smoothing pulls the other way than it does elsewhere."""
    model = make()
    tokens = tokens_of(model, 16, 2)
    with torch.no_grad():
        tokens[:, 1] = model(tokens).logits[:, 0].argmin(-1)
    found = audit_model(model, tokens, label_smoothing=(0.1, 0.3))
    get, want = Lookup(found.table), plain(model, tokens)
    assert want["uniform"].mean() < want["nll"].mean()
    assert get("smoothing", "activity", "0.1").value == -math.inf
    for b in (0.1, 0.3):
        slope = (1 - b) * (want["entropy"] - want["nll"]).mean() + b * (want["entropy"] - want["uniform"]).mean()
        close(get("smoothing", "slope", str(b)), slope)
        assert (want["entropy"] - want["nll"]).mean() < slope < 0  # smaller logits, less so than without smoothing
    (line,) = [line for line in found.verdict.splitlines() if line.startswith("Smoothing.")]
    assert line.startswith("Smoothing. No activity index:")
    assert "weakens the pull of the data" in line
    assert "below 1" not in line
    assert "above 1" not in line


def test_a_temperature_at_its_bound_is_called_so():
    model = make()
    random = torch.randint(3, V, (8, 12), generator=torch.Generator().manual_seed(0))
    assert "The temperature that fits best is beyond 20;" in audit_model(model, random).verdict


def test_the_figure_and_its_reliability_table_come_from_the_table_alone():
    model = make()
    tokens = tokens_of(model, 40)
    table, want = audit_model(model, tokens).table, plain(model, tokens)
    again = pd.read_csv(__import__("io").StringIO(table.to_csv(index=False)))
    expected = reliability_table(want["confidence"], want["correct"])
    pd.testing.assert_frame_equal(reliability_of(again), expected, check_dtype=False, atol=1e-5)
    figure = Figure()
    axes = figure.subplots(2, 2).ravel().tolist()
    draw_audit(again, axes)
    assert [axis.get_xlabel() for axis in axes] == ["confidence", "confidence gap (nats)", "label smoothing b", "fifth of the tokens"]  # fmt: skip
    heights = [line.get_ydata()[0] for line in axes[2].lines if line.get_marker() in "o^s"]
    assert heights == [Lookup(again)("smoothing", "activity", b).value for b in ("0.05", "0.1", "0.2")]
    asked = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes[1].lines if line.get_marker() in "o^s"]
    gaps = [Lookup(again)("smoothing", "asked_gap", b).value for b in ("0.05", "0.1", "0.2")]
    assert asked == list(zip(gaps, [1, 2, 3], strict=True))  # on lines of their own, as they are close to each other
    assert [label.get_text() for label in axes[1].get_yticklabels()][:3] == [
        "tokens",
        "asked, b = 0.05",
        "asked, b = 0.1",
    ]
    with pytest.raises(ValueError, match="axes must be four, got 1"):
        draw_audit(again, axes[:1])
    with pytest.raises(ValueError, match="it is no table of an audit"):
        verdict(pd.DataFrame(columns=["part", "name", "group", "value", "low", "high", "text"]))


@pytest.mark.parametrize(
    ("documents", "options", "error", "message"),
    [
        ([], {}, ValueError, "documents must hold a token to predict, got none: a document needs 2 tokens"),
        ([[3]], {}, ValueError, "documents must hold a token to predict, got none"),
        ([[3, 4, 5]], {"skip": 2}, ValueError, r"any skip \+ 2 \(skip is 2, and documents are cut to 64 tokens\)"),
        (["text"], {}, TypeError, "tokenizer must be given for texts, got None"),
        ([torch.ones(3)], {}, TypeError, r"token ids must be integers .* got torch.float32"),
        ({"input_ids": [[3, 4]]}, {}, TypeError, "got dict: give its input_ids, a list for each document"),
        (UserDict(input_ids=[3, 4]), {}, TypeError, "got UserDict: give its input_ids"),
        ([{"input_ids": [3, 4]}], {}, TypeError, "got dict: give its input_ids"),
        ([[3, -100, 4]], {}, ValueError, "token ids must be at least 0 and less than 67, the vocabulary, got -100"),
        (torch.tensor([[3, 4], [5, V]]), {}, ValueError, "token ids must be at least 0 and less than 67, .* got 67"),
        ([torch.ones(3, dtype=torch.bool)], {}, TypeError, r"token ids must be integers .* got torch.bool"),
        ([[True, False]], {}, TypeError, r"token ids must be integers .* got torch.bool"),
        ([[3, 4]], {"device": "gpu"}, ValueError, "device must be one that torch can use here, got 'gpu'"),
        ([object()], {}, TypeError, "documents must be texts, lists of token ids or tensors, got object"),
        ([[3, 4]], {"max_tokens": 0}, ValueError, "max_tokens must be a whole number of at least 1, got 0"),
        ([[3, 4]], {"max_length": 1}, ValueError, "max_length must be a whole number of at least 2 .*, got 1"),
        (
            [[3, 4]],
            {"max_length": 4, "skip": 3},
            ValueError,
            "max_length must be a whole number of at least 5 .*, got 4",
        ),
        ([[3, 4]], {"skip": -1}, ValueError, "skip must be a whole number of at least 0, got -1"),
        ([[3, 4]], {"skip": 0.5}, ValueError, "skip must be a whole number of at least 0, got 0.5"),
        ([[3, 4]], {"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1, got 0"),
        ([[3, 4]], {"label_smoothing": (0.0,)}, ValueError, r"label_smoothing must be in \(0, 1\), got \(0.0,\)"),
        ([[3, 4]], {"label_smoothing": 1.0}, ValueError, r"label_smoothing must be in \(0, 1\), got 1.0"),
        (
            [[3, 4]],
            {"label_smoothing": ()},
            ValueError,
            r"label_smoothing must hold at least one number in \(0, 1\), got \(\)",
        ),
    ],
)
def test_what_cannot_be_audited_is_refused(documents, options, error, message):
    with pytest.raises(error, match=message):
        audit_model(make(), documents, **options)


def test_text_is_cut_at_paragraphs_and_lines_of_json_are_documents(tmp_path):
    assert list(cut("a" * 25, 10)) == ["a" * 10, "a" * 10, "a" * 5]
    assert list(cut("one\n\n\ntwo", 6)) == ["one", "two"]
    (tmp_path / "two.jsonl").write_text('{"text": "first"}\n\n{"text": "second"}\n')
    assert read_text(tmp_path / "two.jsonl") == ["first", "second"]
    (tmp_path / "bad.jsonl").write_text('{"words": "first"}\n')
    with pytest.raises(ValueError, match=r"every line of .*bad.jsonl must be a JSON object with text, line 1 is not"):
        read_text(tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"text": "first"}\n{"text": null}\n')
    with pytest.raises(ValueError, match=r"text must be a string in every line of .*bad.jsonl, got None in line 2"):
        read_text(tmp_path / "bad.jsonl")
    (tmp_path / "one.jsonl").write_text('{"text": "first\u2028second"}\n', encoding="utf-8")
    assert read_text(tmp_path / "one.jsonl") == ["first\u2028second"]
    (tmp_path / "latin.txt").write_bytes("déjà".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt must be text in UTF-8, got something else"):
        read_text(tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="must hold text, got an empty file"):
        read_text(tmp_path / "empty.txt")


_LINES = '{"text": "first"}\n{"text": "sécond"}\n'
_BOTH = ["first", "sécond"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.Ndjson", "a.jsonlines", "a.json", "b.v2.JSON"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lines_of_json_by_any_name_and_mark(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(_LINES.encode(encoding))
    assert read_text(tmp_path / name) == _BOTH
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(_LINES.replace("\n", "\r\n").encode(encoding)))
    assert read_text(str(tmp_path / f"{name}.gz")) == _BOTH


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"text": "first"}', ["first"]),
        ('[\n {"text": "first", "id": 1},\n {"text": "sécond"}\n]', _BOTH),
        ('["first", "sécond"]', _BOTH),
        ('"first"', ["first"]),
    ],
)
def test_json_as_a_whole(tmp_path, content, expected):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    assert read_text(tmp_path / "a.json") == expected


@pytest.mark.parametrize("name", ["data", "data.txt", "data.v2", "data.gz"])
@pytest.mark.parametrize(
    "content",
    [_LINES, "\n" + _LINES, '[\n {"text": "first"},\n {"text": "sécond"}\n]', '["first", "sécond"]'],
    ids=["lines", "blank", "list", "texts"],
)
def test_json_by_another_name_is_known_by_its_content(tmp_path, name, content):
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_text(tmp_path / name) == _BOTH


@pytest.mark.parametrize(
    "content", ["[1]\nA note.", "{no json}", "[1, 2]", "{{ template }}\n{}", "[]", '"quoted"', "12"]
)
def test_what_only_begins_like_json_is_a_text(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    assert read_text(tmp_path / "a.txt") == [content]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
def test_a_byte_order_mark_is_no_text(tmp_path, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "a.txt").write_bytes((mark + "one\r\ntwo").encode(encoding))
    assert read_text(tmp_path / "a.txt") == ["one\ntwo"]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.json", b'{"data": ["first"]}', "must hold an object with text or a list of texts .*, item 1 is none"),
        ("a.json", b'[{"text": "first"}, {"text": 2}]', "item 2 is none"),
        ("a.json", b'{"text": ', "every line of .*a.json must be a JSON object with text, line 1 is not"),
        ("a.NDJSON", b"first", "every line of .*a.NDJSON must be a JSON object with text, line 1 is not"),
        ("a.txt.gz", b"first", "a.txt.gz must be packed by gzip, got something else"),
        (
            "a.txt.gz",
            gzip.compress(b"first" * 100, mtime=0)[:-9],
            "a.txt.gz must be packed by gzip, got something else or a part",
        ),
        (
            "data",
            b'{"words": "first"}\n{"words": "second"}',
            "every line of .*data must be a JSON object with text, line 1",
        ),
        ("data", b'{\n "words": ["first"]\n}', "data must hold an object with text or a list of texts"),
        ("a.csv", b"text\nfirst\n", "a.csv must be text or JSON, got a table"),
        ("a.PARQUET", b"PAR1", "a.PARQUET must be text or JSON, got a table"),
        ("a.json", b"[]", "must hold text, got an empty file"),
        ("a.txt", codecs.BOM_UTF8, "must hold text, got an empty file"),
    ],
)
def test_files_that_hold_no_text_are_refused(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=text):
        read_text(tmp_path / name)


def test_text_that_comes_with_python():
    own = python_text()
    assert len(own) > 150
    assert all(200 < len(text) <= 1600 for text in own)
    assert any("import " in text for text in own)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model") / "tiny"
    save_folder(place)
    (place / "README.md").write_text("---\nlicense: mit\n---\n")
    return place


def test_texts_are_read_after_a_mark_whose_own_prediction_does_not_count(folder):
    loaded = load_model(folder)
    texts = ["Some words.", "Others"]
    documents = [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    marked = [[loaded.tokenizer.bos_token_id, *ids] for ids in documents]
    nll = [plain(loaded.model, torch.tensor([ids]))["nll"] for ids in marked]

    def audited(documents, **options):
        return Lookup(audit_model(loaded.model, documents, tokenizer=loaded.tokenizer, **options).table)

    for found, skipped in (
        (audited(texts), 1), (audited(texts, skip=0), 0), (audited(texts, skip=3), 3),
        (audited(marked), 0), (audited(marked, skip=1), 1),
    ):  # fmt: skip
        close(found("prediction", "cross_entropy"), np.concatenate([x[skipped:] for x in nll]).mean())
        assert found("model", "left_out").value == 2 * skipped
        assert found("model", "tokens").value == sum(len(x) - skipped for x in nll)
    few = audited(texts, max_tokens=12)  # 10 of the first text, 2 of the second
    close(few("prediction", "cross_entropy"), np.concatenate([nll[0][1:], nll[1][1:3]]).mean())
    with pytest.raises(ValueError, match="documents must hold a token to predict, got none"):
        audited(["", "S"])
    with pytest.raises(ValueError, match="documents must hold a token to predict, got none"):
        audited(texts, max_length=2)
    assert audited(texts, max_length=3)("model", "tokens").value == 2


def test_the_defaults_of_the_command_are_those_of_the_function():
    options = _parser().parse_args(["MODEL", "--text", "FILE"])
    for name in ("label_smoothing", "max_tokens", "max_length", "skip", "batch_size"):
        default = inspect.signature(audit_model).parameters[name].default
        found = getattr(options, name)
        assert (tuple(found) if isinstance(found, list) else found) == default


@pytest.mark.parametrize("name", ["audit.png", "audit.json", "audit"])
def test_the_command_does_not_overwrite_its_own_table(folder, tmp_path, capsys, name):
    assert main([str(folder), "--text", "python", "--out", str(tmp_path / name)]) == 2
    assert "--out must end in .csv, got" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_asks_for_the_device_first(capsys):
    assert main(["nowhere", "--text", "python", "--device", "gpu"]) == 2
    assert "error: device must be one that torch can use here, got 'gpu'" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_the_command_says_that_there_is_no_cuda(folder, capsys):
    assert main([str(folder), "--text", "python", "--device", "cuda"]) == 2
    assert "error: device must be one that torch can use here, got 'cuda'" in capsys.readouterr().err


def _without_a_weight(place):
    change_weights(place, lambda weights: weights.pop("model.layers.0.self_attn.q_proj.weight"))


def _of_another_shape(place):
    change_weights(place, lambda weights: weights.update({"model.norm.weight": torch.ones(3)}))


def _corrupt(place):
    (place / "model.safetensors").write_bytes(b"no weights at all")


def _of_no_shape(place):
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "num_attention_heads": 5}))


def _with_an_adapter(place):
    (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/base"}))


def change_weights(place, change):
    safetensors = pytest.importorskip("safetensors.torch")
    weights = safetensors.load_file(place / "model.safetensors")
    change(weights)
    safetensors.save_file(weights, place / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_a_weight, "with no model.layers.0.self_attn.q_proj.weight."),
        (_of_another_shape, "with another shape of model.norm.weight."),
        (_corrupt, "model must be one that transformers can load"),
        (_of_no_shape, "model must be one that transformers can load"),
        (_with_an_adapter, "with an adapter (adapter_config.json). Merge it into its base first"),
    ],
)
def test_no_audit_of_weights_that_are_not_the_models(folder, tmp_path, capsys, spoil, message):
    place = tmp_path / "spoilt"
    shutil.copytree(folder, place)
    spoil(place)
    assert main([str(place), "--text", "python", "--out", str(tmp_path / "audit.csv")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "audit.csv").exists()


def adapted(config_type="LoraConfig", **options):
    peft = pytest.importorskip("peft")
    config = getattr(peft, config_type)(task_type="CAUSAL_LM", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the libraries about each other
        wrapped = peft.get_peft_model(make(), config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)  # an adapter that does something
    return wrapped.eval()


def test_an_adapter_counts_as_if_it_were_merged():
    wrapped = adapted(r=4, target_modules=["q_proj", "v_proj"])
    tokens = tokens_of(make())
    found = audit_model(wrapped, tokens).table
    want = plain(copy.deepcopy(wrapped).merge_and_unload(), tokens)
    close(Lookup(found)("prediction", "cross_entropy"), want["nll"].mean())
    assert abs(want["nll"].mean() - plain(make(), tokens)["nll"].mean()) > 0.01
    assert "LlamaForCausalLM" in found.loc[found["name"] == "architecture", "text"].iloc[0]


def test_adapters_that_the_audit_would_not_see_are_refused():
    tokens = torch.tensor([[3, 4, 5]])
    around_the_head = adapted(r=4, target_modules=["lm_head"])
    for model in (around_the_head, around_the_head.get_base_model()):
        with pytest.raises(TypeError, match=r"is a peft\..*Linear, no torch.nn.Linear. Train the head through"):
            audit_model(model, tokens)
    with pytest.raises(TypeError, match="model must not be a PEFT model of prompt learning"):
        audit_model(adapted("PromptTuningConfig", num_virtual_tokens=2), tokens)


def cooler():
    """A Llama that divides its logits, which no rule of Llama's says."""

    class Cooler(pytest.importorskip("transformers").LlamaForCausalLM):
        def forward(self, *args, labels=None, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits / 4
            out.loss = None if labels is None else self.loss_function(out.logits, labels, V)
            return out

    made = Cooler(make().config)
    made.load_state_dict(make().state_dict())
    return made


def hooked():
    model = make()
    model.lm_head.register_forward_hook(lambda module, x, y: y / 4)
    return model


def offloaded():
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(make(tie_word_embeddings=False), execution_device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("made", "error", "text"),
    [
        (hooked, TypeError, "got one that has hooks, which would not run"),
        (offloaded, TypeError, "got one that is offloaded by accelerate"),
        (
            cooler,
            ValueError,
            "model's own loss must be the one of a head, scale and cap of 'llama', got .* from Cooler",
        ),
    ],
    ids=["hooked", "offloaded", "cooler"],
)
def test_a_model_whose_logits_are_not_those_of_its_head_is_refused(made, error, text):
    with pytest.raises(error, match=text):
        audit_model(made(), torch.tensor([[3, 4, 5]]))


def test_a_scale_meets_a_bias_as_in_the_model():
    model = make("cohere")
    model.lm_head = torch.nn.Linear(model.config.hidden_size, V, bias=True)
    torch.nn.init.normal_(model.lm_head.bias, std=3.0)
    tokens = tokens_of(model)
    get = Lookup(audit_model(model, tokens).table)
    want = plain(model, tokens)
    close(get("prediction", "cross_entropy"), want["nll"].mean())
    close(get("prediction", "confidence"), want["confidence"].mean())


def test_the_command_writes_table_figure_and_verdict(folder, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("Some ordinary words.\n\n" * 200)
    out = tmp_path / "made" / "audit.csv"
    assert main([str(folder), "--text", str(tmp_path / "notes.txt"), "--out", str(out), "--max-tokens", "300", "--text-licence", "CC0-1.0"]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    table = pd.read_csv(out)
    assert verdict(table).splitlines()[0].split(":")[0] in printed
    assert printed.splitlines()[-3:] == table.loc[table["part"] == "recommendation", "text"].tolist()
    said = table.loc[table["part"] == "source"].set_index("name")["text"]
    assert said["model"] == "tiny"
    assert said["licence"] == "mit"
    assert said["revision"].startswith("sha256:")
    assert said["text"] == "notes.txt"
    assert said["text_licence"] == "CC0-1.0"
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "--max-tokens 300" in out.with_suffix(".json").read_text()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere", "model must be a folder, a GGUF file or a hub's owner/name, got nowhere"),
        ("no/where.gguf", "no such file"),
        ("FOLDER/weights.bin", "model must be a folder of safetensors or a GGUF file"),
        ("FOLDER", "model.safetensors"),
    ],
)
def test_no_pickle_and_no_unknown_place_is_read(folder, tmp_path, capsys, model, message):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    torch.save(load_model(folder).model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "weights.bin").write_bytes(b"x")
    assert main([model.replace("FOLDER", str(tmp_path)), "--text", "python"]) == 2
    assert message in capsys.readouterr().err


def test_a_hub_is_asked_for_safetensors_of_one_commit_without_code(folder, tmp_path, monkeypatch):
    transformers, hub = pytest.importorskip("transformers"), pytest.importorskip("huggingface_hub")
    local, asked, files, adapters, commit = load_model(folder), [], [], [], "5e" * 20

    def answer(result):
        return lambda name, **options: asked.append((name, options, os.environ.get(CONVERSION))) or result

    nothing = {"missing_keys": set(), "mismatched_keys": set()}
    absent = hub.errors.LocalEntryNotFoundError("no such file")

    def download(name, file, *, revision):
        files.append((name, file, revision))
        if file == "adapter_config.json" and not adapters:
            raise absent
        return str(tmp_path / "snapshots" / commit / file)

    (tmp_path / "snapshots" / commit).mkdir(parents=True)
    (tmp_path / "snapshots" / commit / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", answer(local.tokenizer))
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", answer((local.model, nothing)))
    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.delenv(CONVERSION, raising=False)
    loaded = load_model("someone/model", revision="v2")
    assert (loaded.name, loaded.revision, loaded.licence) == ("someone/model", commit, "mit")
    assert files == [
        ("someone/model", "config.json", "v2"),
        ("someone/model", "adapter_config.json", commit),
        ("someone/model", "README.md", commit),
    ]
    assert len(asked) == 2
    for name, options, no_conversion in asked:
        assert name == "someone/model"
        assert not options["trust_remote_code"]
        assert not options["local_files_only"]
        assert options["revision"] == commit  # a tag may move between two files
        assert no_conversion == "1"
    assert asked[1][1]["use_safetensors"]
    assert CONVERSION not in os.environ
    monkeypatch.setenv(CONVERSION, "0")
    load_model("someone/model")
    assert os.environ[CONVERSION] == "0"
    adapters.append("one")
    with pytest.raises(OSError, match="got someone/model with an adapter"):
        load_model("someone/model")
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "config.json"))
    with pytest.raises(OSError, match="the hub must name a commit for someone/model at revision main, got"):
        load_model("someone/model")


def test_a_hub_model_kept_from_the_last_time_is_read_at_its_commit(folder, tmp_path):
    """The hub library's own folder, without a network."""
    pytest.importorskip("transformers")
    kept, commit = tmp_path / "hub" / "models--someone--tiny", "0123456789" * 4
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    shutil.copytree(folder, kept / "snapshots" / commit)
    script = """
from analysis.language_models import load_model
loaded = load_model("someone/tiny")
print(loaded.revision, loaded.licence, sum(p.numel() for p in loaded.model.parameters()))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    count = sum(p.numel() for p in load_model(folder).model.parameters())
    assert done.stdout.split() == [commit, "mit", str(count)], done.stderr


def test_a_revision_is_for_hubs(folder):
    with pytest.raises(ValueError, match="revision must be None for a local model"):
        load_model(folder, revision="main")


def test_import_help_and_first_use_without_transformers(tmp_path):
    script = """
import sys
sys.modules["transformers"] = None
import analysis.audit, kernel.huggingface
from analysis.audit.__main__ import main
try:
    main(["--help"])
except SystemExit as stop:
    print("help", stop.code)
print("use", main([sys.argv[1], "--text", "python"]))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "help 0" in done.stdout
    assert "use 2" in done.stdout
    assert "examples:" in done.stdout
    assert "a model needs transformers: pip install '.[real]' in a clone" in done.stderr


def test_smollm2_in_its_package():
    """The real model, where the extra is installed."""
    pytest.importorskip("gguf")
    try:
        path = packaged_smollm2()
    except ImportError as missing:
        pytest.skip(str(missing))
    loaded = load_model(path)
    assert loaded.quantisation == "Q4_1, Q8_0, dequantised"
    assert loaded.licence == "apache-2.0"
    ids = loaded.tokenizer(python_text()[0])["input_ids"][:48]
    get = Lookup(audit_model(loaded.model, [ids, ids[::-1]]).table)
    want = plain(loaded.model, torch.tensor([ids, ids[::-1]]))
    h, ce, u = (want[name].mean() for name in ("entropy", "nll", "uniform"))
    close(get("prediction", "cross_entropy"), ce)
    close(get("prediction", "entropy"), h)
    close(get("smoothing", "activity", "0.1"), (h - ce) / (0.1 * (u - ce)))
    close(get("gap", "largest"), want["gap"].max())
    close(get("calibration", "ece"), calibration_error(want["confidence"], want["correct"]))
