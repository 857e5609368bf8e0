"""Every known architecture against its own loss, from a tiny random model: values and all gradients."""

import pytest
import torch
from tiny_architectures import TINY, V, make_tiny

from kernel.huggingface import fuse_loss
from kernel.huggingface._known import KNOWN


def batch(rows=3, length=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, V, (rows, length), generator=generator)
    labels = tokens.clone()
    labels[0, :5] = -100
    labels[-1, -3:] = -100
    return tokens, labels


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
    assert sorted(TINY) == sorted(KNOWN)


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
