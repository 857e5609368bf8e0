"""A model's own loss against the fused one on a few tokens, leaving the model as it was."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..fused import DEFAULT_WORKSPACE_BYTES
from ._forward import FusedLoss
from ._heads import linear_head
from ._installed import current, find, install, set_current

__all__ = ["PLAIN", "check_loss", "compare", "computes", "undisturbed", "unwrapped"]

# The model's own loss, without kernels: a model may be fused on another device than it is trained on.
PLAIN = {
    "label_smoothing": 0.0,
    "softcap": None,
    "temperature": 1.0,
    "z_loss": 0.0,
    "confidence_penalty": 0.0,
    "implementation": "reference",
    "workspace_bytes": DEFAULT_WORKSPACE_BYTES,
}
_ROWS, _LENGTH = 2, 9
_LIBRARIES = ("torch.", "transformers.", "accelerate.", "peft.", "deepspeed.")  # their hooks do the model's work


def unwrapped(model: Any) -> Any:
    """The causal language model inside torch.compile, DDP, FSDP and PEFT."""
    while True:
        if "_orig_mod" in getattr(model, "_modules", {}):
            model = model._orig_mod
        elif _is_wrapper(model):
            model = model.module
        elif callable(getattr(model, "get_base_model", None)):
            model = model.get_base_model()
        else:
            return model


def _is_wrapper(model: Any) -> bool:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    return isinstance(model, (DataParallel, DistributedDataParallel, FullyShardedDataParallel))


def check_loss(model: Any) -> None:
    """Compare the loss that a model computes itself with the fused one, without smoothing, on a few tokens.

    :func:`fuse_loss` does so unless ``verify=False``. Both run in evaluation mode and without gradients; training mode,
    random state and buffers are put back, and hooks other than those of torch, transformers, accelerate and PEFT do not
    run. Logits exist for these tokens.

    Args:
        model: As of :func:`fuse_loss`; under FSDP on every process.

    Raises:
        TypeError: If the head cannot be read as one floating-point matrix.
        ValueError: If the two differ by more than rounding, or the model's own loss cannot be computed.

    Example:
        >>> transformers = __import__("pytest").importorskip("transformers")
        >>> config = transformers.LlamaConfig(
        ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> check_loss(transformers.LlamaForCausalLM(config))
    """
    compare(model)


def compare(outer: Any) -> bool:
    """As :func:`check_loss`; whether a :class:`Forward` must be put around a forward that hides the last one."""
    model = unwrapped(outer)
    linear_head(model, gathered=False)
    fused = FusedLoss(model, dict(PLAIN))
    tokens = _tokens(model)
    labels = tokens.clone()
    labels[0, :2] = -100
    forward = model.__dict__.get("forward")
    # The wrapper of FSDP gathers weights; that of DDP is not needed.
    call = outer if type(outer).__name__ == "FullyShardedDataParallel" else model
    with undisturbed(outer):
        own, logits = _own(call, model, tokens, labels)
        try:
            with fused.computing():
                install(model)
                loss = call(input_ids=tokens, labels=labels).loss
                hidden = not fused.ran
                if hidden:
                    install(model, again=True)
                    loss = call(input_ids=tokens, labels=labels).loss
        finally:
            if forward is None:
                model.__dict__.pop("forward", None)
            else:
                model.forward = forward
    _same(model, own, float(loss), _tolerance(own, logits), labels.numel())
    return hidden


def computes(outer: Any, fused: FusedLoss) -> bool:
    """Whether the model's forward leads to its fused loss; where that cannot be seen, a few tokens tell."""
    if find(fused.model):
        return True
    tokens = _tokens(fused.model)
    fused.ran = False
    with undisturbed(outer), fused.computing(), contextlib.suppress(Exception):
        outer(input_ids=tokens, labels=tokens)
    return fused.ran


def _same(model: Any, own: float, loss: float, tolerance: float, count: int) -> None:
    if math.isnan(own) and math.isnan(loss):
        return
    if not abs(own - loss) <= tolerance:
        raise ValueError(
            f"model's own loss must be the one of a head, scale and cap of {model.config.model_type!r}, got {own:.6g} "
            f"from {type(model).__name__} and {loss:.6g} from the fused loss without smoothing on {count} "
            "tokens: its forward, its loss_function or its config does something that the rule does not know. "
            "Register an architecture that knows it (kernel.huggingface.register_architecture); verify=False fuses "
            "without this comparison."
        )


def _own(call: Any, model: Any, tokens: Tensor, labels: Tensor) -> tuple[float, Tensor | None]:
    before = current(model)
    set_current(model, None)
    try:
        outputs = call(input_ids=tokens, labels=labels, return_dict=True)
        return float(outputs.loss), outputs.get("logits")
    except Exception as error:
        raise ValueError(
            f"model must compute its own loss of {labels.numel()} tokens, so that the fused one can be compared with "
            f"it, got {type(error).__name__}: {error}. verify=False fuses without this comparison."
        ) from error
    finally:
        set_current(model, before)


def _tolerance(own: float, logits: Tensor | None) -> float:
    """A rounding of the largest logit: logits of half precision are rounded, those of the fused loss are not."""
    if logits is None:
        return 1e-2
    device, dtype = logits.device.type, logits.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    rounding = max(torch.finfo(dtype).eps, 1e-3 if device == "cuda" else 0.0)  # of TF32
    return 1e-5 * (1 + abs(own)) + rounding * float(logits.detach().abs().max())


def _tokens(model: Any) -> Tensor:
    """Tokens far apart in the vocabulary, none of them special to the model."""
    config = model.config.get_text_config()
    special: set[int] = set()
    for one in (model.config, config):
        for name, value in one.to_dict().items():
            if "token" in name or name.endswith("_id"):
                special |= {x for x in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(x, int)}
    size = config.vocab_size
    usable = [x for x in (7919 * i % size for i in range(1, 8 * _ROWS * _LENGTH)) if x not in special] or [0]
    chosen = [usable[i % len(usable)] for i in range(_ROWS * _LENGTH)]
    weight = model.get_input_embeddings().weight
    device = "cpu" if weight.device.type == "meta" else weight.device  # accelerate moves inputs of offloaded models
    return torch.tensor(chosen, device=device).view(_ROWS, _LENGTH)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards mode, random state, buffers, numbers and hooks are as before."""
    modules = list(model.modules())
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None}
    flat = any(type(m).__name__ == "FullyShardedDataParallel" for m in modules)  # keeps its weights as attributes
    training = [m.training for m in modules]
    buffers = [{k: (b, None if b is None else b.detach().clone()) for k, b in m._buffers.items()} for m in modules]
    plain = [{k: v for k, v in vars(m).items() if _is_plain(k, v) and not flat} for m in modules]
    hooks = [getattr(m, name) for m in modules for name in ("_forward_pre_hooks", "_forward_hooks")]
    kept = [dict(one) for one in hooks]
    try:
        for one in hooks:
            for key in [key for key, hook in one.items() if not _is_of_a_library(hook)]:
                del one[key]
        for m in modules:
            m.training = False
        with torch.random.fork_rng(sorted(devices)), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for m, mode, saved, numbers in zip(modules, training, buffers, plain, strict=True):
            m.training = mode
            vars(m).update(numbers)
            _put_back(m, saved)
        for one, before in zip(hooks, kept, strict=True):
            late = {key: hook for key, hook in one.items() if key not in before}  # transformers installs some once
            one.clear()
            one.update(before)
            one.update(late)


def _put_back(module: nn.Module, saved: Mapping[str, tuple[Tensor | None, Tensor | None]]) -> None:
    for name, (buffer, copy) in saved.items():
        module._buffers[name] = buffer
        if buffer is not None and copy is not None and not buffer.is_meta and not torch.equal(buffer, copy):
            buffer.copy_(copy)


def _is_plain(name: str, value: object) -> bool:
    """Whether an attribute is a counter or a cache of the forward: positions of images, lengths seen."""
    mutable = value is None or isinstance(value, (bool, int, float)) or type(value) is Tensor
    return mutable and not name.startswith("_") and name != "training"


def _is_of_a_library(hook: Callable[..., Any]) -> bool:
    function = hook
    while hasattr(function, "func"):  # functools.partial
        function = function.func  # pyright: ignore[reportFunctionMemberAccess]
    return str(getattr(function, "__module__", "")).startswith(_LIBRARIES)
