"""States from the statistics of a head, and groups of tokens by frequency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checks import as_numpy, check_count
from ._state import CalibrationState

if TYPE_CHECKING:
    from kernel import HeadStatistics


def from_statistics(
    statistics: HeadStatistics,
    *,
    temperature_index: int = 0,
    group: Any = None,
    state: CalibrationState | None = None,
) -> CalibrationState:
    """Add the tokens of one :func:`kernel.head_statistics` call to a calibration state.

    Right means that the target is the argmax; ignored tokens are left out. Confidences saturated at 1 stay in order
    through ``log1m_confidence``, and the NLL of the target goes along.

    Args:
        statistics: The result, made with a target.
        temperature_index: Which of its temperatures to take.
        group: Index into the state's groups ``(...)`` of each token; values at ignored tokens do not matter.
        state: The state to add to; None makes a new one of 15 bins and a single group.

    Returns:
        The state.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the statistics were made without a target, an index is out of range or the shapes differ.

    Example:
        >>> import torch, kernel
        >>> hidden, head = torch.eye(3), 2 * torch.eye(3)
        >>> state = from_statistics(kernel.head_statistics(hidden, head, torch.tensor([0, 2, -100])))
        >>> state.n, state.accuracy, round(state.mean_confidence, 3)
        (2, 0.5, 0.787)
    """
    if statistics.rank is None or statistics.log_probability is None:
        raise ValueError("statistics must be made with a target: without one it is not known which tokens are right.")
    several = statistics.confidence.shape[-1]
    check_count("temperature_index", temperature_index, 0)
    if temperature_index >= several:
        raise ValueError(f"temperature_index must be in [0, {several}), got {temperature_index}.")
    rank = as_numpy("rank", statistics.rank).reshape(-1)
    kept = rank >= 0

    def column(name: str) -> NDArray[Any]:
        return as_numpy(name, getattr(statistics, name)[..., temperature_index]).reshape(-1)[kept]

    if group is not None:
        shape = tuple(np.shape(group))
        if shape != tuple(statistics.rank.shape):
            raise ValueError(f"group must have the tokens' shape {tuple(statistics.rank.shape)}, got {shape}.")
        group = as_numpy("group", group).reshape(-1)[kept]
    return (CalibrationState() if state is None else state).update(
        column("confidence"),
        rank[kept] == 0,
        group,
        log1m_confidence=column("log1m_confidence"),
        nll=-column("log_probability"),
    )


def frequency_groups(counts: Any, n_groups: int = 10) -> NDArray[np.int64]:
    """Group tokens so that each group holds about an equal share of all occurrences, rarest tokens first.

    Args:
        counts: Occurrences of each token ``(V,)`` in the training data.
        n_groups: Number of groups; 10 for deciles.

    Returns:
        Group of each token ``(V,)``, to be indexed with the targets. A token belongs where the middle of its
        occurrences falls; one with more than a group's share leaves neighbours empty. Tokens that never occur are in
        group 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a count is negative or not finite, or all are 0.

    Example:
        >>> frequency_groups([1, 50, 9, 30, 10], n_groups=2).tolist()
        [0, 1, 0, 0, 0]
    """
    n_groups = check_count("n_groups", n_groups)
    array = as_numpy("counts", counts)
    if array.dtype.kind == "b":
        raise TypeError("counts must be numbers of occurrences, got booleans.")
    array = array.astype(np.float64)
    if array.ndim != 1:
        raise ValueError(f"counts must have shape (V,), got {array.shape}.")
    total = array.sum()
    if not (np.isfinite(total) and total > 0 and (array >= 0).all()):
        raise ValueError("counts must be finite, at least 0 and not all 0.")
    order = np.argsort(array, kind="stable")
    middle = (np.cumsum(array[order]) - array[order] / 2) / total
    groups = np.empty(array.size, np.int64)
    groups[order] = np.minimum((middle * n_groups).astype(np.int64), n_groups - 1)
    return groups
