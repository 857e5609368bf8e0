"""Launches of a backward that leaves out tiles whose share of both gradients is certified to be small.

The certificate is that of :mod:`kernel.sparse_products`, for tiles of the forward's kernel (128 tokens x 256 columns on
Hopper) and with what the forward knows of them (:mod:`.tile_sums`) in place of dz::

    error of dH_n   at most  sum_t |a_n| |r_nt| sigma_t
    error of dW_t   at most  sum_n |a_n| |r_nt| |h_n|

over the tiles t that are left out, a the factor of a token's softmax in dz. Tiles with a target of the block in them
are computed, so that targets are exact, and so is what is constant in a tile (:mod:`.mean_field`).

- **Order.** Tokens are sorted by how many tiles are not small for them: a block then holds tokens as sure, or as
  unsure, as each other, and leaves out what all of them do. On text that halves what is computed.
- **Pilot.** The first tiles of the vocabulary (a thirty-second) are computed for all tokens. With the mean field of the
  others that is a gradient whose error has a bound, hence a least norm of the exact one: the tolerance is certified
  before the rest is computed. The weight's gradient is at least as long as its rows in the pilot.
- **Choice.** Of 64 thresholds of a tile's part of the error, the largest is taken whose tiles together stay within the
  tolerance. Which tiles remain is the one thing that the host waits for: it lists them (:mod:`.listed_rounds`), or,
  where they are many or nothing could be certified, goes back to the dense path.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..gradient_tolerance import GradientTolerance
from .arguments import Head, Held, Scalars, logit_arguments, product_arguments, tiling
from .compile_ahead import recording, run_kernel
from .gradient_rows import Upstream
from .head_tiles import HeadTiles, head_tiles
from .launch import blocks, launch_table, processors
from .listed_rounds import ListedTiles, Round, most_extra_blocks
from .listed_tiles import join_kernel, listed_gradient_kernel, listed_input_kernel, listed_weight_kernel
from .mean_field import MeanField
from .rows import KeptRows
from .run_backward import Gradients
from .run_strip import StripColumns, recompute_strip
from .tile_sums import LEVELS, TokenTiles, finish_tile_sums, input_error, new_tile_sums, scores, weight_error

__all__ = ["Sparse", "SparseTiles", "sparse_backward"]

_MANY = 0.5  # share of active tiles above which the dense path takes no more time
_HOPELESS = 0.4  # if even leaving out the smallest of so many exceeds the tolerance, the pilot is not worth it
_PILOT = 32  # a thirty-second of the vocabulary
_PILOT_BYTES = 2**25  # of its dz
_FEWEST = 4, 8  # blocks of tokens and tiles of the vocabulary, below which everything is computed
_MARGIN = 0.995  # of the tolerance: rounding of the bounds and of the least norm
_PER_OCTAVE = 4  # thresholds
_INDEX_STAGES = 2  # of a pipeline that reads in the list where its tiles lie: so much earlier
_SAFE = 1e-12, 1e12  # norms of rows at which float32 keeps the bounds


class Sparse(NamedTuple):
    """A tolerance above 0, and who is told what became of it."""

    tolerance: float
    told: GradientTolerance | None

    def serves(self, head: Head, scalars: Scalars, needs: tuple[bool, bool, bool]) -> bool:
        """Whether this path can certify anything for a loss; else its gradients are exact."""
        hidden, weight, _, _ = head
        table = launch_table(hidden.device, hidden.dtype)
        tile, row = table.logit_gradient.columns, table.logit_gradient.rows
        return (
            any(needs[:2])
            and not needs[2]
            and not scalars.softcap
            and not scalars.confidence_penalty
            and hidden.shape[0] >= _FEWEST[0] * row
            and weight.shape[0] // tile >= _FEWEST[1]
            and table.forward.rows == table.input_gradient.rows == row
            and table.forward.columns == tile
        )


class SparseTiles(NamedTuple):
    """What the forward leaves for a sparse backward."""

    sums: Tensor  # (2, N, tiles or more), finished
    wide: Tensor  # (N,) int32

    @classmethod
    def memory(cls, head: Head) -> Tensor:
        """Memory that the forward writes."""
        hidden, weight, _, _ = head
        columns = launch_table(hidden.device, hidden.dtype).logit_gradient.columns
        return new_tile_sums(hidden.shape[0], blocks(weight.shape[0], columns), hidden.device)

    @classmethod
    def finish(cls, sums: Tensor, head: Head, lse: Tensor, count: Tensor, tolerance: float) -> SparseTiles:
        """Make masses and spreads of it."""
        columns = launch_table(head.hidden.device, head.hidden.dtype).logit_gradient.columns
        tiles = head.weight.shape[0] // columns
        return cls(sums, finish_tile_sums(sums, lse, count, tiles, columns, tolerance / max(tiles, 1)))


def sparse_backward(
    head: Head,
    scalars: Scalars,
    upstream: Upstream,
    found: SparseTiles,
    sparse: Sparse,
    held: Held,
    workspace_bytes: int,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...] | None:
    """Gradients within the tolerance, or None where that would take no less time than the exact ones."""
    run = _SparseBackward(head, scalars, upstream, found, held, workspace_bytes, needs)
    chosen = run.choose(sparse.tolerance)
    if chosen is None:
        return None
    if sparse.told is not None:
        sparse.told.record(*chosen.certificates(needs))
    return run.compute(chosen)


class _Certificate(NamedTuple):
    active: float
    bound: float


class _Chosen(NamedTuple):
    listed: ListedTiles
    share: float
    bounds: tuple[float, float]

    def certificates(self, needs: tuple[bool, bool, bool]) -> list[_Certificate | None]:
        return [_Certificate(self.share, bound) if n else None for n, bound in zip(needs, self.bounds, strict=False)]


class _SparseBackward:
    """One backward: what it reads of each token is in the new order."""

    def __init__(
        self,
        head: Head,
        scalars: Scalars,
        upstream: Upstream,
        found: SparseTiles,
        held: Held,
        workspace_bytes: int,
        needs: tuple[bool, bool, bool],
    ) -> None:
        hidden, weight, _, _ = head
        self.scalars, self.needs, self.held = scalars, needs, held
        self.table, self.programs = launch_table(hidden.device, hidden.dtype), processors(hidden.device)
        launch = self.table.logit_gradient
        self.row, self.tile = launch.rows, launch.columns
        self.n, (self.vocab_size, self.hidden_size) = hidden.shape[0], weight.shape
        self.row_blocks, self.tiles = blocks(self.n, self.row), self.vocab_size // self.tile
        self.pilot = max(self.tiles // _PILOT, 1)
        order = found.wide.sort(stable=True).indices
        upstream = _reordered(upstream, order)
        columns = self.table.input_gradient.columns
        if blocks(self.hidden_size, columns) * columns - self.hidden_size >= columns // 2 > 16:
            columns //= 2
        self.columns = columns
        self.column_blocks = blocks(self.hidden_size, columns)
        extra = most_extra_blocks(self.programs, self.column_blocks) if needs[0] else 0
        self.memory = None
        if needs[0]:
            shape = (self.row_blocks + extra) * self.row, self.hidden_size
            self.memory = torch.zeros(shape, dtype=torch.float32, device=hidden.device)
        own = None if self.memory is None else self.memory[: self.row_blocks * self.row]
        self.state = Gradients(head, scalars, upstream, Held(), (needs[0], False, False), accumulator=own)
        self.upstream = upstream
        of = self.state.of
        factor = of.row_scale if of.mix is None else of.row_scale + of.mix[0]
        own_size = of.row_scale.abs() if of.mix is None else of.row_scale.abs() + of.mix[2].abs()
        self.row_mask = torch.arange(self.n, device=hidden.device) < self.state.number
        self.size = torch.where(self.row_mask, factor.abs() + own_size, 0.0)  # of a token's dz, at most
        self.of_tokens = TokenTiles(found.sums, order.int(), self.state.number, factor, self.tiles, self.row)
        self.head_tiles: HeadTiles = head_tiles(weight, self.tile)
        uniform = scalars.uniform(self.vocab_size) * self.tile
        self.mean_field = MeanField(self.of_tokens, self.head_tiles, of.row_scale, uniform, self.tile)
        elements = workspace_bytes // hidden.element_size() if held.workspace is None else held.workspace.numel()
        # of a round: one tile of the vocabulary at all tokens, or more
        self.capacity = max(min(elements // (self.row * self.tile), self.row_blocks * self.tiles), self.row_blocks)
        self.pilot_rows = self.rest = self.shared = None

    def choose(self, tolerance: float) -> _Chosen | None:
        """Compute the pilot and choose the tiles that are computed; None for all."""
        of, sigma, device = self.of_tokens, self.head_tiles.sigma, self.device
        length = torch.linalg.vector_norm(self.state.head.hidden, dim=1, dtype=torch.float32)
        of_input, of_weight = scores(of, length, sigma)
        rows = torch.arange(self.row_blocks, device=device) * self.row < self.state.number  # (blocks,) with tokens
        forced = self._forced()
        longest, longest_token = self.head_tiles.longest.amax(), torch.where(self.row_mask, length, 0.0).amax()
        ok = _safe(longest) & _safe(longest_token)
        outside = torch.zeros_like(forced)
        outside[:, self.pilot :] = rows.unsqueeze(1)
        allowed, before = [], self.state.number
        left = sigma.new_zeros(())
        if self.needs[0]:
            few = of_input.flatten().sort().values
            few = few[int(_HOPELESS * len(few))]
            level = torch.where(outside, (of_input > few).int(), LEVELS)
            of_small, left, *_ = input_error(of, sigma, level, 8).unbind(0)
            hopeless = of_small > tolerance * self.size.norm() * longest
            self.state.number = torch.where(hopeless, 0, before).to(torch.int32)
            ok = ok & ~hopeless
        pilot_rows = self._run_pilot()
        self.state.number = before
        if self.needs[0]:
            assert self.memory is not None
            norm = self.mean_field.norm_with(
                outside.to(torch.uint8), self.memory, self.state.head.weight, self.state.of.label, self._own()
            )
            allowed.append((norm - left) * (_MARGIN * tolerance))
        if self.needs[1]:
            unit = self.state.of.largest[0] * abs(self.state.factor)
            norm = torch.linalg.vector_norm(pilot_rows, dtype=torch.float32) / unit
            allowed.append(norm * (_MARGIN * tolerance))
        active, bounds = (forced | ~outside) & rows.unsqueeze(1), []
        for which, limit in zip([i for i in (0, 1) if self.needs[i]], allowed, strict=True):
            score = of_weight if which else of_input
            level = torch.where(forced | ~outside, LEVELS, _levels(score, limit))
            errors = weight_error(score, level) if which else input_error(of, sigma, level, LEVELS)
            fits = (errors <= limit) & (limit > 0)
            chosen = fits.int().cumprod(0).sum() - 1  # the last of the levels that fit; -1 if none does
            active |= (level > chosen) & rows.unsqueeze(1)
            error = torch.where(chosen >= 0, errors.gather(0, chosen.clamp(min=0).view(1))[0], 0.0)
            bounds.append(error / limit * (_MARGIN * tolerance))
            ok = ok & torch.isfinite(limit) & (chosen >= 0)
        self.left_out = (~active & rows.unsqueeze(1)).to(torch.uint8)
        return self._listed(active, rows, ok, bounds)

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.state.head.hidden.device

    def _forced(self) -> Tensor:
        """Tiles that hold the target of a token of the block, (blocks, tiles)."""
        device = self.device
        flat = torch.zeros(self.row_blocks * self.tiles + 1, dtype=torch.bool, device=device)
        tile = self.state.of.label.long() // self.tile
        block = torch.arange(self.n, device=device) // self.row
        inside = self.row_mask & (tile >= 0) & (tile < self.tiles)
        flat[torch.where(inside, block * self.tiles + tile, self.row_blocks * self.tiles)] = True
        return flat[:-1].view(self.row_blocks, self.tiles)

    def _own(self) -> Tensor:
        """What the pilot lacks of targets outside of it: the factor of their rows of the head, (N,)."""
        of, label = self.state.of, self.state.of.label
        own = (self.scalars.label_smoothing - 1) * of.row_scale
        own = own if of.mix is None else own + of.mix[2]
        outside = (label >= self.pilot * self.tile) & (label < self.tiles * self.tile) & self.row_mask
        return torch.where(outside, own, 0.0)

    def _strips(self) -> list[StripColumns]:
        """The pilot's columns in strips, and what lies behind the last whole tile."""
        end, row_bytes = self.pilot * self.tile, self.n * self.state.head.hidden.element_size()
        width = min(max(_PILOT_BYTES // row_bytes // self.tile, 1) * self.tile, end)
        strips = [StripColumns(start, min(width, end - start), 0, width) for start in range(0, end, width)]
        if self.vocab_size > self.tiles * self.tile:
            strips.append(StripColumns(self.tiles * self.tile, self.tile, 0, self.tile))
        return strips

    def _run_pilot(self) -> Tensor | None:
        """Add the pilot to the input's gradient; return its rows of the weight's."""
        weight, state = self.state.head.weight, self.state
        rows = weight.new_empty(self.pilot * self.tile, self.hidden_size) if self.needs[1] else None
        self.pilot_rows, strips = rows, self._strips()
        memory = weight.new_empty(self.n * strips[0].strip_columns)
        for strip in strips:
            behind = strip.run_start >= self.pilot * self.tile
            if behind:
                self.rest = dz = weight.new_empty(self.n, self.tile)
            else:
                dz = memory.view(self.n, strip.strip_columns)
            common = state.head, self.scalars, state.number, self.upstream.lse, state.of, dz
            recompute_strip(*common, strip, state.tiles)
            state.add_input(dz, strip, state.ones)
            if rows is not None and not behind:
                state.weight_gradient = rows
                state.add_weight(dz, state.head.hidden, strip, state.zeros)
        state.weight_gradient = None
        return rows

    def _listed(self, active: Tensor, rows: Tensor, ok: Tensor, bounds: list[Tensor]) -> _Chosen | None:
        """Wait for the choice while the mean field is computed, and list it."""
        numbers = torch.stack([rows.sum().float(), ok.float(), *bounds])
        on_host = active.to("cpu", non_blocking=True) if not active.is_cuda else _copied(active)
        found = numbers if not numbers.is_cuda else _copied(numbers)
        done = None
        if active.is_cuda:
            done = torch.cuda.Event()
            done.record()
        self._add_mean_field()
        if recording():
            return _Chosen(self._rounds(torch.ones(active.shape, dtype=torch.bool)), 1.0, (0.0, 0.0))
        if done is not None:
            done.synchronize()
        row_blocks, certified, *of = found.tolist()
        total = row_blocks * self.tiles
        share = float(on_host.sum()) / total if total else 1.0
        if not certified or share > _MANY:
            return None
        both = (of[0] if self.needs[0] else 0.0, of[-1] if self.needs[1] else 0.0)
        return _Chosen(self._rounds(on_host), share, both)

    def _rounds(self, active: Tensor) -> ListedTiles:
        extra = most_extra_blocks(self.programs, self.column_blocks)
        return ListedTiles(active.numpy(), self.capacity, self.pilot, extra)

    def _add_mean_field(self) -> None:
        if self.memory is not None:
            self.mean_field.add_input(self.left_out, self.memory)
        if self.needs[1]:
            self.shared = self.mean_field.of_weight(self.left_out, self.state.head.hidden)

    def compute(self, chosen: _Chosen) -> tuple[Tensor | None, ...]:
        """Compute the listed tiles and finish."""
        state, gradient = self.state, None
        if self.needs[1]:
            weight = state.head.weight
            gradient = weight.new_empty(weight.shape) if self.held.gradient is None else self.held.gradient
            assert self.pilot_rows is not None
            gradient[: len(self.pilot_rows)].copy_(self.pilot_rows)
            self.pilot_rows = None
            state.weight_gradient = gradient
            if self.rest is not None:
                rest = self._strips()[-1]
                state.add_weight(self.rest, state.head.hidden, rest, state.zeros)
        listed = chosen.listed
        entry_of, tile_of, block_of = _on_device([listed.entry_of, listed.tile_of, listed.block_of], self.device)
        size = self.capacity * self.row * self.tile
        held = self.held.workspace
        memory = held[:size] if held is not None and held.numel() >= size else state.head.weight.new_empty(size)
        dz = memory.view(self.capacity * self.row, self.tile)
        for part in listed.rounds:
            if part.number:
                self._gradient(dz, tile_of, block_of, part)
            if gradient is not None:
                self._weight(dz, gradient, entry_of, block_of, part)
            if part.number and self.memory is not None:
                self._input(dz, listed, part)
        return state.finish()

    def _gradient(self, dz: Tensor, tile_of: Tensor, block_of: Tensor, part: Round) -> None:
        head, launch, of = self.state.head, self.table.logit_gradient, self.state.of
        run_kernel(
            listed_gradient_kernel,
            (self.programs,),
            count=self.state.number,
            lse=self.upstream.lse,
            row_scale=of.row_scale,
            mix=of.mix,
            label=of.label,
            tile_of=tile_of,
            block_of=block_of,
            dz=self.state.tiles(dz, launch.rows, launch.columns // launch.parts),
            dz_rows=dz.shape[0],
            first=part.first,
            number=part.number,
            **logit_arguments(head.hidden, head.weight, head.bias, self.scalars),
            label_smoothing=self.scalars.label_smoothing,
            uniform=self.scalars.uniform(self.vocab_size),
            MIXED=of.mix is not None,
            **product_arguments(self.state.tiles, head.hidden, head.weight, launch),
            **tiling(launch),
        )

    def _input(self, dz: Tensor, listed: ListedTiles, part: Round) -> None:
        by_block = listed.by_block(part)
        slot_of, tile_of, piece, join = _on_device(list(by_block), self.device)
        joins = len(by_block.join)
        weight, launch, tiles = self.state.head.weight, self.table.input_gradient, self.state.tiles
        assert self.memory is not None
        run_kernel(
            listed_input_kernel,
            (self.programs,),
            dz=tiles(dz, launch.rows, launch.depth),
            weight=tiles(weight, launch.depth, self.columns),
            accumulator=self.memory,
            slot_of=slot_of,
            tile_of=tile_of,
            piece=piece,
            pieces=len(by_block.piece),
            own_blocks=self.row_blocks,
            dz_rows=dz.shape[0],
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            weight_row_stride=weight.stride(0),
            weight_column_stride=weight.stride(1),
            TILE=self.tile,
            BLOCK_ROWS=launch.rows,
            BLOCK_COLUMNS=self.columns,
            BLOCK_VOCAB=launch.depth,
            DESCRIPTOR=tiles.descriptor,
            **tiling(replace(launch, stages=launch.stages + _INDEX_STAGES)),
        )
        if joins:
            rows, columns = min(self.row, 32), min(self.columns, 128)
            run_kernel(
                join_kernel,
                (joins, self.row // rows, blocks(self.hidden_size, columns)),
                accumulator=self.memory,
                join=join,
                hidden_size=self.hidden_size,
                BLOCK_ROWS=self.row,
                ROWS=rows,
                COLUMNS=columns,
            )

    def _weight(self, dz: Tensor, gradient: Tensor, entry_of: Tensor, block_of: Tensor, part: Round) -> None:
        hidden, launch, tiles = self.state.head.hidden, self.table.weight_gradient, self.state.tiles
        columns = min(launch.rows * launch.columns // self.tile, launch.columns)  # of TILE rows: as many sums
        run_kernel(
            listed_weight_kernel,
            (self.programs,),
            dz=tiles(dz, launch.depth, self.tile),
            hidden=tiles(hidden, launch.depth, columns),
            gradient=tiles(gradient, self.tile, columns // launch.parts),
            shared=self.shared,
            scale=self.state.of.largest,
            entry_of=entry_of,
            block_of=block_of,
            first=part.first,
            first_tile=part.first_tile,
            tiles=part.tiles,
            dz_rows=dz.shape[0],
            n=self.n,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            hidden_row_stride=hidden.stride(0),
            gradient_row_stride=gradient.stride(0),
            constant=self.state.factor,
            TILE=self.tile,
            ROWS=self.row,
            BLOCK_COLUMNS=columns,
            BLOCK_ROWS=launch.depth,
            DESCRIPTOR=tiles.descriptor,
            **tiling(replace(launch, stages=launch.stages + _INDEX_STAGES)),
        )


def _on_device(arrays: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """The arrays on the device, in one copy, each aligned."""
    padded = [blocks(max(array.size, 1), 4) * 4 for array in arrays]
    memory = torch.zeros(sum(padded), dtype=torch.int32, pin_memory=device.type == "cuda")
    starts = [sum(padded[:i]) for i in range(len(padded))]
    for start, array in zip(starts, arrays, strict=True):
        memory[start : start + array.size] = torch.from_numpy(array.reshape(-1))
    memory = memory.to(device, non_blocking=True)
    return [memory[start : start + size] for start, size in zip(starts, padded, strict=True)]


def _levels(score: Tensor, limit: Tensor) -> Tensor:
    """How large a tile's error is beside what is allowed: 0 for next to nothing, LEVELS for all of it or no number."""
    share = (score / limit).nan_to_num(nan=math.inf, posinf=math.inf)
    return (LEVELS - 1 + (share.log2() * _PER_OCTAVE).ceil()).clamp(0, LEVELS).int()


def _reordered(upstream: Upstream, order: Tensor) -> Upstream:
    """The same tokens in another packed order."""
    rows = upstream.rows
    new = torch.empty_like(order)
    new[order] = torch.arange(len(order), device=order.device)
    position = torch.where(rows.position >= 0, new[rows.position.clamp(0, len(order) - 1).long()], -1)
    moved = KeptRows(rows.number, rows.source[order], position.to(torch.int32))
    entropy = None if upstream.entropy is None else upstream.entropy[order]
    return upstream._replace(lse=upstream.lse[order], entropy=entropy, rows=moved)


def _safe(size: Tensor) -> Tensor:
    return (size > _SAFE[0]) & (size < _SAFE[1])


def _copied(x: Tensor) -> Tensor:
    """The numbers on the host, once a later event has come."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
