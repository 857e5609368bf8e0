"""L-BFGS whose steps never wait for the host, so that a GPU replays each as one graph.

:class:`torch.optim.LBFGS` reads about thirty scalars back an iteration, which costs 9 ms a step beside a GPU that is
busy for a tenth of it. Here a step is one evaluation and a fixed sequence of operations: what depends on the outcome
(was the step accepted, is its curvature positive) is chosen by masks. The direction comes from the compact form of the
inverse Hessian, H = gamma I + [S Y] M [S Y]^T (Byrd, Nocedal and Schnabel 1994, theorem 2.2), which reads the memory
twice instead of forty times: once for all products with it, once for the direction.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_ARMIJO = 1e-4  # share of the predicted fall that a step has to bring
_CURVATURE = 1e-8  # least cosine between a step and the change of the gradient that enters the memory
_WARM_UP = 3  # evaluations before a capture, as torch.cuda.graphs asks for
# Long products are summed in parts of this many entries, in parallel; the parts then in float64.
_PART = 1024


class HostLBFGS:
    """torch's L-BFGS with its strong Wolfe line search.

    Args:
        parameters: What to train.
        loss: Called without arguments, returns the scalar loss of the parameters as they are.
        history: Pairs of steps and gradient changes that are kept.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor], *, history: int = 10) -> None:
        self._parameters, self._loss, self._history = list(parameters), loss, history
        self.restart()
        self.value = self._closure().item()  # the loss, in nats

    def advance(self, steps: int) -> float:
        """Make that many iterations; the loss after them."""
        self._optimiser.param_groups[0].update(max_iter=steps, max_eval=10 * steps)
        self._optimiser.step(self._closure)
        self.value = self._closure().item()
        return self.value

    def restart(self) -> None:
        """Forget the memory, so that the next direction is the gradient's."""
        self._optimiser = torch.optim.LBFGS(
            self._parameters,
            history_size=self._history,
            line_search_fn="strong_wolfe",
            tolerance_grad=0.0,
            tolerance_change=0.0,
        )

    def finish(self) -> None:
        """The parameters and their ``grad`` are those of the last point."""

    def _closure(self) -> Tensor:
        for parameter in self._parameters:
            parameter.grad = None
        loss = self._loss()
        loss.backward()
        return loss


