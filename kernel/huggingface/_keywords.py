"""The keywords of a call with labels: honoured, handed to the body, or refused; none disappears."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import Tensor, nn

from ._auxiliary import asked_for
from ._installed import find, of_a_library
from ._rules import Architecture, nothing_known

__all__ = ["OF_THE_HEAD", "check_keywords", "known_keywords"]

# Arguments of a causal model's forward that concern the head and the loss, not its body.
OF_THE_HEAD = (
    "labels", "shift_labels", "num_items_in_batch", "ignore_index", "logits_to_keep", "return_dict", "skip_logits",
)  # fmt: skip
# What loss functions take besides. transformers' own swallows them; a fused loss that did so as well would be silent.
_OF_LOSSES = (
    *inspect.signature(nn.functional.cross_entropy).parameters,
    "softcap", "temperature", "z_loss", "loss_kwargs", "fused_lm_head", "num_logits_to_keep",
)  # fmt: skip
# What any model of transformers may be given, though its forward need not name it.
_OF_ALL = (
    "input_ids", "inputs_embeds", "attention_mask", "position_ids", "cache_position", "past_key_values", "use_cache",
    "output_attentions", "output_hidden_states", "output_router_logits", "cu_seq_lens_q", "cu_seq_lens_k",
    "max_length_q", "max_length_k", "is_causal", "seq_idx",
)  # fmt: skip


def known_keywords(model: Any, architecture: Architecture) -> frozenset[str] | None:
    """What a call may be given where a forward or loss of somebody's own may read more, which would then vanish.

    None where the model's code is that of transformers, which hands to the body what its forward does not name, and
    where the architecture's rule has a function of its own to read it.
    """
    if not all(f.__module__.startswith(__package__ or "") for f in (architecture.body, architecture.extras)):
        return None
    classes = [vars(cls)["forward"] for cls in type(model).__mro__ if "forward" in vars(cls) and cls is not nn.Module]
    placed = find(model)
    before = model.__dict__.get("forward") if placed is None else placed.before
    functions = [*([] if before is None else [before]), *classes]
    theirs = [f for f in functions if of_a_library(inspect.unwrap(f))]
    loss = getattr(model, "loss_function", None)  # of the class, or registered by its name (LOSS_MAPPING)
    theirs_too = loss is None or (of_a_library(loss) and not isinstance(loss, functools.partial))
    if functions[:1] == theirs[:1] and theirs_too:
        return None
    bodies = [type(body).forward for body in (model.base_model, getattr(model, "model", None)) if body is not None]
    named = (name for f in (*theirs, *bodies) for name in inspect.signature(f).parameters)
    return frozenset((*named, *OF_THE_HEAD, *_OF_ALL))


def check_keywords(
    model: Any, architecture: Architecture, kwargs: dict[str, Any], known: frozenset[str] | None
) -> None:
    """Refuse what a fused loss would not do.

    Args:
        model: The causal language model.
        architecture: Its architecture.
        kwargs: What the call was given.
        known: Its :func:`known_keywords`, which torch.compile could not trace.

    Raises:
        TypeError: If there is a keyword of a loss function that the fused loss does not take.
        ValueError: If logits are selected, or auxiliary losses asked for that the architecture's rule does not know.
    """
    keep = kwargs.get("logits_to_keep")
    if keep is not None and (isinstance(keep, Tensor) or keep):
        raise ValueError("logits_to_keep must be 0 when labels are given: every label has a loss.")
    for name in kwargs:
        unread = (name in _OF_LOSSES and name not in OF_THE_HEAD) or (known is not None and name not in known)
        if unread and kwargs[name] is not None:
            raise TypeError(
                f"forward() of a fused model got a keyword that its loss does not take: {name!r}. Options of the loss "
                "are arguments of fuse_loss; for another loss, remove() the fused one, or register an Architecture "
                "whose body or extras reads it."
            )
    if architecture.extras is nothing_known and asked_for(model, kwargs):
        raise ValueError(
            f"output_router_logits must be False: the rule of {model.config.model_type!r} has no auxiliary loss of "
            "experts, which the model may add. If it is that of Mixtral, register "
            "Architecture(body=balanced_body, extras=load_balance) of kernel.huggingface."
        )
