"""Full-batch training to convergence, and the record of one run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..teachers import Observations, Teacher, TeacherConfig, make_teacher, random_streams
from ._config import FitConfig
from ._dense import DenseLoss
from ._head import Batch, SoftmaxBottleneck
from ._lbfgs import DeviceLBFGS, HostLBFGS
from ._measures import measure
from ._unseen import merged_classes

_STRIDE = 10  # iterations between two looks at the loss
_STEP_SIZES = (0.003, 0.01, 0.03, 0.1)  # that Adam tries
# The rule of the study: no result while the loss falls by more than this (nats, or of itself) over its last tenth.
_STILL_FALLING = 1e-4


class Fitted(NamedTuple):
    """A trained head with what it was trained on."""

    head: SoftmaxBottleneck
    teacher: Teacher
    training: Observations
    held_out: Observations
    losses: list[float]  # training loss every 10 ``steps`` (see fit), in nats; the last one at the end
    step_size: float | None = None  # of Adam, the tuned one


def train(config: FitConfig, *, device: torch.device | str = "cpu", implementation: Any = "auto") -> Fitted:
    """Train a head with L-BFGS (strong Wolfe line search) on its full batch, or with Adam at a tuned step size.

    The whole problem fits in a batch, so that a second-order method reaches in hundreds of steps what first-order ones
    do not in thousands, and no step size has to be tuned, which would confound temperature and softcap.

    Args:
        config: What to train, on what, and when to stop.
        device: Where to train.
        implementation: Of :func:`kernel.linear_cross_entropy`, or ``"dense"`` for the same loss of all logits at once
            with its gradient in closed form, which ``"auto"`` takes for small heads on a CPU, or ``"merged"``: the same
            with one row for all tokens that ``training`` has not, which loses nothing (docs/theory.md, E4) and costs
            that much less. ``"auto"`` takes it on a CPU where three quarters of the vocabulary or more are such.

    Returns:
        The head, its teacher, both samples and the course of the loss; a head trained merged has all V rows again.

    Raises:
        ValueError: If ``implementation`` is ``"merged"`` and the config has a softcap, a confidence penalty or Adam.

    Example:
        >>> from analysis.teachers import TeacherConfig
        >>> teacher = TeacherConfig(kind="det", vocab_size=8, n_contexts=8)
        >>> head = train(FitConfig(teacher=teacher, hidden_size=8, norm_coefficient=6 / 8)).head
        >>> head.logits().softmax(-1).diagonal().mean().item() > 0.99
        True
    """
    teacher, training, held_out = _data(config.teacher)
    classes = merged_classes(config, training, device=torch.device(device), implementation=implementation)
    if config.optimiser == "lbfgs":
        head = SoftmaxBottleneck(config, device=device)
        if classes is None:
            losses = _minimise(head, _loss(head, training, implementation), config)
        else:
            classes.merge(head)
            losses = _minimise(head, DenseLoss(head, training, classes=classes), config)
            classes.expand(head)
        return Fitted(head, teacher, training, held_out, losses)
    runs = []
    for step_size in _STEP_SIZES:
        head = SoftmaxBottleneck(config, device=device)
        losses = _adam(head, _loss(head, training, implementation), config, step_size)
        runs.append(Fitted(head, teacher, training, held_out, losses, step_size))
    return min(runs, key=lambda run: run.losses[-1] if math.isfinite(run.losses[-1]) else math.inf)


@lru_cache(maxsize=2)
def _data(config: TeacherConfig) -> tuple[Teacher, Observations, Observations]:
    """Teacher, training and held-out sample; kept for the fits that share them, as large ones take a minute to draw."""
    teacher_stream, training_stream, held_out_stream = random_streams(config.seed, 3)
    teacher, samples = make_teacher(config, teacher_stream), config.samples_per_context
    training = teacher.population() if samples is None else teacher.sample(samples, training_stream)
    return teacher, training, teacher.sample(samples or 8, held_out_stream)


def _loss(head: SoftmaxBottleneck, training: Observations, implementation: Any) -> Callable[[], Tensor]:
    """The loss of the head at its parameters as they are."""
    if DenseLoss.serves(head, implementation):
        return DenseLoss(head, training)
    batch = Batch.of(training, device=head.raw_weight.device, dtype=head.raw_weight.dtype)
    return lambda: head(batch, implementation=implementation)


def _adam(
    head: SoftmaxBottleneck, training_loss: Callable[[], Tensor], config: FitConfig, step_size: float
) -> list[float]:
    """Adam on the full batch; the loss every ``_STRIDE`` steps and at the end."""
    optimiser = torch.optim.Adam(_trained(head), lr=step_size)
    losses: list[float] = []
    for step in range(config.max_steps + 1):
        optimiser.zero_grad()
        loss = training_loss()
        loss.backward()
        if step % _STRIDE == 0 or step == config.max_steps:
            losses.append(loss.item())
        if step < config.max_steps:
            optimiser.step()
    return losses


def _trained(head: SoftmaxBottleneck) -> list[torch.nn.Parameter]:
    return [parameter for parameter in head.parameters() if parameter.requires_grad]


def _minimise(head: SoftmaxBottleneck, training_loss: Callable[[], Tensor], config: FitConfig) -> list[float]:
    """Run L-BFGS until the loss has stopped falling; the loss every ``_STRIDE`` iterations.

    A line search that fails in the noise of float32 looks like an optimum, so the end has to be found twice: the second
    time after a start with an empty memory, whose first direction is the gradient. And a loss may rest for a while, so
    that a head trains ``overtime`` times as long as it took to converge.
    """
    kind = DeviceLBFGS if head.raw_weight.is_cuda else HostLBFGS
    minimiser = kind(_trained(head), training_loss)
    losses, found = [minimiser.value], 0
    for _ in range(-(-config.max_steps // _STRIDE)):
        losses.append(minimiser.advance(_STRIDE))
        if not _fall(losses) <= config.tolerance * max(1.0, losses[-1]):  # nan has not stopped falling
            found = 0
            continue
        found += 1
        if found == 1:
            minimiser.restart()
        elif config.overtime == 1 or len(losses) > config.overtime * _converged_at(losses):
            break
    minimiser.finish()
    return losses


def _fall(losses: list[float]) -> float:
    """By how much the loss fell over the last tenth of its course, in nats; inf before there is a course."""
    tenth = max(1, (len(losses) - 1) // 10)
    return losses[-1 - tenth] - losses[-1] if len(losses) > 1 else float("inf")


def _converged(losses: list[float]) -> bool:
    return math.isfinite(losses[-1]) and abs(_fall(losses)) <= _STILL_FALLING * max(1.0, losses[-1])


def _converged_at(losses: list[float]) -> int:
    """Looks at the loss after which it counted as converged ever after; their number plus one where it does not yet."""
    return next((end for end in range(len(losses), 0, -1) if not _converged(losses[:end])), 0)


def fit(config: FitConfig, *, device: torch.device | str = "cpu", implementation: Any = "auto") -> dict[str, Any]:
    """Train one head, measure it against its teacher, and return everything as one flat row.

    Args:
        config: What to train.
        device: Where to train.
        implementation: As for :func:`train`.

    Returns:
        Flat and JSON-able: the columns of ``config``, the measurements (described at the source,
        ``analysis.bottleneck._measures.measure``), and

        - ``loss``: final training loss, smoothed and with weight decay, in nats; ``step_size``: the tuned one of Adam,
          None for L-BFGS.
        - ``steps``: how long it trained, in the unit of its optimiser, so that only rows of one ``optimiser`` and one
          ``device`` may be compared. L-BFGS on a CPU: iterations, with one or more evaluations of the loss each, until
          its line search has found a step (fewer than counted where float32 leaves none). L-BFGS on a GPU:
          evaluations, also those whose step was refused. Adam: steps.
        - ``loss_fall``, ``relative_loss_fall``: fall over the last tenth of the steps (at least 10), in nats and as a
          share of the loss. ``converged_at``: ``steps`` after which ``converged`` held ever after; None if it does not.
        - ``gradient_norm``: of the loss with respect to the unconstrained parameters, at the end; of a head trained
          merged, those of all V rows, which is also that of the parameters that were trained.
        - ``converged``: the loss is finite and changed by at most 1e-4 nats or 1e-4 of itself, whichever is larger.
        - ``device``, ``wall_seconds``, ``cpu_seconds``.

    Example:
        >>> from analysis.teachers import TeacherConfig
        >>> row = fit(FitConfig(teacher=TeacherConfig(kind="det", vocab_size=4, n_contexts=4), hidden_size=2))
        >>> row["converged"], round(row["confidence"], 2)
        (True, 0.3)
    """
    wall, cpu = time.perf_counter(), time.process_time()
    fitted = train(config, device=device, implementation=implementation)
    row = {
        **config.columns(),
        **measure(fitted.head, fitted.teacher, fitted.training, fitted.held_out),
        **course(fitted),
        "device": str(device),
    }
    return {**row, "wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def course(fitted: Fitted) -> dict[str, Any]:
    """Describe how a training went: the columns from ``loss`` to ``converged`` of :func:`fit`."""
    losses = fitted.losses
    fall = max(_fall(losses), 0.0)  # nan stays nan
    gradients = [p.grad.double().norm() for p in fitted.head.parameters() if p.grad is not None]
    return {
        "loss": losses[-1],
        "steps": _STRIDE * (len(losses) - 1),
        "loss_fall": fall,
        "relative_loss_fall": fall / losses[-1] if losses[-1] > 0 else 0.0,
        "gradient_norm": torch.stack(gradients).norm().item(),
        "converged": _converged(losses),
        "converged_at": _STRIDE * _converged_at(losses) if _converged(losses) else None,
        "step_size": fitted.step_size,
    }