class DeviceLBFGS:
    """Minimise a loss over parameters by L-BFGS with a backtracking line search.

    Args:
        parameters: What to train; they become views of one flat buffer.
        loss: Called without arguments, returns the scalar loss of the parameters as they are. On a GPU it must be
            capturable: no synchronisation, always the same shapes.
        history: Pairs of steps and gradient changes that are kept.

    Example:
        >>> x = nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
        >>> optimiser = DeviceLBFGS([x], lambda: (x - 1).square().sum() + x[0] ** 4)
        >>> optimiser.advance(30) < 1.0
        True
    """

    def __init__(self, parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor], *, history: int = 10) -> None:
        self._parameters, self._loss, self._history = list(parameters), loss, history
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters])
        self._trial = flat.clone()
        start = 0
        for parameter in self._parameters:
            parameter.data = self._trial[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        size, padded = flat.numel(), -(-flat.numel() // _PART) * _PART
        small = {"dtype": torch.float64, "device": flat.device}
        self._x, self._direction = flat, torch.zeros_like(flat)
        # Rings of steps and of changes of the gradient, with one place more than pairs: the next pair is written there
        # before it is known whether it counts. Then the last step, its change, and the gradient at x: one matrix, so
        # that one product with its last rows gives all inner products, and one with weights the direction.
        places = history + 1
        self._memory = flat.new_zeros(2 * places + 3, padded)
        self._rings, self._recent = self._memory[:-3].view(2, places, padded), self._memory[-3:]
        self._step_made, self._change, self._gradient = self._recent[:, :size]
        self._sy, self._yy = torch.zeros(places, places, **small), torch.zeros(places, places, **small)
        # below every loss, so that no step before the start is accepted; float64, as a loss may be
        self._value = torch.full((), -torch.inf, **small)
        self._slope, self._length = flat.new_zeros(()), flat.new_ones(())
        self._scale = torch.ones((), **small)  # gamma
        self._count = torch.zeros((), dtype=torch.int64, device=flat.device)  # pairs that were stored
        self._ages = torch.arange(1, places, device=flat.device)
        self._graph = self._captured() if flat.is_cuda else None
        self._start()

    def advance(self, steps: int) -> float:
        """Make that many evaluations; the loss at the best point so far."""
        for _ in range(steps):
            if self._graph is None:
                self._step()
            else:
                self._graph.replay()
        self.value = self._value.item()
        return self.value

    def restart(self) -> None:
        """Forget the memory, so that the next direction is the gradient's."""
        for state in (self._rings, self._sy, self._yy, self._count):
            state.zero_()
        self._scale.fill_(1.0)
        torch.neg(self._gradient, out=self._direction)
        self._slope.copy_(self._gradient.dot(self._direction))
        self._length.copy_((1 / self._gradient.abs().sum()).clamp_max(1.0))

    def finish(self) -> None:
        """Leave the parameters and their ``grad`` at the best point, and drop all else."""
        start, best, gradient = 0, self._x.clone(), self._gradient.clone()
        for parameter in self._parameters:
            part = slice(start, start + parameter.numel())
            parameter.data, parameter.grad = best[part].view_as(parameter), gradient[part].view_as(parameter)
            start += parameter.numel()
        self.__dict__.clear()  # a graph keeps its memory until nothing refers to it

    def _start(self) -> None:
        self._trial.copy_(self._x)
        value, gradient = self._evaluate()
        self._value.copy_(value)
        self._gradient.copy_(gradient)
        self.value = value.item()  # the loss, in nats
        self.restart()

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        """A step as a graph; None, and a warning, where something in the loss cannot be captured."""
        with torch.cuda.device(self._x.device):  # streams and graphs take the current one
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    self._step()  # the direction is 0 so far: no step moves the point
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # torch's own stream of captures would lie where the first one in this process was made.
                with torch.cuda.graph(graph, stream=stream):
                    self._step()
            except RuntimeError as error:
                first = error.__context__ or error
                warnings.warn(f"steps run without a graph, several times slower: {first}", RuntimeWarning, stacklevel=3)
                return None
        return graph

    def _evaluate(self) -> tuple[Tensor, Tensor]:
        """Loss and flat gradient at the trial point."""
        loss = self._loss()
        gradients = torch.autograd.grad(loss, self._parameters)
        return loss.detach(), torch.cat([gradient.reshape(-1) for gradient in gradients])

    def _step(self) -> None:
        """One evaluation: accept or shorten the step, store the pair, find the next direction. No branches."""
        with torch.no_grad():
            torch.addcmul(self._x, self._direction, self._length, out=self._trial)
        value, gradient = self._evaluate()
        with torch.no_grad():
            # In the loss's own precision, where one that did not change counts as fallen; False for nan.
            accepted = value <= (self._value + _ARMIJO * self._length * self._slope).to(value.dtype)
            self._length.copy_(torch.where(accepted, 1.0, self._shorter(value)))
            torch.sub(self._trial, self._x, out=self._step_made).masked_fill_(~accepted, 0.0)
            torch.sub(gradient, self._gradient, out=self._change).masked_fill_(~accepted, 0.0)
            torch.where(accepted, self._trial, self._x, out=self._x)
            torch.where(accepted, gradient, self._gradient, out=self._gradient)
            self._value.copy_(torch.where(accepted, value, self._value))
            self._turn(self._remember())

    def _shorter(self, value: Tensor) -> Tensor:
        """Length at which the parabola through value and slope here and ``value`` there is least, within bounds."""
        length = self._length
        parabola = -0.5 * self._slope * length.square() / (value - self._value - self._slope * length)
        return torch.nan_to_num(parabola, nan=0.0).clamp(0.1 * length, 0.5 * length)

    def _remember(self) -> Tensor:
        """Store the last pair if its curvature is positive; the memory times the gradient, ``(2 places + 3,)``."""
        places, slot = self._history + 1, self._count.remainder(self._history + 1).view(1)
        self._rings.index_copy_(1, slot, self._recent[:2].unsqueeze(1))
        parts = self._memory.view(len(self._memory), -1, _PART).transpose(0, 1)
        products = (parts @ parts[:, -3:].mT).sum(0, dtype=torch.float64)  # with the step, the change, the gradient
        s, y = products[:-3].view(2, places, 3)
        for square, line, column in ((self._sy, y[:, 0], s[:, 1]), (self._yy, y[:, 1], y[:, 1])):
            square.index_copy_(0, slot, line.unsqueeze(0))
            square.index_copy_(1, slot, column.unsqueeze(1))
        length, curvature, size = products[-3, 0], products[-3, 1], products[-2, 1]
        good = curvature > _CURVATURE * (length * size).sqrt()
        self._scale.copy_(torch.where(good, curvature / size, self._scale))
        self._count.add_(good)
        return products[:, 2]

    def _turn(self, products: Tensor) -> None:
        """Direction -H g, with the pairs from the oldest to the newest; -gamma g where that does not go down."""
        order = (self._count + self._ages).remainder(self._history + 1)
        sy = self._sy.index_select(0, order).index_select(1, order)
        yy = self._yy.index_select(0, order).index_select(1, order)
        own = sy.diagonal()
        upper = sy.triu() + torch.diag_embed((own <= 0).double())  # pairs that are not there yet
        p, q = products[:-3].view(2, -1).index_select(1, order)
        u = torch.linalg.solve_triangular(upper, p.unsqueeze(1), upper=True)
        middle = own.unsqueeze(1) * u + self._scale * (yy @ u - q.unsqueeze(1))
        v = torch.linalg.solve_triangular(upper.T, middle, upper=False)
        weights = torch.zeros_like(products)
        weights[-1].sub_(self._scale)
        steepest = weights.clone()
        weights[:-3].view(2, -1).index_copy_(1, order, torch.cat([-v, self._scale * u], dim=1).T)
        weights = torch.where(weights.dot(products) < 0, weights, steepest)  # False for nan
        memory = self._memory[:, : self._x.numel()]
        torch.mv(memory.T, weights.to(memory.dtype), out=self._direction)
        self._slope.copy_(self._direction.dot(self._gradient).clamp_max(0.0))
