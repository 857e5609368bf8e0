"""Documents, options and models that cannot be audited, and adapters that can."""

import copy
import warnings
from collections import UserDict

import pytest
import torch
from full_logits import close, plain, tokens_of
from tiny_models import V, make

from analysis.audit import audit_model
from analysis.audit._verdict import Lookup


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
