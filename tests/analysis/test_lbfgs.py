"""L-BFGS without branches against scipy's, against torch's, and on steps that must be refused."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from analysis.bottleneck import FitConfig, SoftmaxBottleneck
from analysis.bottleneck._dense import DenseLoss
from analysis.bottleneck._lbfgs import DeviceLBFGS, HostLBFGS
from analysis.bottleneck._training import _data
from analysis.teachers import TeacherConfig


def head_and_loss(config):
    head = SoftmaxBottleneck(config)
    _, training, _ = _data(config.teacher)
    return head, DenseLoss(head, training)


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


class TestDirection:
    def test_it_is_the_two_loop_recursion(self):
        """Nocedal and Wright, algorithm 7.4, over the accepted steps of positive curvature."""
        x = nn.Parameter(torch.linspace(-1.5, 2, 9, dtype=torch.float64))
        minimiser, pairs = DeviceLBFGS([x], lambda: rosenbrock(x), history=4), []
        for _ in range(40):
            before, gradient = minimiser._x.clone(), minimiser._gradient.clone()
            minimiser.advance(1)
            s, y = minimiser._x - before, minimiser._gradient - gradient
            if s.dot(y) > 0:
                pairs = [*pairs, (s, y)][-4:]
            if not pairs:
                continue
            q, alphas = minimiser._gradient.clone(), []
            for s, y in reversed(pairs):
                alphas.append(s.dot(q) / s.dot(y))
                q -= alphas[-1] * y
            s, y = pairs[-1]
            q *= s.dot(y) / y.dot(y)
            for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
                q += s * (alpha - y.dot(q) / s.dot(y))
            torch.testing.assert_close(minimiser._direction, -q, rtol=1e-6, atol=1e-9)

    def test_a_valley_is_followed_to_its_end(self):
        x = nn.Parameter(torch.linspace(-1.5, 2, 9, dtype=torch.float64))
        minimiser = DeviceLBFGS([x], lambda: rosenbrock(x))
        assert minimiser.advance(400) < 1e-20
        minimiser.finish()
        np.testing.assert_allclose(x.detach(), 1, atol=1e-8)
        assert x.grad is not None
        assert x.grad.norm() < 1e-8


class TestSteps:
    def test_a_step_that_raises_the_loss_or_leaves_its_domain_is_not_taken(self):
        x = nn.Parameter(torch.tensor([1e-3], dtype=torch.float64))
        minimiser = DeviceLBFGS([x], lambda: (x - x.log()).sum())  # nan for x < 0
        values = [minimiser.value, *(minimiser.advance(1) for _ in range(60))]
        falls = -np.diff(values)
        assert (falls >= 0).all()
        assert (falls[:10] == 0).any()  # some were refused
        assert values[-1] == pytest.approx(1, abs=1e-12)

    def test_no_step_waits_for_the_host(self):
        """Fake tensors have no values: reading one, which would break a graph's capture, raises."""
        x = nn.Parameter(torch.linspace(-1.5, 2, 9))
        minimiser = DeviceLBFGS([x], lambda: rosenbrock(x))
        with FakeTensorMode(allow_non_fake_inputs=True):
            minimiser._step()
            with pytest.raises(DataDependentOutputException):
                minimiser.advance(1)

    def test_restart_forgets_and_goes_down_the_gradient(self):
        x = nn.Parameter(torch.linspace(-1.5, 2, 9, dtype=torch.float64))
        minimiser = DeviceLBFGS([x], lambda: rosenbrock(x))
        minimiser.advance(15)
        minimiser.restart()
        torch.testing.assert_close(minimiser._direction, -minimiser._gradient)
        assert minimiser.advance(400) < 1e-20

    def test_parameters_of_several_shapes_end_as_their_own_memory(self):
        parameters = [nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (4,), (700, 2))]
        minimiser = DeviceLBFGS(
            parameters, lambda: torch.stack([(p - i).square().sum() for i, p in enumerate(parameters)]).sum()
        )
        assert minimiser.advance(20) < 1e-9
        minimiser.finish()
        for i, parameter in enumerate(parameters):
            torch.testing.assert_close(parameter.data, torch.full_like(parameter, i), atol=1e-5, rtol=0)


