"""What the fused kernels compile, and when: all of it in the first call, side by side."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import random
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import Peak, free_launches

from kernel import head_statistics, linear_cross_entropy
from kernel.fused.launch import interpreted
from kernel.fused.schedule import schedule
from kernel.options import LossOptions

triton = pytest.importorskip("triton")
compile_ahead = importlib.import_module("kernel.fused.compile_ahead")
calls = importlib.import_module("kernel.fused.call")
compile_call = importlib.import_module("kernel.fused.compile_call")
arguments_of = importlib.import_module("kernel.fused.arguments")
chunks = importlib.import_module("kernel.fused.token_chunks")
scaling = importlib.import_module("kernel.fused.scale")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_fused_cuda.py covers the device")


class RecordingKernel:
    def __init__(self, calls):
        self.calls = calls

    def warmup(self, grid, **arguments):
        self.calls.append(("compiled", grid, arguments))

    def __getitem__(self, grid):
        return lambda **arguments: self.calls.append(("ran", grid, arguments))


def use_driver(monkeypatch, driver):
    active = SimpleNamespace(driver=SimpleNamespace(active=driver))
    double = SimpleNamespace(runtime=active, AsyncCompileMode=triton.AsyncCompileMode)
    monkeypatch.setattr("kernel.fused.compile_ahead.triton", double)


@pytest.fixture
def current(monkeypatch):
    """Stands for the current CUDA device, whose index is its last number: 0 unless a context changes it."""
    devices = [0]

    @contextlib.contextmanager
    def using(device):
        devices.append(devices[-1] if device.index is None else device.index)
        yield
        devices.pop()

    monkeypatch.setattr(torch.cuda, "device", using)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: devices[-1])
    return devices


def test_a_kernel_runs_and_compiles_on_the_device_of_its_tensors(monkeypatch, current):
    """Triton takes the current device: a head that accelerate put on another one runs there all the same."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    use_driver(monkeypatch, None)
    used = []

    class Kernel:
        def warmup(self, **arguments):
            used.append(current[-1])

        def __getitem__(self, grid):
            return self.warmup

    def launch(values):
        compile_ahead.run_kernel(Kernel(), (3,), n=3, values=values, nothing=None)

    launch(torch.empty(3))
    with FakeTensorMode():
        launch(torch.empty(3, device="cuda:0"))
        launch(torch.empty(3, device="cuda:1"))
    compile_ahead.compile_ahead(object(), torch.device("cuda:1"), partial(launch, torch.empty(3)))
    assert (used, current) == ([0, 0, 1, 1], [0])


@pytest.mark.usefixtures("current")
def test_a_first_call_compiles_the_largest_kernels_first_and_launches_none(monkeypatch):
    run_kernel = compile_ahead.run_kernel
    use_driver(monkeypatch, None)

    calls = []
    kernel = RecordingKernel(calls)

    def launches():
        run_kernel(kernel, (3,), n=1, A=2, B=None)
        run_kernel(kernel, (4,), n=1, A=2, B=3)

    some, other = object(), object()
    for key in (some, some, other):  # what was seen is not compiled again
        compile_ahead.compile_ahead(key, torch.device("cuda"), launches)
    small, large = ("compiled", (3,), {"n": 1, "A": 2, "B": None}), ("compiled", (4,), {"n": 1, "A": 2, "B": 3})
    assert calls == [large, small, large, small]
    compile_ahead.compile_ahead(object(), torch.device("cpu"), launches)
    assert len(calls) == 4
    launches()
    assert calls[4:] == [("ran", *small[1:]), ("ran", *large[1:])]


@pytest.mark.usefixtures("current")
def test_a_first_call_has_a_thread_for_each_core_that_it_may_use(monkeypatch):
    use_driver(monkeypatch, None)
    threads = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers):
            threads.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(compile_ahead, "ThreadPoolExecutor", Pool)
    for cores in (1, 2, 16, 200):
        monkeypatch.setattr("os.sched_getaffinity", lambda process, cores=cores: set(range(cores)), raising=False)
        compile_ahead.compile_ahead(object(), torch.device("cuda"), lambda: None)
    assert threads == [1, 2, 16, 32]


