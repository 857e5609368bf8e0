"""The head of a language model as one matrix: read as it is now, or refused with the reason and the way out."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["linear_head", "output_head"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def output_head(model: Any) -> nn.Module:
    """The module that makes the logits, out of the wrapper of PEFT's ``modules_to_save`` if there is one."""
    head = model.get_output_embeddings()
    saved = getattr(head, "modules_to_save", None)
    if isinstance(saved, nn.ModuleDict):
        active = head.active_adapters[0]
        head = head.original_module if head.disable_adapters or active not in saved else saved[active]
    return head


def linear_head(model: Any, *, gathered: bool = True) -> tuple[Tensor, Tensor | None]:
    """Weight (V, D) and bias (V,) of a language model's head, as they are now: PEFT and tied weights replace them.

    A head that is read as numbers is not called. So whatever a call would do besides x W^T + b is refused: hooks, an
    adapter, a forward of its own.

    Args:
        model: A transformers model with a language-model head, out of its PEFT wrapper.
        gathered: Whether the weights must be whole. Between two calls of a model under FSDP they are not, inside its
            forward they are.

    Raises:
        TypeError: If the head cannot be read as one floating-point matrix: the text says why, and what to do.
    """
    head: Any = output_head(model)
    if not isinstance(head, nn.Linear):
        _refuse(f"is a {type(head).__module__}.{type(head).__name__}, no torch.nn.Linear", _way_out(head))
    if parametrize.is_parametrized(head):
        _refuse("has a parametrization", "Remove it (torch.nn.utils.parametrize.remove_parametrizations)")
    if type(head).forward is not nn.Linear.forward or type(head).__call__ is not nn.Linear.__call__:
        _refuse(f"is a {type(head).__name__}, whose forward may compute something else", _way_out(head))
    if any(getattr(module, name) for module in (head, model.get_output_embeddings()) for name in _HOOKS):
        _refuse("has hooks, which would not run", "Remove them, or hook the body")
    if "forward" in head.__dict__ and not _only_moves(head):
        if getattr(head, "_hf_hook", None) is not None:
            _refuse("is offloaded by accelerate", "Load the model with its head on a device (device_map)")
        _refuse("has a forward of its own, which would not run", "Remove it")
    weight, bias = head.weight, head.bias
    for tensor in (weight,) if bias is None else (weight, bias):
        _check(tensor, 2 if tensor is weight else 1, gathered)
    return weight, bias


def _check(tensor: Tensor, axes: int, gathered: bool) -> None:
    if tensor.device.type == "meta":
        _refuse(
            "is on the meta device, without numbers",
            "Load or materialise its weights before it is fused (under FSDP: cpu_ram_efficient_loading=False)",
        )
    name = type(tensor).__name__
    sharded = name == "DTensor" or hasattr(tensor, "ds_id") or tensor.ndim != axes  # FSDP2 or TP, ZeRO-3, FSDP1
    if sharded and gathered:
        _refuse(
            f"is sharded ({name} of shape {tuple(tensor.shape)})",
            "Leave the head out of tensor parallelism, of ZeRO stage 3 and of FSDP units of its own: FSDP's root unit "
            "gathers it",
        )
    if sharded:
        return
    if tensor.dtype not in _DTYPES:
        _refuse(f"holds {str(tensor.dtype).removeprefix('torch.')}", "Leave the head out of quantisation")
    if type(tensor) not in (nn.Parameter, Tensor) and not _is_fake(tensor):
        _refuse(f"holds a {name}, no plain tensor", "Leave the head out of quantisation")


def _is_fake(tensor: Tensor) -> bool:
    """Whether torch.compile or torch.export traces with it."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(tensor, (FakeTensor, FunctionalTensor))


def _only_moves(head: Any) -> bool:
    """Whether a forward that accelerate put there only moves tensors between devices (``device_map``)."""
    hook: Any = getattr(head, "_hf_hook", None)
    return type(hook).__name__ == "AlignDevicesHook" and not hook.offload and not hook.no_grad


def _way_out(head: nn.Module) -> str:
    if type(head).__module__.startswith("peft."):
        return "Train the head through modules_to_save instead of an adapter"
    return "Put a torch.nn.Linear in its place, or leave the head out of quantisation"


def _refuse(why: str, way_out: str) -> NoReturn:
    raise TypeError(
        f"model must have a head that can be read as one floating-point matrix, got one that {why}. {way_out}."
    )
