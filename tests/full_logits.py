"""Everything that an audit says, from full logits of the whole model in float64."""

import copy
import math

import pytest
import torch
from tiny_models import V


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