class Capture:
    """Stands for torch.cuda on a machine without a GPU: steps are captured, or their capture fails, where it would."""

    def __init__(self, monkeypatch, *, body=None, end=None):
        self.body, self.end, self.replays, self.steps, self.minimiser = body, end, 0, 0, None
        step, start = DeviceLBFGS._step, DeviceLBFGS._start

        def counted(minimiser):
            self.steps += 1
            step(minimiser)

        def captured_first(minimiser):  # what the constructor does before the start, if the parameters are on a GPU
            self.minimiser = minimiser
            minimiser._graph = minimiser._captured()
            start(minimiser)

        monkeypatch.setattr(DeviceLBFGS, "_step", counted)
        monkeypatch.setattr(DeviceLBFGS, "_start", captured_first)
        self.current, self.capture_stream = ["another GPU"], None
        monkeypatch.setattr(torch.cuda, "device", self.device)
        monkeypatch.setattr(torch.cuda, "Stream", self.stream)
        monkeypatch.setattr(torch.cuda, "current_stream", self.stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self.replay))
        monkeypatch.setattr(torch.cuda, "graph", self.graph)

    @contextlib.contextmanager
    def device(self, device):
        self.current.append(device)
        yield
        self.current.pop()

    def stream(self):
        return SimpleNamespace(wait_stream=lambda other: None, device=self.current[-1])

    @contextlib.contextmanager
    def graph(self, graph, stream=None):
        self.capture_stream = stream
        try:
            yield
            if self.body:
                raise RuntimeError(self.body)
        finally:
            if self.end:
                raise RuntimeError(self.end)

    def replay(self):
        self.replays += 1
        assert self.minimiser is not None
        self.minimiser._step()


def negative(x):
    """A bowl below 0 with a first step, along the gradient, that goes down."""
    return 0.1 * (x - 1).square().sum() - 10


class TestUnits:
    """What ``steps`` counts: iterations of the one, evaluations of the other."""

    @staticmethod
    def evaluations(kind, steps):
        x, calls = nn.Parameter(torch.linspace(-1.5, 2, 9, dtype=torch.float64)), []
        minimiser = kind([x], lambda: (calls.append(0), rosenbrock(x))[1])
        before = len(calls)
        minimiser.advance(steps)
        return len(calls) - before, minimiser

    def test_a_step_on_a_gpu_is_an_evaluation_accepted_or_not(self):
        assert self.evaluations(DeviceLBFGS, 30)[0] == 30

    def test_a_step_on_a_cpu_is_an_iteration_with_its_line_search(self):
        made, minimiser = self.evaluations(HostLBFGS, 30)
        (state,) = minimiser._optimiser.state.values()
        assert state["n_iter"] == 30
        assert made == state["func_evals"] + 1  # and one for the value at the end
        assert made > 32


