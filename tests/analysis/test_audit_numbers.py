"""The audit of a head: every number against a plain float64 computation from full logits of the whole model."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from full_logits import close, plain, tokens_of
from tiny_models import V, make

from analysis.audit import audit_model
from analysis.audit._verdict import Lookup
from analysis.calibration import calibration_error
from analysis.language_models import load_model, packaged_smollm2
from analysis.language_models.documents import python_text

ARCHITECTURES = ("cohere", "gemma2", "gemma3_text", "gpt2", "granite", "llama", "mistral", "phi", "qwen2", "qwen3")


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


def test_a_scale_meets_a_bias_as_in_the_model():
    model = make("cohere")
    model.lm_head = torch.nn.Linear(model.config.hidden_size, V, bias=True)
    torch.nn.init.normal_(model.lm_head.bias, std=3.0)
    tokens = tokens_of(model)
    get = Lookup(audit_model(model, tokens).table)
    want = plain(model, tokens)
    close(get("prediction", "cross_entropy"), want["nll"].mean())
    close(get("prediction", "confidence"), want["confidence"].mean())


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
