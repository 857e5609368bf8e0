"""The few tokens on which a model's own loss is compared with the fused one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["COUNT", "plain_tokens", "special_tokens"]

_ROWS, _LENGTH, _PADDED = 2, 9, 4
COUNT = _ROWS * _LENGTH
_IDS = ("_id", "_ids", "_index")  # of tokens for images and sounds, which ask for one
_MARKS = tuple(f"{name}_token_id" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"))


def plain_tokens(model: Any) -> dict[str, Tensor]:
    """Tokens far apart in the vocabulary, none of them special to the model, as inputs with labels."""
    tokens = _tensor(model, _spread(model))
    labels = tokens.clone()
    labels[0, :2] = -100
    return {"input_ids": tokens, "labels": labels}


def special_tokens(model: Any) -> dict[str, Tensor]:
    """The tokens that mark text, among others, and a row padded on the right; labels stay, at the padding too."""
    tokens = _spread(model)
    size = model.config.get_text_config().vocab_size
    named = _named(model)
    marks = {name: ids for name, ids in named.items() if name in _MARKS}
    other = {x for name, ids in named.items() if name not in _MARKS and name.endswith(_IDS) for x in ids}
    usable = sorted({x for ids in marks.values() for x in ids if 0 <= x < size} - other)
    tokens[1:_LENGTH:2] = [usable[i % len(usable)] if usable else x for i, x in enumerate(tokens[1:_LENGTH:2])]
    padding = [x for x in marks.get("pad_token_id", []) if x in usable]
    tokens[-_PADDED:] = (padding or usable or tokens)[:1] * _PADDED
    made = _tensor(model, tokens)
    mask = torch.ones_like(made)
    mask[-1, -_PADDED:] = 0
    return {"input_ids": made, "labels": made.clone(), "attention_mask": mask}


def _spread(model: Any) -> list[int]:
    special = {x for ids in _named(model).values() for x in ids}
    size = model.config.get_text_config().vocab_size
    usable = [x for x in (7919 * i % size for i in range(1, 8 * _ROWS * _LENGTH)) if x not in special] or [0]
    return [usable[i % len(usable)] for i in range(_ROWS * _LENGTH)]


def _named(model: Any) -> dict[str, list[int]]:
    """Tokens that the configs name, by the field."""
    found: dict[str, list[int]] = {}
    for config in (model.config, model.config.get_text_config()):
        for name, value in config.to_dict().items():
            if "token" in name or name.endswith("_id"):
                values = value if isinstance(value, (list, tuple)) else [value]
                found.setdefault(name, []).extend(x for x in values if isinstance(x, int))
    return found


def _tensor(model: Any, tokens: list[int]) -> Tensor:
    weight = model.get_input_embeddings().weight
    device = "cpu" if weight.device.type == "meta" else weight.device  # accelerate moves inputs of offloaded models
    return torch.tensor(tokens, device=device).view(_ROWS, _LENGTH)