class TestGraph:
    @pytest.mark.parametrize("law", [rosenbrock, negative])
    @pytest.mark.parametrize(
        ("body", "end", "reason"),
        [
            ("operation not permitted", None, "operation not permitted"),
            ("operation not permitted", "capture was invalidated", "operation not permitted"),  # what came first
            (None, "capture was invalidated", "capture was invalidated"),
        ],
    )
    def test_what_cannot_be_captured_is_run_step_by_step_with_the_same_result(
        self, law, body, end, reason, monkeypatch
    ):
        start = torch.linspace(-1.5, 2, 9, dtype=torch.float64)
        one, two = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        eager = DeviceLBFGS([one], lambda: law(one))
        eager.advance(70)
        capture = Capture(monkeypatch, body=body, end=end)
        with pytest.warns(RuntimeWarning, match=f"^steps run without a graph, several times slower: {reason}$"):
            fallen_back = DeviceLBFGS([two], lambda: law(two))
        assert fallen_back._graph is None
        assert fallen_back.value == law(start).item()  # no step of the attempt has moved the point
        before = capture.steps
        fallen_back.advance(70)
        assert (capture.steps - before, capture.replays) == (70, 0)
        assert fallen_back.value == eager.value
        for minimiser in (eager, fallen_back):
            minimiser.finish()
        assert torch.equal(one, two)

    def test_what_can_be_captured_is_replayed(self, monkeypatch):
        start = torch.linspace(-1.5, 2, 9, dtype=torch.float64)
        one, two = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        eager = DeviceLBFGS([one], lambda: rosenbrock(one))
        eager.advance(70)
        capture = Capture(monkeypatch)
        replayed = DeviceLBFGS([two], lambda: rosenbrock(two))
        assert replayed.advance(70) == eager.value
        assert capture.replays == 70
        assert capture.capture_stream.device == two.device  # not the current one, nor that of an earlier capture
        assert capture.current == ["another GPU"]

    def test_on_a_cpu_nothing_is_captured(self, monkeypatch):
        monkeypatch.setattr(DeviceLBFGS, "_captured", lambda self: pytest.fail("captured"))
        x = nn.Parameter(torch.ones(3))
        assert DeviceLBFGS([x], lambda: rosenbrock(x))._graph is None


@pytest.mark.parametrize(
    ("kind", "hidden_size", "options"),
    [
        ("det", 48, {"label_smoothing": 0.1}),
        ("lowrank", 32, {"label_smoothing": 0.1, "temperature": 0.5}),
        ("sparse", 64, {"softcap": 5.0, "label_smoothing": 0.2}),
        ("lowrank", 16, {"norm": "free", "weight_decay": 0.2}),
    ],
)
def test_three_optimisers_train_the_same_head(kind, hidden_size, options):
    teacher = TeacherConfig(kind=kind, vocab_size=48, n_contexts=48, seed=3)
    config = FitConfig(teacher=teacher, hidden_size=hidden_size, dtype="float64", seed=1003, **options)
    found = {}
    for kind_of in (HostLBFGS, DeviceLBFGS):
        head, loss = head_and_loss(config)
        minimiser = kind_of([head.raw_features, head.raw_weight], loss)
        minimiser.advance(600)
        minimiser.finish()
        found[kind_of.__name__] = loss().item(), head.logits().softmax(-1).amax(-1).mean().item()

    head, loss = head_and_loss(config)
    parameters = [head.raw_features, head.raw_weight]
    sizes = [p.numel() for p in parameters]

    def objective(flat):
        for p, part in zip(parameters, torch.from_numpy(flat.copy()).split(sizes), strict=True):
            p.data.copy_(part.view_as(p))
        value = loss()
        gradients = torch.autograd.grad(value, parameters)
        return value.item(), torch.cat([g.reshape(-1) for g in gradients]).numpy()

    start = torch.cat([p.detach().reshape(-1) for p in parameters]).numpy()
    result = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 1500, "ftol": 0, "gtol": 1e-9})
    objective(result.x)
    found["scipy"] = loss().item(), head.logits().softmax(-1).amax(-1).mean().item()
    losses, confidences = np.array(list(found.values())).T
    assert np.ptp(losses) < 1e-6
    assert np.ptp(confidences) < 1e-4


def test_a_loss_too_large_for_float32_to_show_its_fall_still_falls():
    x = nn.Parameter(torch.tensor([3.0, -2.0, 0.5]))
    minimiser = DeviceLBFGS([x], lambda: 100 + 1e-7 * (torch.tensor([1.0, 3.0, 10.0]) * (x - 1).square()).sum())
    minimiser.advance(60)
    minimiser.finish()
    assert (x - 1).abs().max() < 1e-3
