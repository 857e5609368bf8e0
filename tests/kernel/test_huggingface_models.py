"""Every known architecture against its own loss, from a tiny random model: values and all gradients."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_architectures import TINY, V, make_tiny, tiny_config
from tiny_models import batch
from tiny_multimodal import TINY as MULTIMODAL
from tiny_multimodal import make_multimodal

from analysis.audit import audit_model
from analysis.audit._verdict import Lookup
from kernel.huggingface import (
    Architecture,
    balanced_body,
    fuse_loss,
    load_balance,
    register_architecture,
)
from kernel.huggingface import fused as fused_loss_of
from kernel.huggingface._known import KNOWN, REFUSED
from kernel.huggingface._rules import nothing_added


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def step(model, **inputs):
    """Outputs and gradients, with the same random numbers each time."""
    torch.manual_seed(0)
    outputs = model(**inputs)
    outputs.loss.backward()
    return outputs, gradients(model)


def assert_same_gradients(got, expected):
    assert set(got) == set(expected)
    scale = max(float(value.norm()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-5 * max(1, scale), msg=name)


def test_every_known_architecture_is_tested():
    assert sorted({**TINY, **MULTIMODAL}) == sorted(KNOWN)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"[{len(KNOWN)} architectures]" in " ".join(readme.split())


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_without_smoothing_it_is_the_models_own_loss(model_type):
    model, (tokens, labels) = make_tiny(model_type), batch()
    inputs = {"input_ids": tokens, "labels": labels}
    own, expected = step(model, **inputs)
    with fuse_loss(model):
        fused, got = step(model, **inputs)
    torch.testing.assert_close(fused.loss, own.loss, rtol=1e-5, atol=1e-5)
    assert_same_gradients(got, expected)
    assert {*own} - {"logits"} <= {*fused}
    assert type(fused) is type(own) or model_type == "gpt_neo"  # whose forward is annotated with another class


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_with_smoothing_it_is_the_loss_of_the_models_own_logits(model_type):
    model, (tokens, labels) = make_tiny(model_type), batch()
    torch.manual_seed(0)
    logits = model(input_ids=tokens).logits[:, :-1].double()
    expected = F.cross_entropy(logits.reshape(-1, V), labels[:, 1:].reshape(-1), label_smoothing=0.2)
    expected.backward()
    reference = gradients(model)
    fuse_loss(model, label_smoothing=0.2, verify=False)
    fused, got = step(model, input_ids=tokens, labels=labels)
    torch.testing.assert_close(fused.loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(got, reference)


@pytest.mark.parametrize("pictured", [False, True])
@pytest.mark.parametrize("model_type", sorted(MULTIMODAL))
def test_a_multimodal_model_has_its_own_loss_of_text_and_of_images(model_type, pictured):
    model, *inputs = make_multimodal(model_type)
    own, expected = step(model, **inputs[pictured])
    with fuse_loss(model):
        fused, got = step(model, **inputs[pictured])
    torch.testing.assert_close(fused.loss, own.loss, rtol=1e-5, atol=1e-5)
    assert_same_gradients(got, expected)
    of_images = [name for name in got if "vision" in name or "visual" in name]
    assert pictured == any(got[name].any() for name in of_images)  # the image matters, where there is one
    assert {*own} - {"logits"} <= {*fused}
    assert type(fused) is type(own)


@pytest.mark.parametrize("model_type", ["aya_vision", "gemma3", "qwen2_vl"])
def test_a_multimodal_model_with_smoothing_and_images(model_type):
    model, _, inputs = make_multimodal(model_type)
    labels = inputs["labels"][:, 1:].reshape(-1)
    logits = model(**{**inputs, "labels": None}).logits[:, :-1].double()
    expected = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels, label_smoothing=0.2)
    expected.backward()
    reference = gradients(model)
    fuse_loss(model, label_smoothing=0.2)
    fused, got = step(model, **inputs)
    torch.testing.assert_close(fused.loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(got, reference)


@pytest.mark.parametrize("asked", ["call", "config"])
@pytest.mark.parametrize("model_type", ["glm4v_moe", "qwen3_5_moe", "qwen3_vl_moe"])
def test_a_multimodal_mixture_of_experts_has_its_auxiliary_loss(model_type, asked):
    model, _, inputs = make_multimodal(model_type, output_router_logits=asked == "config")
    inputs |= {"output_router_logits": True} if asked == "call" else {}
    own, expected = step(model, **inputs)
    fuse_loss(model)
    fused, got = step(model, **inputs)
    torch.testing.assert_close(fused.loss, own.loss, rtol=1e-5, atol=1e-5)
    assert_same_gradients(got, expected)
    assert fused.loss - model(**{**inputs, "output_router_logits": False}).loss > 0.1


BALANCED = sorted(name for name, known in KNOWN.items() if known.extras is not nothing_added and name in TINY)


def test_mixtures_of_experts_that_balance_their_load():
    assert {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss", "phimoe"} <= {*BALANCED}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("model_type", BALANCED)
def test_auxiliary_losses_are_added_as_the_model_adds_them(model_type, masked):
    model, (tokens, labels) = make_tiny(model_type), batch()
    mask = torch.ones_like(tokens)
    mask[1, 7:] = 0
    inputs = {"input_ids": tokens, "labels": labels.masked_fill(mask == 0, -100), "output_router_logits": True}
    inputs |= {"attention_mask": mask} if masked else {}
    own, expected = step(model, **inputs)
    fuse_loss(model)
    fused, got = step(model, **inputs)
    torch.testing.assert_close(fused.loss, own.loss, rtol=1e-5, atol=1e-5)
    assert_same_gradients(got, expected)
    torch.testing.assert_close(fused.aux_loss, own.aux_loss)
    assert own.aux_loss > 0.5  # it is there: with a coefficient of a half, a quarter of a nat and more
    assert len(fused.router_logits) == len(own.router_logits)
    assert fused.loss - model(**{**inputs, "output_router_logits": False}).loss > 0.1


def test_the_config_may_ask_for_the_auxiliary_loss_too_and_parts_add_up():
    model, (tokens, labels) = make_tiny("qwen3_moe", output_router_logits=True), batch()
    own, expected = step(model, input_ids=tokens, labels=labels, num_items_in_batch=20)
    fuse_loss(model)
    fused, got = step(model, input_ids=tokens, labels=labels, num_items_in_batch=20)
    torch.testing.assert_close(fused.loss, own.loss, rtol=1e-5, atol=1e-5)
    assert_same_gradients(got, expected)


def test_a_subclass_of_a_mixture_of_experts_has_its_auxiliary_loss():
    model, (tokens, labels) = make_tiny("qwen3_moe"), batch()

    class Mine(type(model)):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model.__class__ = Mine
    inputs = {"input_ids": tokens, "labels": labels, "output_router_logits": True}
    own, _ = step(model, **inputs)
    fuse_loss(model)
    fused, _ = step(model, **inputs)
    torch.testing.assert_close(fused.loss, own.loss, rtol=1e-5, atol=1e-5)
    assert type(fused) is type(own)


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize("where", ["call", "config"])
def test_an_auxiliary_loss_that_a_registered_rule_does_not_know_is_refused(where):
    register_architecture("qwen3_moe")
    model, (tokens, labels) = make_tiny("qwen3_moe"), batch()
    fuse_loss(model)
    model(input_ids=tokens, labels=labels)
    if where == "config":
        model.config.output_router_logits = True
    with pytest.raises(
        ValueError, match="output_router_logits must be False: the rule of 'qwen3_moe' has no auxiliary"
    ):
        model(input_ids=tokens, labels=labels, **({"output_router_logits": True} if where == "call" else {}))


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize(
    ("model_type", "field"),
    [
        ("bamba", "z_loss_coefficient"),
        ("cohere", "logit_scale"),
        ("falcon_h1", "lm_head_multiplier"),
        ("gemma2", "final_logit_softcapping"),
        ("granite", "logits_scaling"),
        ("hyperclovax", "logits_scaling"),
        ("recurrent_gemma", "logits_soft_cap"),
        ("xlstm", "output_logit_soft_cap"),
    ],
)
def test_a_field_that_scales_or_caps_logits_and_is_not_in_the_rule_refuses(model_type, field):
    register_architecture(model_type)
    model = make_tiny(model_type)
    setattr(model.config, field, 3.0)
    text = rf"config.{field} must be unset, got 3.0: the rule of '{model_type}' does not read it"
    for verify in (True, False):
        with pytest.raises(ValueError, match=text):
            fuse_loss(model, verify=verify)


def test_what_scales_something_else_than_logits_is_no_matter():
    model = make_tiny("gemma2", attn_logit_softcapping=5.0)
    model.config.logit_scale_init_value = 2.6
    fuse_loss(model)


SCALED = ["cohere", "granite", "hyperclovax", "falcon_h1", "gemma2", "minicpm3", "inkling_text", "phi"]


@pytest.mark.parametrize("model_type", SCALED)
def test_a_biased_head_is_scaled_as_the_model_scales_it(model_type):
    model, (tokens, labels) = make_tiny(model_type), batch()
    model.lm_head.bias = torch.nn.Parameter(torch.randn(V))
    inputs = {"input_ids": tokens, "labels": labels}
    own, expected = step(model, **inputs)
    fuse_loss(model)
    fused, got = step(model, **inputs)
    torch.testing.assert_close(fused.loss, own.loss, rtol=1e-5, atol=1e-5)
    assert_same_gradients(got, expected)


CHANGED = [
    ("cohere", "logit_scale", 1.5),
    ("gemma2", "final_logit_softcapping", 1.5),
    ("granite", "logits_scaling", 1.5),
    ("minicpm3", "dim_model_base", 2),
]


@pytest.mark.parametrize(("model_type", "field", "value"), CHANGED)
def test_a_config_changed_after_fusing_counts_as_it_does_for_the_model(model_type, field, value):
    model, (tokens, labels) = make_tiny(model_type), batch()
    fuse_loss(model)
    setattr(model.config, field, value)
    fused = model(input_ids=tokens, labels=labels).loss
    fused_loss_of(model).remove()
    torch.testing.assert_close(fused, model(input_ids=tokens, labels=labels).loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("auto", "model_type", "text"),
    [
        ("AutoModelForSeq2SeqLM", "t5", "a decoder alone, got the encoder-decoder T5ForConditionalGeneration"),
        ("AutoModelForSeq2SeqLM", "bart", "a decoder alone, got the encoder-decoder BartForConditionalGeneration"),
        ("AutoModelForMaskedLM", "bert", "a causal language model, got the masked one BertForMaskedLM"),
        ("AutoModelForMaskedLM", "modernbert", "a causal language model, got the masked one ModernBertForMaskedLM"),
        ("AutoModelForCausalLM", "bart", "got BartForCausalLM .*does not shift the labels by one"),
        ("AutoModelForCausalLM", "bert", "got BertLMHeadModel .*its head is more than one linear layer"),
        ("AutoModelForCausalLM", "roberta", "got RobertaForCausalLM .*its head is more than one linear layer"),
        ("AutoModelForCausalLM", "xlnet", "got XLNetLMHeadModel .*does not shift the labels by one"),
    ],
)
def test_encoder_decoders_masked_models_and_others_are_refused_with_the_reason(auto, model_type, text):
    transformers = pytest.importorskip("transformers")
    encoder_decoder = {"encoder_layers": 1, "decoder_layers": 1, "d_kv": 8, "d_ff": 24, "num_layers": 1, "d_inner": 24}
    changes = encoder_decoder if model_type in ("t5", "bart", "xlnet") else {}
    model = getattr(transformers, auto).from_config(tiny_config(model_type, **changes))
    with pytest.raises(ValueError, match=f"model must be .*{text}.* Train it with its own loss"):
        fuse_loss(model)


def test_no_refused_architecture_is_known():
    assert not {*REFUSED} & {*KNOWN}


@pytest.mark.usefixtures("rules")
def test_an_architecture_with_load_balancing_can_be_registered():
    model, (tokens, labels) = make_tiny("qwen3_moe"), batch()
    model.config.model_type = "mine"
    register_architecture("mine", Architecture(body=balanced_body, extras=load_balance))
    inputs = {"input_ids": tokens, "labels": labels, "output_router_logits": True}
    own, expected = step(model, **inputs)
    fuse_loss(model)
    fused, got = step(model, **inputs)
    torch.testing.assert_close(fused.loss, own.loss, rtol=1e-5, atol=1e-5)
    assert_same_gradients(got, expected)


@pytest.mark.usefixtures("rules")
def test_load_balancing_that_the_model_does_not_have_is_refused():
    model, (tokens, labels) = make_tiny("afmoe"), batch()
    register_architecture("afmoe", Architecture(body=balanced_body, extras=load_balance))
    fuse_loss(model)
    with pytest.raises(ValueError, match="output_router_logits must be False: AfmoeForCausalLM has no load_balancing"):
        model(input_ids=tokens, labels=labels, output_router_logits=True)


@pytest.mark.parametrize("model_type", ["minicpm3", "modernbert-decoder", "cohere"])
def test_the_audit_reads_what_the_head_reads(model_type):
    model = make_tiny(model_type)
    if model_type == "cohere":
        model.lm_head.bias = torch.nn.Parameter(torch.randn(V))
    tokens = batch()[0]
    with torch.no_grad():
        probabilities = model(input_ids=tokens).logits[:, :-1].double().softmax(-1)
    found = Lookup(audit_model(model, tokens).table)("prediction", "confidence")
    assert found.value == pytest.approx(float(probabilities.amax(-1).mean()), rel=1e-5)
