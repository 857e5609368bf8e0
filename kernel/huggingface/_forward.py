"""The loss inside a model's forward: given labels, hidden states go to the fused loss and no logits are built."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..api import check_choices, linear_cross_entropy
from ..fused import DEFAULT_WORKSPACE_BYTES
from ..options import LossOptions
from ._architectures import head_scale

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FusedLoss", "active_loss", "fuse_loss", "linear_head"]

_ATTRIBUTE = "_fused_loss"
# Arguments of a causal model's forward that concern the head and the loss, not the base model.
_OF_THE_HEAD = ("labels", "shift_labels", "num_items_in_batch", "logits_to_keep", "return_dict")


class FusedLoss:
    """A model's fused loss, as made by :func:`fuse_loss`; leaving it as a context manager removes it.

    Attributes:
        model: The causal language model whose forward computes the loss.
        options: Keyword arguments of :func:`kernel.linear_cross_entropy`.
        eval_logits: Whether calls with labels in evaluation mode also return logits, which costs their memory.
    """

    def __init__(self, model: nn.Module, options: dict[str, Any], eval_logits: bool) -> None:
        self.model, self.options, self.eval_logits = model, options, eval_logits
        self.before: Callable[..., Any] | None = model.__dict__.get("forward")
        self.active = True

    def remove(self) -> None:
        """Give the model its own loss back; wrappers put around its forward since (autocast) stay."""
        self.active = False
        if getattr(self.model.__dict__.get("forward"), "__func__", None) is self.function:
            if self.before is None:
                del self.model.forward
            else:
                self.model.forward = self.before
        self.model.__dict__.pop(_ATTRIBUTE, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def install(self) -> None:
        """Put the loss into the model's forward."""
        own = type(self.model).forward

        def forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            fused: FusedLoss | None = model.__dict__.get(_ATTRIBUTE)
            if args:
                kwargs = _by_name(own, model, args, kwargs)
            no_labels = kwargs.get("labels") is None and kwargs.get("shift_labels") is None
            if fused is None or no_labels:
                before = own.__get__(model) if fused is None or fused.before is None else fused.before
                return before(**kwargs)
            return fused.forward(**kwargs)

        # Trainers read the argument names of forward. No __wrapped__: accelerate would unwrap to the class's forward.
        forward.__signature__ = inspect.signature(own)  # pyright: ignore[reportFunctionMemberAccess]
        forward.__doc__ = own.__doc__
        self.function = forward
        self.model.__dict__[_ATTRIBUTE] = self
        self.model.forward = types.MethodType(forward, self.model)

    def forward(self, **kwargs: Any) -> Any:
        """The model's outputs for a call with labels: ``loss``, without ``logits`` unless ``eval_logits`` asks."""
        from transformers.modeling_outputs import CausalLMOutputWithPast  # pyright: ignore[reportMissingImports]

        model: Any = self.model
        keep = kwargs.get("logits_to_keep")
        if keep is not None and (isinstance(keep, Tensor) or keep):
            raise ValueError("logits_to_keep must be 0 when labels are given: every label has a loss.")
        if model.training:
            kwargs.setdefault("use_cache", False)
        outputs = model.base_model(**{k: v for k, v in kwargs.items() if k not in _OF_THE_HEAD})
        hidden = outputs.last_hidden_state
        loss = self.loss(hidden, kwargs.get("labels"), kwargs.get("shift_labels"), kwargs.get("num_items_in_batch"))
        result = CausalLMOutputWithPast(
            loss=loss,  # pyright: ignore[reportArgumentType]
            logits=self._logits(hidden) if self.eval_logits and not model.training else None,
            past_key_values=outputs.get("past_key_values"),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )
        wants_dict = kwargs.get("return_dict")
        if wants_dict is None:
            wants_dict = getattr(model.config, "return_dict", True)
        return result if wants_dict else result.to_tuple()

    def loss(
        self,
        hidden: Tensor,  # (B, L, D)
        labels: Tensor | None,  # (B, L)
        shifted: Tensor | None,  # (B, L), labels moved by one already
        num_items_in_batch: Tensor | float | None,
    ) -> Tensor:
        """Mean over the labels kept, or their sum over ``num_items_in_batch``."""
        if shifted is None:
            assert labels is not None
            shifted = nn.functional.pad(labels[..., 1:], (0, 1), value=-100)  # position t predicts t + 1
        weight, bias = linear_head(self.model)
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = linear_cross_entropy(
            hidden,
            weight,
            shifted.to(hidden.device),
            linear_bias=bias,
            reduction=reduction,
            **self.options,
        )
        if num_items_in_batch is None:
            return loss
        return loss / (
            num_items_in_batch.to(loss.device) if isinstance(num_items_in_batch, Tensor) else num_items_in_batch
        )

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits as the model gives them: with its own scale and cap, whatever the loss was told."""
        scale = head_scale(self.model)
        logits = scale.logit_scale * _output_head(self.model)(hidden)
        return logits if scale.softcap is None else scale.softcap * torch.tanh(logits / scale.softcap)


def fuse_loss(
    model: Any,
    *,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    implementation: str = "auto",
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
    eval_logits: bool = False,
) -> FusedLoss:
    """Let a causal language model compute its loss by :func:`kernel.linear_cross_entropy`, without logits.

    From then on ``model(input_ids, labels=labels)`` returns the loss and no logits; calls without labels, generation
    among them, are the model's own. With ``label_smoothing=0`` the loss is the model's own to rounding; its shift by
    one, labels of -100, ``num_items_in_batch`` and ``shift_labels`` keep their meaning. Scale and cap of the logits
    come from the config.

    Args:
        model: A transformers model with a language-model head, or a PEFT model around one. The head may be tied, have
            a bias, be frozen (then it gets no gradient) or be trained through ``modules_to_save``.
        label_smoothing: As in :func:`kernel.linear_cross_entropy`: the convention of torch and of
            ``TrainingArguments.label_smoothing_factor``.
        temperature: Divides the logits in this loss alone; the model's own logits stay as they are.
        softcap: Cap in this loss, for a model that has none; None takes the config's.
        z_loss: Coefficient of the squared log-partition.
        implementation: As in :func:`kernel.linear_cross_entropy`.
        workspace_bytes: As there.
        eval_logits: Also return logits when labels are given in evaluation mode.

    Returns:
        A handle, to remove the loss again.

    Raises:
        TypeError: If the model is none of transformers', or its head is no plain linear layer: quantised, or with an
            adapter around it.
        ValueError: If the architecture is not known, the model is fused already, an option is out of range, or
            ``softcap`` is given for a model that has one.

    Example:
        >>> transformers = __import__("pytest").importorskip("transformers")
        >>> config = transformers.LlamaConfig(
        ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model, tokens = transformers.LlamaForCausalLM(config), torch.tensor([[1, 2, 3]])
        >>> own = model(tokens, labels=tokens).loss
        >>> with fuse_loss(model):
        ...     fused = model(tokens, labels=tokens)
        >>> torch.allclose(fused.loss, own), fused.logits
        (True, None)
    """
    model = _inner(model)
    scale = head_scale(model)
    if not isinstance(getattr(model, "base_model", None), nn.Module) or model.base_model is model:
        raise TypeError(f"model must have a language-model head around a base model, got {type(model).__name__}.")
    if _ATTRIBUTE in model.__dict__:
        raise ValueError("model must not be fused already: call remove() on its FusedLoss first.")
    if softcap is not None and scale.softcap is not None:
        raise ValueError(f"softcap must be None for a model whose config caps at {scale.softcap}, got {softcap}.")
    check_choices(implementation, workspace_bytes)
    cap = scale.softcap if softcap is None else softcap  # 0 is out of range, not none
    options = LossOptions(label_smoothing, cap, temperature, scale.logit_scale, z_loss)
    linear_head(model)
    chosen = {name: getattr(options, name) for name in ("label_smoothing", "softcap", "temperature", "logit_scale")}
    chosen |= {"z_loss": options.z_loss, "implementation": implementation, "workspace_bytes": workspace_bytes}
    fused = FusedLoss(model, chosen, eval_logits)
    fused.install()
    return fused


def active_loss(model: Any) -> FusedLoss | None:
    """The fused loss that a model computes, seen through torch.compile and PEFT; None if it computes its own."""
    return _inner(getattr(model, "_orig_mod", model)).__dict__.get(_ATTRIBUTE)


def _inner(model: Any) -> Any:
    return model.get_base_model() if callable(getattr(model, "get_base_model", None)) else model  # PEFT


def _by_name(
    own: Callable[..., Any], model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    signature = inspect.signature(own)
    bound = signature.bind(model, *args, **kwargs).arguments
    rest = [p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    return {
        name: value
        for key, given in list(bound.items())[1:]
        for name, value in (given.items() if key in rest else ((key, given),))
    }


def _output_head(model: Any) -> nn.Module:
    """The linear head, out of the wrapper of PEFT's ``modules_to_save`` if there is one."""
    head = model.get_output_embeddings()
    saved = getattr(head, "modules_to_save", None)
    if isinstance(saved, nn.ModuleDict):
        active = head.active_adapters[0]
        head = head.original_module if head.disable_adapters or active not in saved else saved[active]
    return head


def linear_head(model: Any) -> tuple[Tensor, Tensor | None]:
    """Weight (V, D) and bias (V,) of a language model's head, as they are now: PEFT and tied weights replace them.

    Args:
        model: A transformers model with a language-model head, out of its PEFT wrapper.

    Raises:
        TypeError: If the head is no plain ``nn.Linear`` of floating-point numbers.
    """
    head = _output_head(model)
    # A subclass, or an adapter, may compute something else than x W^T + b.
    if type(head) is not nn.Linear or not head.weight.is_floating_point():
        raise TypeError(
            f"model must have a torch.nn.Linear head of floating-point numbers, got {type(head).__name__}. For PEFT, "
            "train the head through modules_to_save instead of an adapter (target_modules)."
        )
    return head.weight, head.bias
