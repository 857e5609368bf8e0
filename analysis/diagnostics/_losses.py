"""The three mean losses that the diagnostics are made of, from the statistics of a head."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..checks import interval, one_whole

if TYPE_CHECKING:
    from kernel import HeadStatistics


class Losses(NamedTuple):
    """Mean losses of a head on some data, in nats, in the order that :func:`smoothing_slope` takes them.

    Attributes:
        entropy: H = lse - sum_k p_k z_k.
        cross_entropy: CE = lse - z_y, against the targets.
        uniform_cross_entropy: CE_u = lse - mean_k z_k, against uniform targets.
    """

    entropy: float
    cross_entropy: float
    uniform_cross_entropy: float


def losses_of(statistics: HeadStatistics, *, temperature: float = 1.0, temperature_index: int = 0) -> Losses:
    """Average H, CE and CE_u over the tokens of one :func:`kernel.head_statistics` call, leaving ignored tokens out.

    Args:
        statistics: The result, made with a target.
        temperature: The T > 0 that the statistics were taken at; they do not hold it themselves.
        temperature_index: Its place among their temperatures.

    Returns:
        The losses at this temperature.

    Raises:
        ValueError: If the statistics were made without a target, all tokens are ignored, or an argument is out of
            range.

    Example:
        >>> import torch, kernel, analysis
        >>> hidden, head = torch.eye(3), 2 * torch.eye(3)
        >>> losses = losses_of(kernel.head_statistics(hidden, head, torch.tensor([0, 1, -100])))
        >>> [round(loss, 3) for loss in losses]
        [0.666, 0.24, 1.573]
        >>> round(float(analysis.activity_index(*losses, label_smoothing=0.1)), 2)
        3.2
    """
    if statistics.rank is None or statistics.log_probability is None:
        raise ValueError("statistics must be made with a target, got some without.")
    several = statistics.entropy.shape[-1]
    at = one_whole("temperature_index", temperature_index, 0)
    if at >= several:
        raise ValueError(f"temperature_index must be in [0, {several}), got {temperature_index}.")
    scale = float(interval("temperature", temperature, 0, open_low=True))
    kept = statistics.rank >= 0
    if not kept.any():
        raise ValueError("statistics must have a token that is not ignored, got none.")
    entropy, log_probability, lse = (
        x[..., at][kept].double() for x in (statistics.entropy, statistics.log_probability, statistics.lse)
    )
    uniform = lse - statistics.mean_logit[kept].double() / scale
    return Losses(entropy.mean().item(), -log_probability.mean().item(), uniform.mean().item())
