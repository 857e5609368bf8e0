"""Counts and sums per group, outcome and cell: adding samples, merging, saving, summing over processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checks import as_numpy, check_choice, check_index
from ._binning import BLOCK, sum_by
from ._cells import Cells, cells
from ._inputs import check_bins, indices, log1m_confidences, losses, pairs

if TYPE_CHECKING:
    from typing_extensions import Self

FIELDS = ("counts", "confidence_sums", "variance_sums", "nll_counts", "nll_sums")
FORMAT = 1
MOST_SUMS = 2**26  # cells of a state, of both outcomes and all groups: 1.6 GB


class Accumulator:
    """The part of :class:`CalibrationState` that takes samples in; documented there."""

    def __init__(self, n_bins: int = 15, *, groups: Sequence[str] | None = None) -> None:
        self.n_bins = check_bins(n_bins)
        if isinstance(groups, str) or not all(isinstance(name, str) for name in groups or ()):
            raise TypeError(f"groups must be a sequence of names, got {groups!r}.")
        self.groups: tuple[str, ...] = ("all",) if groups is None else tuple(groups)
        if not self.groups or len(set(self.groups)) != len(self.groups):
            raise ValueError(f"groups must be different names, at least one, got {self.groups!r}.")
        shape = (len(self.groups), 2, self.cells.size)  # group, wrong or right, cell
        if np.prod(shape) > MOST_SUMS:
            raise ValueError(
                f"groups must be at most {MOST_SUMS // (2 * self.cells.size)} with n_bins={self.n_bins}, each takes "
                f"{48 * self.cells.size} bytes, got {len(self.groups)}."
            )
        self.counts: NDArray[np.int64] = np.zeros(shape, np.int64)
        self.confidence_sums: NDArray[np.float64] = np.zeros(shape)
        self.variance_sums: NDArray[np.float64] = np.zeros(shape)  # of c (1 - c)
        self.nll_counts: NDArray[np.int64] = np.zeros(len(self.groups), np.int64)
        self.nll_sums: NDArray[np.float64] = np.zeros(len(self.groups))

    @property
    def cells(self) -> Cells:
        """The numbering of the cells."""
        return cells(self.n_bins)

    def update(
        self, confidence: Any, correct: Any, group: Any = None, *, log1m_confidence: Any = None, nll: Any = None
    ) -> Self:
        """Add samples; returns the state itself.

        Args:
            confidence: Probabilities of the predicted classes, any shape, in [0, 1].
            correct: Whether the predictions were right, of the same shape.
            group: Index into ``groups`` of each sample, of the same shape; may be left out when there is one group.
            log1m_confidence: log(1 - confidence), of the same shape, where it is known without cancellation, as from
                :func:`kernel.head_statistics`: orders confidences that rounding made 1.0.
            nll: Negative log-likelihood of the label in nats, of the same shape, to be shown beside the errors.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If shapes or pandas indexes differ or a value is NaN or out of range; the state is then
                unchanged.
        """
        check_index(confidence=confidence, correct=correct, group=group, log1m_confidence=log1m_confidence, nll=nll)
        c, y = pairs(confidence, correct, empty=True)
        shape = tuple(np.shape(confidence))
        if group is None and len(self.groups) > 1:
            raise ValueError(f"group must be given: the state has the groups {self.groups}.")
        g = None if group is None else indices("group", group, shape, len(self.groups))
        log1m = None if log1m_confidence is None else log1m_confidences(log1m_confidence, c, shape)
        loss = None if nll is None else losses(nll, shape)
        size, per_group = self.counts.size, 2 * self.cells.size
        flat = [array.reshape(-1) for array in (self.counts, self.confidence_sums, self.variance_sums)]
        # Blocks stay in the caches unless there are so many cells that adding them up would cost more.
        step = max(BLOCK, size // 4)
        for start in range(0, c.size, step):
            part = slice(start, start + step)
            if log1m is None:
                rest, logit = 1 - c[part], None
            else:
                rest = np.exp(log1m[part])
                with np.errstate(divide="ignore"):
                    logit = np.log(c[part]) - log1m[part]
            index = self.cells.index(c[part], logit) + self.cells.size * y[part]
            if g is not None:
                index += per_group * g[part]
            flat[0] += np.bincount(index, minlength=size)
            flat[1] += sum_by(index, c[part], size)
            flat[2] += sum_by(index, c[part] * rest, size)
        if loss is not None:
            g = np.zeros(c.size, np.intp) if g is None else g
            self.nll_counts += np.bincount(g, minlength=len(self.groups))
            self.nll_sums += sum_by(g, loss, len(self.groups))
        return self

    def update_classes(self, probability: Any, label: Any, classes: Any) -> Self:
        """Add the probabilities of named classes, one group each: classwise calibration.

        Args:
            probability: Probabilities ``(..., K)`` of the K classes of ``groups``.
            label: The label of each sample ``(...)``.
            classes: Label value of each group ``(K,)``, for instance token ids.

        Raises:
            TypeError: If labels or classes are no integers.
            ValueError: If the shapes do not fit.
        """
        check_index(probability=probability, label=label)
        p, y, ids = as_numpy("probability", probability), as_numpy("label", label), as_numpy("classes", classes)
        for name, array in (("label", y), ("classes", ids)):
            if array.dtype.kind not in "iu":
                raise TypeError(f"{name} must hold integers, got dtype {array.dtype}.")
        expected = (*y.shape, len(self.groups))
        if p.shape != expected or ids.shape != expected[-1:]:
            raise ValueError(
                f"probability must have shape {expected} and classes {expected[-1:]}, got {p.shape} and {ids.shape}."
            )
        group = np.broadcast_to(np.arange(len(self.groups)), expected)
        return self.update(p.reshape(-1), (y[..., None] == ids).reshape(-1), group.reshape(-1))

    def merge(self, other: Self) -> Self:
        """Add another state of the same bins and groups; returns the state itself.

        Raises:
            TypeError: If ``other`` is no state.
            ValueError: If its bins or groups differ.
        """
        if not isinstance(other, Accumulator):
            raise TypeError(f"other must be a CalibrationState, got {type(other).__name__}.")
        if (other.n_bins, other.groups) != (self.n_bins, self.groups):
            raise ValueError(
                f"other must have n_bins={self.n_bins} and groups={self.groups}, "
                f"got n_bins={other.n_bins} and groups={other.groups}."
            )
        for name in FIELDS:
            array = getattr(self, name)
            array += getattr(other, name)
        return self

    def all_reduce(self, group: Any = None) -> Self:
        """Replace the state by its sum over the processes of a :mod:`torch.distributed` group; returns itself.

        Args:
            group: Process group; None for the default one. A group without a backend for CPUs (NCCL) sums on the device
                that ``init_process_group`` was told as ``device_id``, else on the current one: then call
                ``torch.cuda.set_device`` in each process first.

        Raises:
            ValueError: If the processes hold states of different bins or numbers of groups (seen as different sizes).
        """
        import torch
        from torch import distributed

        from kernel.vocab_parallel.host_numbers import place

        group = distributed.group.WORLD if group is None else group
        device = place(group)
        layout = torch.tensor([self.n_bins, len(self.groups)], device=device)
        highest, lowest = layout.clone(), layout.clone()
        distributed.all_reduce(highest, distributed.ReduceOp.MAX, group=group)
        distributed.all_reduce(lowest, distributed.ReduceOp.MIN, group=group)
        if not torch.equal(highest, lowest):
            raise ValueError(
                f"n_bins and groups must be the same in every process, got {self.n_bins} and {len(self.groups)} here."
            )
        for name in FIELDS:
            tensor = torch.from_numpy(getattr(self, name)).to(device)
            distributed.all_reduce(tensor, group=group)
            setattr(self, name, tensor.cpu().numpy())
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file in NumPy's ``.npz`` format, without pickle, under exactly this name."""
        arrays = {name: getattr(self, name) for name in FIELDS}
        with open(path, "wb") as file:
            np.savez_compressed(file, format=FORMAT, n_bins=self.n_bins, groups=np.array(self.groups), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a state written by :meth:`save`.

        Raises:
            ValueError: If the file is no saved state, or of another format.
        """
        with np.load(path, allow_pickle=False) as file:
            if "format" not in getattr(file, "files", ()) or int(file["format"]) != FORMAT:
                raise ValueError(f"path must name a calibration state of format {FORMAT}, got {os.fspath(path)!r}.")
            state = cls(int(file["n_bins"]), groups=[str(name) for name in file["groups"]])
            for name in FIELDS:
                array, like = file[name], getattr(state, name)
                if array.shape != like.shape or array.dtype != like.dtype:
                    raise ValueError(f"{name} must be {like.dtype} {like.shape}, got {array.dtype} {array.shape}.")
                setattr(state, name, array)
        return state

    def select(self, group: str) -> Self:
        """A new state of one group alone.

        Raises:
            ValueError: If there is no such group.
        """
        check_choice("group", group, self.groups)
        state = type(self)(self.n_bins, groups=[group])
        i = self.groups.index(group)
        for name in FIELDS:
            setattr(state, name, getattr(self, name)[i : i + 1].copy())
        return state

    @property
    def n(self) -> int:
        """Number of samples."""
        return int(self.counts.sum())

    def _samples(self) -> int:
        n = self.n
        if not n:
            raise ValueError("the state must hold at least one sample: nothing was added to it.")
        return n
