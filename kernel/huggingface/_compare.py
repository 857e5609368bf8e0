"""A model's own loss against the fused one on a few tokens, leaving the model as it was."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..api import autocast, autocast_off
from ._architectures import architecture_of, scale_of
from ._forward import FusedLoss
from ._heads import linear_head, output_head
from ._installed import current, find, install, set_current
from ._tokens import COUNT, plain_tokens, special_tokens
from ._undisturbed import undisturbed, unwrapped

__all__ = ["check_loss", "compare", "computes", "entry"]

# The model's own loss, without kernels: a model may be fused on another device than it is trained on.
_PLAIN = {
    "label_smoothing": 0.0,
    "softcap": None,
    "temperature": 1.0,
    "z_loss": 0.0,
    "confidence_penalty": 0.0,
    "implementation": "reference",
    "workspace_bytes": None,
}
_HALF = (torch.float16, torch.bfloat16)
_SPECIAL, _TRAINING = " with special ones and padding", " in training mode"
_COUNTED = " with num_items_in_batch=5, as Trainers give it"


def check_loss(model: Any) -> None:
    """Compare the loss that a model computes itself with the fused one, without smoothing, on a few tokens.

    :func:`fuse_loss` does so unless ``verify=False``. The batches: tokens spread over the vocabulary, alone; the tokens
    that the config names (beginning, end, padding ...), with a padded row and its mask; the first again with the model
    itself in training mode, its layers in evaluation mode; and, for a forward or loss function that is not of
    transformers, with ``num_items_in_batch``. Only the first must be one that the model can compute. Own logits of half
    precision are made again in float32 from the hidden states that the head gets, so that a difference shows however
    large they are. What a model does on other tokens and lengths, with other keywords, or in layers in training mode
    alone is not seen.

    Nothing has gradients; training mode, random state and buffers are put back, and hooks other than those of torch,
    transformers, accelerate and PEFT do not run. Logits exist for these tokens.

    Args:
        model: As of :func:`fuse_loss`; under FSDP on every process.

    Raises:
        TypeError: If the head cannot be read as one floating-point matrix.
        ValueError: If the two differ by more than rounding, or the model itself fails or has no finite loss.

    Example:
        >>> transformers = __import__("pytest").importorskip("transformers")
        >>> config = transformers.LlamaConfig(
        ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> check_loss(transformers.LlamaForCausalLM(config))
    """
    compare(model)


def compare(outer: Any) -> bool:
    """As :func:`check_loss`; whether a :class:`Forward` must be put around a forward that hides the last one."""
    model, call = unwrapped(outer), entry(outer)
    linear_head(model, gathered=False)
    fused, forward, hidden = FusedLoss(model, dict(_PLAIN)), model.__dict__.get("forward"), False
    plain = plain_tokens(model)
    batches = [(plain, False, ""), (special_tokens(model), False, _SPECIAL), (plain, True, _TRAINING)]
    if fused.known_keywords is not None:  # a forward or loss of somebody's own
        batches.append(({**plain, "num_items_in_batch": torch.tensor(5)}, False, _COUNTED))
    with undisturbed(outer):
        try:
            for inputs, training, what in batches:
                model.training = training  # the model alone: its layers keep their dropout off
                own = _own(call, model, inputs)
                if isinstance(own, Exception):
                    if not what:
                        raise _fails(model, own) from own
                    continue  # it cannot be trained on such a batch
                _check_finite(model, own.loss, needed=not what)
                install(model)
                loss, ran = _fused(call, fused, inputs)
                if not (ran or what):
                    hidden = True
                    install(model, again=True)
                    loss, ran = _fused(call, fused, inputs)
                if not own.equals(loss) and not (own.is_near(loss) and own != _own(call, model, inputs)):
                    raise _differ(model, own.loss, loss, what)
        finally:
            if forward is None:
                model.__dict__.pop("forward", None)
            else:
                model.forward = forward
    return hidden


def computes(call: Any, fused: FusedLoss) -> bool:
    """Whether a call of the model leads to its fused loss; where that cannot be seen, a few tokens tell."""
    if find(fused.model):
        return True
    with undisturbed(call), contextlib.suppress(Exception):
        return _fused(call, fused, plain_tokens(fused.model))[1]
    return False


def entry(outer: Any) -> Any:
    """What is called: the wrapper of FSDP gathers weights; that of DDP, which waits for other processes, stays out."""
    return outer if type(outer).__name__ == "FullyShardedDataParallel" else unwrapped(outer)


def _fused(call: Any, fused: FusedLoss, inputs: dict[str, Tensor]) -> tuple[float, bool]:
    """The loss of a call while the model computes the fused one, and whether that ran."""
    fused.losses = []
    try:
        with fused.computing():
            return float(_loss_of(call(**inputs))), bool(fused.losses)
    finally:
        fused.losses = None


class _Own(NamedTuple):
    """A loss of the model's own, and how far the fused one may be off."""

    loss: float
    tolerance: float
    noise: float  # where sums have another order at each call: a rounding of the largest logit

    def equals(self, loss: float) -> bool:
        return abs(self.loss - loss) <= self.tolerance or (math.isnan(self.loss) and math.isnan(loss))

    def is_near(self, loss: float) -> bool:
        return abs(self.loss - loss) <= self.tolerance + self.noise


def _own(call: Any, model: Any, inputs: dict[str, Tensor]) -> _Own | Exception:
    """The model's own loss, from logits in float32 if it can be; what it raised if it cannot compute one."""
    before = current(model)
    set_current(model, None)
    try:
        with contextlib.suppress(Exception):
            with _precise_head(model) as products:
                outputs = call(**inputs)
            return _read(model, outputs, products)
        return _read(model, call(**inputs), [])
    except Exception as error:
        return error
    finally:
        set_current(model, before)


def _loss_of(outputs: Any) -> Tensor:
    return outputs[0] if isinstance(outputs, tuple) else outputs["loss"]


def _read(model: Any, outputs: Any, products: list[Tensor]) -> _Own:
    own, logits = _loss_of(outputs), getattr(outputs, "logits", None)
    weight, bias = linear_head(model, gathered=False)
    loss, device, dtype = float(own), own.device.type, weight.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    coarse = 1e-3 if device == "cuda" and dtype == torch.float32 and _tf32() else torch.finfo(dtype).eps
    seen = products if logits is None else [*products, logits.detach()]
    fine = max((torch.finfo(z.dtype).eps for z in seen), default=coarse)  # a model may round its logits again
    eps = fine if products and dtype in _HALF else coarse
    exact = torch.finfo(own.dtype).eps if own.dtype in _HALF else 1e-5
    scale = abs(scale_of(model, architecture_of(model)).logit_scale)
    # What the head gave, or else the model's logits without those that it masks by a large negative number.
    largest = max(1, scale) * max((_largest(z) for z in seen[:1]), default=1.0)
    tolerance = exact * (1 + abs(loss)) + eps * largest
    if bias is not None and scale != 1:  # scaled in its own dtype
        tolerance += coarse * scale * _largest(bias.detach())
    return _Own(loss, tolerance, coarse * largest)


def _largest(z: Tensor) -> float:
    size = z.abs()
    return float(torch.where(size < 1e4, size, 0).max())


@contextlib.contextmanager
def _precise_head(model: Any) -> Iterator[list[Tensor]]:
    """Logits of half precision in float32, from the same hidden states; yields what the head gave."""
    head: Any = output_head(model)
    before, forward = head.__dict__.get("forward"), head.forward
    products: list[Tensor] = []

    def product(hidden: Tensor) -> Tensor:
        z = forward(hidden)  # which fails where the model fails
        if z.dtype in _HALF:
            x, weight, bias = autocast(hidden.to(head.weight.device), head.weight, head.bias)
            with autocast_off(x):
                z = nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(z.device)
        products.append(z)
        return z

    head.forward = product
    try:
        yield products
    finally:
        if before is None:
            del head.forward
        else:
            head.forward = before


def _tf32() -> bool:
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # set through torch's newer interface
        return True


def _differ(model: Any, own: float, loss: float, what: str) -> ValueError:
    return ValueError(
        f"model's own loss must be the one of a head, scale and cap of {model.config.model_type!r}, got {own:.6g} "
        f"from {type(model).__name__} and {loss:.6g} from the fused loss without smoothing on {COUNT} "
        f"tokens{what}: its forward, its loss_function or its config does something that the rule does not know. "
        "Register an architecture that knows it (kernel.huggingface.register_architecture); verify=False fuses "
        "without this comparison."
    )


def _fails(model: Any, error: Exception) -> ValueError:
    return ValueError(
        f"model must compute a loss by itself, and {type(model).__name__} fails without any fused loss, on "
        f"{COUNT} tokens with labels: {type(error).__name__}: {error}. Mend that first; if it only needs "
        "other inputs, verify=False fuses without the comparison that found it."
    )


def _check_finite(model: Any, loss: float, needed: bool) -> None:
    if math.isfinite(loss):
        return
    dtypes = (*_HALF, torch.float32, torch.float64)
    readable = ((n, p) for n, p in model.named_parameters() if type(p) is nn.Parameter and p.dtype in dtypes)
    bad = next((name for name, p in readable if not (p.is_meta or bool(p.isfinite().all()))), None)
    if bad is not None or needed:
        why = "its activations overflow, or it masks labels" if bad is None else f"the parameter {bad!r} is not finite"
        raise ValueError(
            f"model must have a finite loss of its own, got {loss} from {type(model).__name__} on {COUNT} tokens, "
            f"without any fused loss: {why}."
        )
