"""Fusing a model: options checked, head read, own and fused loss compared, then the loss put into the forward."""

from __future__ import annotations

import warnings
from typing import Any

from ..api import check_choices
from ..gradient_tolerance import GradientTolerance, tolerance_of
from ..options import LossOptions
from ..vocabulary_order import VocabularyOrder
from ._architectures import head_scale
from ._compare import compare, computes, entry
from ._forward import FusedLoss
from ._heads import linear_head
from ._installed import current, install, set_current
from ._passed_by import watch
from ._undisturbed import unwrapped

__all__ = ["fuse_loss", "fused"]


def fuse_loss(
    model: Any,
    *,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    confidence_penalty: float = 0.0,
    implementation: str = "auto",
    workspace_bytes: int | None = None,
    gradient_tolerance: float | GradientTolerance = 0.0,
    vocabulary_order: VocabularyOrder | None = None,
    eval_logits: bool = False,
    verify: bool = True,
) -> FusedLoss:
    """Let a causal language model compute its loss by :func:`kernel.linear_cross_entropy`, without logits.

    From then on ``model(input_ids, labels=labels)`` returns the loss and no logits; calls without labels, generation
    among them, are the model's own. With ``label_smoothing=0`` the loss is the model's own to rounding, which is
    checked on a few tokens; its shift by one, labels of -100, ``ignore_index``, ``num_items_in_batch`` and
    ``shift_labels`` keep their meaning. A smoothed loss is no log-likelihood, and its exponential no perplexity. Scale
    and cap of the logits are read from the config at each call. Fusing again replaces the options.

    Args:
        model: A transformers model with a language-model head, or a PEFT, DDP or FSDP model around one. The head may be
            tied, have a bias, be frozen (then it gets no gradient) or be trained through ``modules_to_save``.
        label_smoothing: As in :func:`kernel.linear_cross_entropy`: the convention of torch and of
            ``TrainingArguments.label_smoothing_factor``.
        temperature: Divides the logits in this loss alone; the model's own logits stay as they are.
        softcap: Cap in this loss, for a model that has none; None takes the config's.
        z_loss: Coefficient of the squared log-partition.
        confidence_penalty: Coefficient of the entropy, which is subtracted.
        implementation: As in :func:`kernel.linear_cross_entropy`.
        workspace_bytes: As there.
        gradient_tolerance: As there.
        vocabulary_order: Order of :func:`kernel.sort_vocabulary` in which the loss takes rows and labels, for a
            ``gradient_tolerance``. Each call copies the head; the model itself stays as it is, and its checkpoints too.
        eval_logits: Also return logits when labels are given in evaluation mode.
        verify: Compare the fused loss without smoothing with the model's own first (:func:`check_loss`).

    Returns:
        A handle, to remove the loss again; :func:`fused` finds it as well.

    Raises:
        TypeError: If the model is none of transformers', or its head cannot be read as one matrix: hooks, an adapter, a
            forward of its own, quantised, sharded, offloaded or without numbers.
        ValueError: If the architecture is not known, the fused loss is not the model's own, an option is out of range,
            or ``softcap`` is given for a model that has one.

    Example:
        >>> transformers = __import__("pytest").importorskip("transformers")
        >>> config = transformers.LlamaConfig(
        ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> import torch
        >>> model, tokens = transformers.LlamaForCausalLM(config), torch.tensor([[1, 2, 3]])
        >>> own = model(tokens, labels=tokens).loss
        >>> with fuse_loss(model):
        ...     output = model(tokens, labels=tokens)
        >>> torch.allclose(output.loss, own), output.logits
        (True, None)
    """
    outer, model = model, unwrapped(model)
    scale = head_scale(model)
    if model.get_output_embeddings() is None:
        raise TypeError(f"model must have a language-model head around a base model, got {type(model).__name__}.")
    if softcap is not None and scale.softcap is not None:
        raise ValueError(f"softcap must be None for a model whose config caps at {scale.softcap}, got {softcap}.")
    check_choices(implementation, workspace_bytes)
    options = LossOptions(
        *(label_smoothing, softcap, temperature),
        z_loss=z_loss,
        confidence_penalty=confidence_penalty,
        gradient_tolerance=tolerance_of(gradient_tolerance),
    )
    if not isinstance(vocabulary_order, (VocabularyOrder, type(None))):
        raise TypeError(
            f"vocabulary_order must be a kernel.VocabularyOrder or None, got {type(vocabulary_order).__name__}."
        )
    if vocabulary_order is not None:
        vocabulary_order = vocabulary_order.to(model.get_output_embeddings().weight.device)
    linear_head(model, gathered=False)
    names = ("label_smoothing", "softcap", "temperature", "z_loss", "confidence_penalty")
    chosen: dict[str, Any] = {name: getattr(options, name) for name in names}
    chosen |= {"implementation": implementation, "workspace_bytes": workspace_bytes}
    chosen |= {"gradient_tolerance": gradient_tolerance, "vocabulary_order": vocabulary_order}
    hidden = compare(outer) if verify else False
    handle = FusedLoss(model, chosen, eval_logits)
    install(model, again=hidden)
    set_current(model, handle)
    watch(model)
    return handle


def fused(model: Any) -> FusedLoss | None:
    """The fused loss that a model computes now, seen through torch.compile, DDP, FSDP and PEFT.

    Where ``model.forward`` was replaced after fusing, a few tokens tell whether it still leads to the fused loss.

    Returns:
        The handle that :func:`fuse_loss` gave; None if the model computes its own loss, with a warning that says why
        if it was fused.

    Example:
        >>> transformers = __import__("pytest").importorskip("transformers")
        >>> config = transformers.LlamaConfig(
        ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = transformers.LlamaForCausalLM(config)
        >>> _ = fuse_loss(model, label_smoothing=0.1)
        >>> fused(model).options["label_smoothing"]
        0.1
    """
    inner = unwrapped(model)
    handle = current(inner)
    if handle is not None and not computes(entry(model), handle):
        forward = inner.__dict__.get("forward", type(inner).forward)
        forward = getattr(forward, "__func__", forward)
        name = getattr(forward, "__qualname__", type(forward).__name__)
        warnings.warn(
            f"{type(inner).__name__} was fused and is not any more: its forward was replaced by {name}, which does not "
            "lead to the fused loss. Fuse it again (fuse_loss).",
            stacklevel=2,
        )
        return None
    return handle
