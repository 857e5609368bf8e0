"""The audit on a CUDA device against the same audit on the CPU."""

import copy
import re

import pytest
import torch
from tiny_models import make

from analysis.audit import audit_model

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

KEYS = ["part", "name", "group"]
# Near ties of two tokens may turn, and with them a hit; everything else is smooth in the logits.
COUNTED = ["calibration", "reliability", "frequency", "entropy", "context"]


def smollm2():
    """Random weights with the head of SmolLM2-135M, under two of its thirty layers."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=2, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def words(table):
    """Texts without the numbers that they cite, whose last digit may turn."""
    return [(key, NUMBER.sub("#", text)) for key, text in table["text"].fillna("").items()]


def numbers(table):
    return [float(number) for text in table["text"].fillna("") for number in NUMBER.findall(text)]


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi", "cohere", "SmolLM2's head"])
def test_numbers_are_those_of_the_cpu(name):
    model = smollm2() if name.startswith("SmolLM2") else make(name)
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(3, model.config.vocab_size, (n,), generator=generator) for n in (40, 7, 23, 2, 33)]
    with torch.no_grad():  # every third token is what the model would say, so that it is right now and then
        for document in documents:
            for place in range(2, len(document), 3):
                document[place] = model(document[None, :place]).logits[0, -1].argmax()
    options = {"label_smoothing": (0.1, 0.2), "batch_size": 4}
    want = audit_model(copy.deepcopy(model), documents, **options).table.set_index(KEYS)
    found = audit_model(model, documents, device="cuda", **options).table.set_index(KEYS)
    assert found.index.equals(want.index)
    assert words(found) == words(want)
    assert numbers(found) == pytest.approx(numbers(want), rel=0.02, abs=0.02)  # as below, where tokens are counted
    assert want.loc[("prediction", "accuracy", ""), "value"] > 0.1
    smooth = ~want.index.get_level_values("part").isin(COUNTED)
    for column in ("value", "low", "high"):
        got, expected = (torch.tensor(table.loc[smooth, column].tolist()) for table in (found, want))
        torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3, equal_nan=True)
    for row in (("calibration", "ece", ""), ("prediction", "accuracy", ""), ("calibration", "rms_sorted", "")):
        assert found.loc[row, "value"] == pytest.approx(want.loc[row, "value"], abs=0.02)
    assert model.device.type == "cuda"