@pytest.mark.usefixtures("current")
def test_what_all_kernels_need_is_there_before_the_first_compiles(monkeypatch):
    done = []

    class Runtime:
        cache = SimpleNamespace(triton_key=lambda: done.append("hash"))

        @property
        def driver(self):
            done.append("driver")
            return SimpleNamespace(active=None)

    monkeypatch.setattr(
        "kernel.fused.compile_ahead.triton",
        SimpleNamespace(runtime=Runtime(), AsyncCompileMode=triton.AsyncCompileMode),
    )
    launches = partial(compile_ahead.run_kernel, RecordingKernel(done), (1,), n=1)
    compile_ahead.compile_ahead(object(), torch.device("cuda"), launches)
    assert set(done[:2]) == {"hash", "driver"}
    assert done[2:] == [("compiled", (1,), {"n": 1})]


def test_triton_has_the_hash_and_the_modules_that_a_first_call_prepares():
    """Of the installed version: elsewhere both would be left to the first kernel, one after the other."""
    assert callable(triton.runtime.cache.triton_key)
    importlib.import_module("triton.experimental.gluon.nvidia.hopper")


@pytest.mark.usefixtures("current")
def test_a_first_call_leaves_the_filters_of_warnings_as_they_were(monkeypatch):
    """Triton 3.6 compiles each node under a filter of its own, and the threads of the pool share them all."""
    use_driver(monkeypatch, None)

    class Careless:
        def warmup(self, grid, **arguments):
            warnings.filters.clear()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        before = list(warnings.filters)
        launches = partial(compile_ahead.run_kernel, Careless(), (1,), n=1)
        compile_ahead.compile_ahead(object(), torch.device("cuda"), launches)
        assert warnings.filters == before


def test_the_host_part_of_a_launch_is_compiled_with_its_kernel(monkeypatch):
    built = []
    use_driver(monkeypatch, SimpleNamespace(launcher_cls=lambda src, metadata: built.append((src, metadata))))
    compiled = SimpleNamespace(src="source", metadata="metadata")
    with ThreadPoolExecutor(1) as pool:
        assert compile_ahead._Executor(pool).submit(lambda: compiled).result() is compiled
    assert built == [("source", "metadata")]


def test_a_recorded_launch_holds_no_memory_and_compiles_the_same():
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime.jit import native_specialize_impl
    from triton.tools.tensor_descriptor import TensorDescriptor

    matrix = torch.zeros(64, 64, dtype=torch.float16)
    described = TensorDescriptor(matrix, [64, 64], [64, 1], [16, 32])
    arguments = [matrix, matrix.view(-1)[1:], torch.zeros(3, dtype=torch.int64), described, None, 3, 2.5]
    named = {f"argument_{i}": argument for i, argument in enumerate(arguments)}
    (launch,) = compile_ahead._record(partial(compile_ahead.run_kernel, object(), (1,), **named))
    for argument, noted in zip(arguments, launch.arguments.values(), strict=True):
        assert not isinstance(noted, torch.Tensor)
        keys = [native_specialize_impl(CUDABackend, a, False, True, True) for a in (argument, noted)]
        assert keys[0] == keys[1]
    alive = weakref.ref(matrix)
    del matrix, described, arguments, argument, named
    assert alive() is None


def specialisations(launches):
    """What decides whether Triton compiles a kernel for a launch, or has it already."""
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime.jit import native_specialize_impl

    assert interpreted()
    keys = set()
    for kernel, _, given in compile_ahead._record(launches):
        unspecific = kernel.kwargs.get("do_not_specialize") or ()
        constants = {n for n, p in inspect.signature(kernel.fn).parameters.items() if "constexpr" in str(p.annotation)}
        assert set(unspecific) <= set(given) - constants, f"{kernel.__name__}: no such parameter"
        key = dict(given)
        for name in key.keys() - constants - {"num_warps", "num_stages"}:
            key[name] = native_specialize_impl(CUDABackend, given[name], False, name not in unspecific, True)
        keys.add((kernel.__name__, tuple(sorted(key.items(), key=lambda item: item[0]))))
    return keys


def tensors(n, v, d, dtype, bias, generator):
    big = torch.randn(n + 3, d, generator=generator).to(dtype)
    start = 0 if d % 8 else int(torch.randint(4, (1,), generator=generator))  # a part of a batch
    hidden = big[start : start + n].requires_grad_()
    weight = torch.zeros(v, d, dtype=dtype, requires_grad=True)
    target = torch.zeros(n + 3, dtype=torch.int64)[start : start + n]
    return hidden, weight, torch.zeros(v, dtype=dtype, requires_grad=True) if bias else None, target


