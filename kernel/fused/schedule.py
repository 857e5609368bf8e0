"""How the backward cuts the vocabulary: widths of the strips, places of their dz, columns that the forward keeps.

Two memories serve: the workspace, bounded by the caller, and the weight's gradient itself, V x D, whose rows the
backward writes from the last to the first of the kept columns, then strip by strip from the first row on. Both hold
columns of the forward's softmax: the last ones lie in the gradient's memory, in strips of N rows one below the other
(:class:`.plan.KeptColumns`), so that the rows of a strip are written where only strips lie that were used before, or
nothing. With many strips that is a share of D / N of the columns, or all but one strip, whichever is less, at no cost
in peak memory. The columns before them lie in the workspace. Once they are used the other strips begin: a strip of dz
(N x columns) goes to the end of what is not yet written of the gradient while it fits there, else to the workspace,
where kept columns are no longer needed. Where all columns fit the workspace they may lie there alone, in one piece:
that takes the fewest launches, and is done where it saves more than a percent of the time. Large heads keep some in the
gradient's memory with any budget, and so take less than they may. Each kept column saves the backward one
product: the operations fall from 8 N V D to 6 N V D as the share kept goes to one. The last columns are the rare words
of most vocabularies: what keeping costs in accuracy costs least there.

Of bfloat16 inputs without a softcap columns may be kept in one byte (:mod:`.byte_columns`), and are where two bytes do
not hold everything and the plan is faster by the model (:mod:`.strip_times`, :mod:`.byte_plans`). Strips of them become
dz in the workspace, beside what is still kept there, or, as soon as a wider one fits there, in what is free of the
gradient's memory: first some that lie where dz of the others will be; then those of the gradient's memory, which holds
a share of about 2 D / N, from the last to the first; then those of the workspace; then, where all columns are kept and
memory is left, the first ones, in two bytes and without dz. Whatever is left is computed anew in the whole workspace.

Where the backward must not change what was kept (``consumed=False``: an operator's own inputs), only the workspace
holds kept columns, and dz takes memory beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from .default_workspace import LEAST_DEFAULT_BYTES
from .launch import LaunchTable
from .plan import KeptColumns, Plan, Series
from .planner import Planner
from .strip_times import StripTimes

__all__ = ["Schedule", "Strip", "every_kind", "schedule"]

_WORTHWHILE = 4  # tiles of logits: to keep fewer saves no time, and their rounding errors may all point one way
# Nobody chose the default, and who chose no more than the least default has little memory. Of both only what pays is
# used, and what pays for its launches, of which there are as many where most tokens are ignored. The first columns, the
# frequent words of most vocabularies, are not kept in two bytes: there the products round the kept probabilities and
# the hidden states scaled for them, which in these rows of the head would be seen in the whole. Bytes become dz first,
# as logits do.
_RECOMPUTED = 16  # one in so many columns
# Of columns in bytes the gradient's memory holds most with any workspace, of which more only makes strips wider. Of
# such plans, if they take little more time than the fastest, a percent of the time is worth two of the memory.
_NEAR_IN_BYTES, _MEMORY_IN_BYTES = 1.012, 1 / 2
# Of the default of more tokens, which is larger, less is used only where that takes next to no time: the model has too
# little for what a larger workspace saves (256 MiB for 128, on an H200), most at vocabulary 248320 with 16384 tokens.
_NEAR_OF_MANY = 1.005
_SIZES = (4, 5, 6, 7)  # of workspaces that are tried, in quarters of a tile of dz, times powers of two


@dataclass(frozen=True)
class Strip:
    """Columns ``start ... start + columns - 1``; ``padded`` to whole tiles in memory."""

    start: int
    columns: int
    padded: int
    kept: bool
    offset: int | None  # first element of dz in the weight gradient's memory; None: in the workspace
    # Strips that follow each other at one place: of few kept tokens one launch does several (tiles.merged_strip).
    run_start: int = 0
    run_columns: int = 0


@dataclass(frozen=True)
class Schedule:
    """What is kept, the strips in order and the memory they need, in elements of the inputs' dtype."""

    strips: tuple[Strip, ...]  # of the columns whose dz is made for itself: kept ones only if not consumed
    kept: tuple[KeptColumns, ...]  # as the backward takes them, the last columns first
    consumed: bool  # whether the backward writes where they lie
    # Whether the scaled hidden states begin that memory. Else they take the place of the packed ones where no strip
    # follows, or have memory of their own.
    scaled_in_gradient: bool
    workspace: int  # for dz; if consumed where kept columns were
    held: int  # that the forward hands to the backward, outside the gradient: kept columns, if consumed all of it
    memory: int  # outside the gradients: workspace, kept columns and scaled hidden states
    microseconds: float  # of the backward, by the model of .strip_times

    @property
    def columns(self) -> int:
        """How many columns are kept, in whole tiles."""
        return sum(kept.columns for kept in self.kept)

    @property
    def in_gradient(self) -> bool:
        """Whether some are kept in the weight gradient's memory."""
        return any(kept.in_gradient for kept in self.kept)


