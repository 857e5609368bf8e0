"""The keywords of a call with labels: honoured, handed to the body, or refused; none disappears."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ._auxiliary import asked_for
from ._rules import Architecture, nothing_known

__all__ = ["OF_THE_HEAD", "check_keywords"]

# Arguments of a causal model's forward that concern the head and the loss, not its body.
OF_THE_HEAD = (
    "labels", "shift_labels", "num_items_in_batch", "ignore_index", "logits_to_keep", "return_dict", "skip_logits",
)  # fmt: skip
# What loss functions take besides. transformers' own swallows them; a fused loss that did so as well would be silent.
_OF_LOSSES = (
    *inspect.signature(nn.functional.cross_entropy).parameters,
    "softcap", "temperature", "z_loss", "loss_kwargs", "fused_lm_head", "num_logits_to_keep",
)  # fmt: skip


def check_keywords(model: Any, architecture: Architecture, kwargs: dict[str, Any]) -> None:
    """Refuse what a fused loss would not do.

    Raises:
        TypeError: If there is a keyword of a loss function that the fused loss does not take.
        ValueError: If logits are selected, or auxiliary losses asked for that the architecture's rule does not know.
    """
    keep = kwargs.get("logits_to_keep")
    if keep is not None and (isinstance(keep, Tensor) or keep):
        raise ValueError("logits_to_keep must be 0 when labels are given: every label has a loss.")
    own = model.__dict__.get("_loss_function")
    of_losses = _OF_LOSSES if own is None else (*_OF_LOSSES, *inspect.signature(own).parameters)
    for name in kwargs:
        if name in of_losses and name not in OF_THE_HEAD and kwargs[name] is not None:
            raise TypeError(
                f"forward() of a fused model got a keyword that its loss does not take: {name!r}. Options of the loss "
                "are arguments of fuse_loss; for another loss, remove() the fused one."
            )
    if architecture.extras is nothing_known and asked_for(model, kwargs):
        raise ValueError(
            f"output_router_logits must be False: the rule of {model.config.model_type!r} has no auxiliary loss of "
            "experts, which the model may add. If it is that of Mixtral, register "
            "Architecture(body=balanced_body, extras=load_balance) of kernel.huggingface."
        )