KINDS = {
    "plain": ({}, torch.float32),
    "smoothed, float16": ({"label_smoothing": 0.1}, torch.float16),
    "smoothed": ({"label_smoothing": 0.1}, torch.float32),
    "capped": ({"softcap": 3.0, "label_smoothing": 0.1}, torch.float32),
    "capped, bfloat16": ({"softcap": 3.0}, torch.bfloat16),
    "everything, bfloat16": (
        {"softcap": 3.0, "label_smoothing": 0.1, "z_loss": 1e-3, "confidence_penalty": 0.1, "temperature": 0.5},
        torch.bfloat16,
    ),
    "smoothed, bfloat16": ({"label_smoothing": 0.1}, torch.bfloat16),
}


def budgets_for_bytes(v, d, dtype, scalars):
    """Tokens and a budget of which a part of the columns is kept in bytes, if there is any."""
    for n in (40, 150, 300):
        head = arguments_of.Head(torch.zeros(n, d, dtype=dtype), torch.zeros(v, d, dtype=dtype), None, torch.zeros(n))
        for workspace_bytes in range(n * v // 8, 3 * n * v, n * v // 8):
            found = calls.LossCall(head, scalars, workspace_bytes).plan(keep=True, consumed=True, weight_gradient=True)
            if any(run.in_bytes for run in found.kept):
                return [(n, workspace_bytes)]
    return []


@pytest.fixture
def free(monkeypatch):
    """Columns in bytes pay at these sizes, too, and are kept at their budgets."""
    monkeypatch.setattr("kernel.fused.schedule.LEAST_DEFAULT_BYTES", 0)
    schedule.cache_clear()
    with free_launches():
        yield
    schedule.cache_clear()


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("return_statistics", [False, True])
@pytest.mark.parametrize(("v", "d"), [(130, 16), (128, 12), (20, 17)])
@pytest.mark.parametrize("kind", list(KINDS))
def test_no_number_of_tokens_and_no_workspace_compiles_anything_new(kind, v, d, return_statistics, monkeypatch):
    options, dtype = KINDS[kind]
    monkeypatch.setattr("kernel.fused.available", lambda device, dtype: None)
    monkeypatch.setattr("kernel.fused.gradients.processors", lambda device: 20)  # sums in several pieces
    scalars = arguments_of.Scalars.of(LossOptions(**options))
    generator, choose = torch.Generator().manual_seed(0), random.Random(0)
    bias = v != 128

    def call(n, workspace_bytes, *, no_grad=False, of_statistics=False):
        hidden, weight, linear_bias, target = tensors(n, v, d, dtype, bias, generator)
        how = {"implementation": "triton", "workspace_bytes": workspace_bytes, "return_statistics": return_statistics}
        with torch.set_grad_enabled(not no_grad):
            found = linear_cross_entropy(hidden, weight, target, linear_bias=linear_bias, **how, **options)
        loss = found[0] if return_statistics else found
        if not no_grad:
            (loss + found[1].entropy.sum() if of_statistics else loss).backward()

    def ahead(needs):
        hidden, weight, linear_bias, target = tensors(1, v, d, dtype, bias, generator)
        head = arguments_of.Head(hidden.detach(), weight, linear_bias, target)
        return specialisations(
            lambda: compile_call.every_launch(calls.LossCall(head, scalars, 0), needs, return_statistics)
        )

    with torch.no_grad():
        known = ahead((True, True, bias)), ahead((False, False, False))
    calls_ = [(1, 0), (900, 0), *budgets_for_bytes(v, d, dtype, scalars)]
    assert (len(calls_) > 2) == (dtype == torch.bfloat16 and "softcap" not in options and v > 20)
    while len(calls_) < 15:
        n = choose.randint(1, 300)
        calls_.append((n, choose.choice([0, 2**30, choose.randint(0, 8 * n * v)])))
    for n, workspace_bytes in calls_:
        for of_statistics in {False, return_statistics}:
            new = specialisations(partial(call, n, workspace_bytes, of_statistics=of_statistics)) - known[0]
            assert not new, (n, workspace_bytes, of_statistics)
        assert not specialisations(partial(call, n, workspace_bytes, no_grad=True)) - known[1], n


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("kind", ["smoothed", "smoothed, bfloat16", "everything, bfloat16"])
def test_chunks_of_tokens_compile_nothing_new(kind, monkeypatch):
    options, dtype = KINDS[kind]
    options = {name: value for name, value in options.items() if name != "z_loss"}  # bfloat16 is not cut with one
    v, d = 130, 16
    monkeypatch.setattr("kernel.fused.available", lambda device, dtype: None)
    monkeypatch.setattr("kernel.fused.gradients.processors", lambda device: 20)
    generator, names = torch.Generator().manual_seed(0), set()

    def call(n, workspace_bytes, rows):
        monkeypatch.setattr(calls.LossCall, "chunks", lambda self: chunks.Chunks(rows))
        hidden, weight, bias, target = tensors(n, v, d, dtype, True, generator)
        budget = {"implementation": "triton", "workspace_bytes": workspace_bytes}
        linear_cross_entropy(hidden, weight, target, linear_bias=bias, **budget, **options).backward()

    hidden, weight, bias, target = tensors(1, v, d, dtype, True, generator)
    head = arguments_of.Head(hidden.detach(), weight.detach(), bias.detach(), target)
    first = calls.LossCall(head, arguments_of.Scalars.of(LossOptions(**options)), 0)
    needs = True, True, True
    without, known = (
        specialisations(lambda c=c: compile_call.every_launch(first, needs, False, chunks=c)) for c in (False, True)
    )
    assert without < known
    sizes = ((300, 0, 112), (77, 9_000, 16), (40, 2**30, 32), (900, 200_000, 304), (17, 3_000, 16))
    for n, workspace_bytes, rows in sizes:
        found = specialisations(partial(call, n, workspace_bytes, rows))
        assert not found - known, (n, workspace_bytes, rows)
        names |= {name for name, _ in found}
    assert {"_scale_kernel", "weight_gradient_kernel", "bias_gradient_kernel"} <= names


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", ["smoothed", "smoothed, bfloat16", "everything, bfloat16"])
def test_chunks_of_the_backward_compile_nothing_new(kind, frozen, monkeypatch):
    (options, dtype), v, d = KINDS[kind], 130, 16
    monkeypatch.setattr("kernel.fused.available", lambda device, dtype: None)
    monkeypatch.setattr("kernel.fused.gradients.processors", lambda device: 20)
    generator, ahead, launched = torch.Generator().manual_seed(0), {}, []
    monkeypatch.setattr(compile_call, "compile_ahead", lambda key, _, run: ahead.setdefault(key, specialisations(run)))

    def call(n, rows):
        monkeypatch.setattr(calls.LossCall, "backward_rows", lambda *args: rows)
        hidden, weight, bias, target = tensors(n, v, d, dtype, True, generator)
        weight = weight.detach() if frozen else weight
        how = {"implementation": "triton", "linear_bias": bias, "reduction": "none"}
        linear_cross_entropy(hidden, weight, target, **how, **options).sum().backward()

    specialisations(partial(call, 3, 900))
    compiled = set().union(*ahead.values())
    for n, rows in ((300, 112), (77, 16), (40, 32), (900, 304), (17, 16)):
        found = specialisations(partial(call, n, rows))
        assert not found.union(*ahead.values()) - compiled, (n, rows)
        launched.append({name for name, _ in found})
    assert all(("_possible_kernel" in names) == (dtype == torch.bfloat16 and not frozen) for names in launched)


@pytest.mark.parametrize("kind", ["plain", "everything, bfloat16", "smoothed, bfloat16"])
@pytest.mark.parametrize("form", ["loss", "statistics", "chunks", "sparse"])
def test_a_first_call_takes_no_more_memory_than_later_ones(form, kind, monkeypatch):
    """What it goes through to compile holds one gradient of the head at a time, as every call does."""
    options, dtype = KINDS[kind]
    monkeypatch.setattr("kernel.fused.available", lambda device, dtype: None)
    n, v, d = 512, 20_000, 64
    hidden, target = torch.zeros(n, d, dtype=dtype), torch.zeros(n, dtype=torch.int64)
    weight, bias = torch.zeros(v, d, dtype=dtype), None if form == "sparse" else torch.zeros(v, dtype=dtype)
    first = calls.LossCall(
        arguments_of.Head(hidden, weight, bias, target), arguments_of.Scalars.of(LossOptions(**options)), 0
    )
    forms = {"return_statistics": form == "statistics", "sparse": form == "sparse", "chunks": form == "chunks"}
    with Peak() as ahead, torch.no_grad():
        compile_ahead._record(lambda: compile_call.every_launch(first, (True, True, form != "sparse"), **forms))

    def later():
        leaves = [t.requires_grad_() for t in (hidden, weight)]
        how = {"implementation": "triton", "linear_bias": bias, "return_statistics": form == "statistics"}
        found = linear_cross_entropy(*leaves, target, **how, **options)
        (found[0] if form == "statistics" else found).backward()

    with Peak() as afterwards:
        compile_ahead._record(later)
    gradient = weight.numel() * weight.element_size()
    assert gradient < ahead.bytes < 2 * gradient
    assert ahead.bytes <= afterwards.bytes


REDUCTIONS = {
    "per token": {"reduction": "none"},
    "mean": {"reduction": "mean"},
    "weighted sum": {"reduction": "sum", "weighted": True},
}


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("kind", ["plain", "capped, bfloat16", "smoothed, bfloat16"])
@pytest.mark.parametrize("first", list(REDUCTIONS))
def test_a_first_call_of_any_reduction_compiles_for_all(first, kind, monkeypatch):
    """As on a device, where what a call compiles follows from its arguments alone."""
    (options, dtype), v, d = KINDS[kind], 130, 16
    monkeypatch.setattr("kernel.fused.available", lambda device, dtype: None)
    monkeypatch.setattr("kernel.fused.gradients.processors", lambda device: 20)
    generator, ahead, bias = torch.Generator().manual_seed(0), {}, kind != "plain"

    def note(key, device, launches):
        if key not in ahead:
            ahead[key] = specialisations(launches)

    monkeypatch.setattr(compile_call, "compile_ahead", note)

    def call(n, workspace_bytes, rows, *, reduction, weighted=False):
        monkeypatch.setattr(calls.LossCall, "chunks", lambda self: chunks.Chunks(rows))
        hidden, weight, linear_bias, target = tensors(n, v, d, dtype, bias, generator)
        how = {"implementation": "triton", "workspace_bytes": workspace_bytes, "reduction": reduction}
        how |= {"linear_bias": linear_bias, "token_weight": torch.ones(n) if weighted else None}
        (0.5 * linear_cross_entropy(hidden, weight, target, **how, **options)).sum().backward()

    specialisations(partial(call, 3, 0, 900, **REDUCTIONS[first]))
    compiled = set().union(*ahead.values())
    launched, scalars = set(), arguments_of.Scalars.of(LossOptions(**options))
    budgets = [(300, 0, 112), (40, 2**30, 900), *((*b, 900) for b in budgets_for_bytes(v, d, dtype, scalars))]
    for how, (n, workspace_bytes, rows) in itertools.product(REDUCTIONS.values(), budgets):
        launched |= specialisations(partial(call, n, workspace_bytes, rows, **how))
    names = {name for name, _ in launched}
    assert "_scale_kernel" in names
    assert ("bias_gradient_kernel" in names) == bias
    assert ("decoded_strip_kernel" in names) == (kind == "smoothed, bfloat16")
    late = launched.union(*ahead.values()) - compiled
    assert not late, sorted(name for name, _ in late)


def test_gradients_of_any_size_are_scaled_by_one_kernel():
    """Triton has another kernel for a number of elements that does not fit 32 bits."""
    factor = torch.ones(1)
    of_few, of_many = (specialisations(lambda n=n: scaling.scale([factor.expand(n)], factor)) for n in (16, 2**32 + 16))
    assert of_few == of_many


@pytest.mark.parametrize("has_target", [False, True])
def test_head_statistics_compile_nothing_for_another_number_of_tokens(has_target):
    generator = torch.Generator().manual_seed(0)

    def call(n):
        hidden, weight, bias, target = tensors(n, 70, 16, torch.float32, True, generator)
        options = {"linear_bias": bias, "temperatures": (0.5, 1.0, 2.0), "implementation": "triton"}
        head_statistics(hidden, weight, target if has_target else None, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kernel.statistics.fused.check_finite", lambda *args: None)  # of what no kernel has written
        first = specialisations(partial(call, 40))
        assert all(specialisations(partial(call, n)) == first for n in (1, 2, 16, 33, 300))


@pytest.mark.parametrize("layout", ["offset", "transposed", "wide", "one of a wide one"])
def test_an_input_that_lies_otherwise_compiles_nothing_new(layout):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, _, target = tensors(20, 70, 17, torch.float32, False, generator)
    matrix = torch.randn(20, 40)
    other, labels = {
        "offset": (torch.zeros(20 * 17 + 1)[1:].view(20, 17), torch.zeros(21, dtype=torch.int64)[1:]),
        "transposed": (torch.zeros(17, 20).T, target),
        "wide": (matrix[:, :17], target),
        "one of a wide one": (matrix[:1, :17], target[:1]),
    }[layout]

    def call(hidden, target):
        linear_cross_entropy(hidden.requires_grad_(), weight, target, implementation="triton").backward()

    assert specialisations(partial(call, other, labels)) <= specialisations(partial(call, hidden, target))