@lru_cache(maxsize=1024)  # sequences of any length: one plan for each number of tokens
def schedule(
    n: int,
    vocab_size: int,
    hidden_size: int,
    itemsize: int,
    workspace_bytes: int,
    *,
    keep: bool,
    direct: bool,
    consumed: bool,
    weight_gradient: bool,
    processors: int,
    table: LaunchTable,
    in_bytes: bool = False,
    sums: bool = False,
    default: bool = False,
) -> Schedule:
    """Choose strips and kept columns for a budget; one strip of one tile is used even where the budget is smaller.

    Time and memory decide (:meth:`.planner.Planner.best`). By the model a larger budget never raises the time by more
    than two percent: rounds of tiles do not fit all widths alike.

    Args:
        n: Tokens N.
        vocab_size: V.
        hidden_size: D.
        itemsize: Bytes of an element of the inputs.
        workspace_bytes: Budget of dz, kept columns and scaled hidden states outside the gradients.
        keep: Whether columns may be kept at all.
        direct: Whether kept columns enter the products as they are, with hidden states scaled for them.
        consumed: Whether the backward may write where columns are kept, which is then also in the weight's gradient.
        weight_gradient: Whether the weight needs a gradient.
        processors: Multiprocessors of the device.
        table: Launch parameters.
        in_bytes: Whether columns may also be kept in bytes.
        sums: Whether the weight gradient's memory holds sums over other tokens already, and so nothing else.
        default: Whether nobody chose the budget.
    """
    modest = default or workspace_bytes <= LEAST_DEFAULT_BYTES
    kinds = {"direct": direct, "weight_gradient": weight_gradient, "in_bytes": in_bytes}
    times = StripTimes(n, vocab_size, hidden_size, table, processors, **kinds)
    worthwhile = n * vocab_size >= _WORTHWHILE * times.tile * table.logit_gradient.rows
    first = vocab_size // _RECOMPUTED if modest else 0
    options = {"keep": keep and worthwhile, "consumed": consumed, "first": first, "sums": sums}
    planner = Planner(vocab_size, itemsize, times, **options)
    plan = planner.plan(workspace_bytes)
    return _listed(_smaller(plan, planner, workspace_bytes) if modest else plan, planner)


def _smaller(whole: Plan, planner: Planner, workspace_bytes: int) -> Plan:
    """The best plan of smaller workspaces and of all of this one, which ``whole`` uses."""
    tile_bytes = planner.n * planner.itemsize * planner.tile
    tiles = workspace_bytes // tile_bytes
    sizes = sorted({size << shift >> 2 for shift in range(tiles.bit_length() + 1) for size in _SIZES})
    plans = [*(planner.plan(tile_bytes * size) for size in sizes if size < tiles), whole]
    if workspace_bytes > LEAST_DEFAULT_BYTES:
        most = _NEAR_OF_MANY * min(map(planner.microseconds, plans))
        return planner.best([plan for plan in plans if planner.microseconds(plan) <= most])
    best = planner.best(plans)
    if not best.in_bytes:
        return best
    most = max(_NEAR_IN_BYTES * min(map(planner.microseconds, plans)), planner.microseconds(best))
    coded = [plan for plan in plans if plan.in_bytes and planner.microseconds(plan) <= most]
    return planner.best(coded, _MEMORY_IN_BYTES)


def every_kind(
    n: int,
    vocab_size: int,
    hidden_size: int,
    *,
    keep: bool,
    direct: bool,
    in_bytes: bool,
    processors: int,
    table: LaunchTable,
) -> list[Schedule]:
    """Schedules that together launch every kernel that any schedule launches, whatever its tokens and its budget.

    Nothing kept, some columns, and all of them; in at least two strips, of which the last may be clipped; and in bytes.
    """
    times = StripTimes(n, vocab_size, hidden_size, table, processors, direct=direct, weight_gradient=False)
    planner, tile = Planner(vocab_size, 2, times, keep=keep, consumed=True), times.tile
    width = max(planner.vocab // 2 // tile, 1) * tile
    counts = sorted({0, tile, planner.vocab}) if keep else [0]
    kept = [(KeptColumns(planner.vocab - count, count, 1, False),) if count else () for count in counts]
    plans = [planner.build(width, columns, scaled_in_gradient=False) for columns in kept]
    if keep and in_bytes:
        coded = KeptColumns(planner.vocab - tile, tile, 1, False, True, n * tile)
        plans.append(planner.build(width, (coded,), scaled_in_gradient=False, decoded=tile))
    return [_listed(plan, planner) for plan in plans]


def _listed(plan: Plan, planner: Planner) -> Schedule:
    """A plan with its strips listed, those at the vocabulary's end clipped, each told the run it belongs to."""
    strips: list[tuple[int, Series]] = [(start, s) for s in plan.series for start in s.starts()]
    vocab_size = planner.vocab_size

    def run(item: tuple[int, Series]) -> tuple[int, int | None, int]:
        """Same for strips that one launch can do: a kept or a clipped strip is alone."""
        start, s = item
        alone = s.kept or start + s.padded > vocab_size
        return s.padded, s.offset, start if alone else -1

    listed: list[Strip] = []
    for _, members in groupby(strips, run):
        group = list(members)
        first, columns = group[0][0], sum(s.padded for _, s in group)
        for start, s in group:
            clipped = min(s.padded, vocab_size - start)
            listed.append(Strip(start, clipped, s.padded, s.kept, s.offset, first, columns))
    return Schedule(
        strips=tuple(listed),
        kept=plan.kept,
        consumed=planner.consumed,
        scaled_in_gradient=plan.scaled_in_gradient,
        workspace=plan.workspace,
        held=plan.held,
        memory=plan.memory,
        microseconds=plan.time,
    )
