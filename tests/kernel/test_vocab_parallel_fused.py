"""A head in several processes as a DTensor, under FSDP and in the fused kernels: what one process computes."""

from pathlib import Path

from split_heads import needs_gloo, with_rows

pytestmark = needs_gloo

SHARDED = """
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

def grads(h, w, b, **options):
    loss = linear_cross_entropy(h, w, target, linear_bias=b, label_smoothing=0.1, **options)
    loss.backward()
    return loss.detach(), h.grad

# Tensor parallel: the rows of a DTensor in place.
mesh = init_device_mesh("cpu", (world,))
leaf = lambda t: t.clone().requires_grad_()
w, b = leaf(head), leaf(bias)
exact = grads(leaf(hidden), w, b)
for placed in (hidden, distribute_tensor(hidden, mesh, [Replicate()])):
    ours, of = (distribute_tensor(x, mesh, [Shard(0)]).requires_grad_() for x in (head, bias))
    loss, of_hidden = grads(leaf(placed), ours, of)
    of_hidden = of_hidden if placed is hidden else of_hidden.full_tensor()
    for got, whole in zip((loss, of_hidden, ours.grad.full_tensor(), of.grad.full_tensor()), (*exact, w.grad, b.grad)):
        torch.testing.assert_close(got, whole)
    assert ours.to_local().shape[0] == (7, 6)[rank]
found, whole = head_statistics(placed, ours, target, linear_bias=of), head_statistics(hidden, head, target, linear_bias=bias)
torch.testing.assert_close(found.entropy, whole.entropy, equal_nan=True)
assert torch.equal(found.rank, whole.rank)

def said(*arguments, **options):
    try:
        linear_cross_entropy(*arguments, **options)
    except Exception as error:
        print(type(error).__name__, error, flush=True)

split, whole = (distribute_tensor(hidden, mesh, [placement]) for placement in (Shard(0), Replicate()))
said(split if rank else hidden, ours, target)  # wrong in one process
said(hidden, ours, target, process_group="tp" if rank else None)
said(whole if rank else hidden, head[mine], target, process_group=group)
said(hidden, distribute_tensor(head, mesh, [Replicate()]), target)
said(distribute_tensor(hidden, mesh, [Shard(0)]), ours, target)
said(distribute_tensor(hidden, mesh, [Replicate()]), head, target)
square = init_device_mesh("cpu", (world, 1))
said(hidden, distribute_tensor(head, square, [Shard(0), Replicate()]), target)
said(hidden, ours, target, process_group=[dist.new_group([i]) for i in range(world)][rank])

# FSDP: each process has tokens of its own, and the head is whole inside the forward of its unit.
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 13, bias=False)
        self.unit = LinearCrossEntropy(6, 13, label_smoothing=0.1)
    def forward(self, x, y):
        h = self.body(x)
        return linear_cross_entropy(h, self.head.weight, y, label_smoothing=0.1) + self.unit(h, y)

torch.manual_seed(0)
alone, model = Model(), Model()
model.load_state_dict(alone.state_dict())
fully_shard(model.unit)
fully_shard(model)
x, y = draw(2, 5, 6), torch.randint(13, (2, 5), generator=generator)
(sum(alone(x[i], y[i]) for i in range(2)) / 2).backward()
model(x[rank], y[rank]).backward()
for name, p in model.named_parameters():
    torch.testing.assert_close(p.grad.full_tensor(), alone.get_parameter(name).grad)
said(x[rank], model.head.weight, y[rank])  # outside
"""

FUSED = """
sys.path.insert(0, arguments[1])
from interpreter import quicken

quicken()

def results(w, implementation, **options):
    h, w = (x.clone().requires_grad_() for x in (hidden, w))
    loss, of = linear_cross_entropy(h, w, target, label_smoothing=0.1, softcap=3.0, implementation=implementation,
                                    return_statistics=True, **options)
    loss.backward()
    told = head_statistics(h.detach(), w.detach(), target, implementation=implementation, **options)
    return loss.detach(), h.grad, w.grad, of.argmax, told.entropy, told.rank, told.argmax

exact, got = results(head, "chunked"), results(head[mine], "triton", process_group=group)
for n, (ours, whole) in enumerate(zip(got, exact, strict=True)):
    torch.testing.assert_close(ours, whole[mine] if n == 2 else whole, equal_nan=True)

# The loss alone uses the softmax that each process keeps of its rows; at last one process has next to no mass.
from kernel.fused.call import LossCall

large, begin = (130, 110), 130 * rank
mine = slice(begin, begin + large[rank])
head, bias, target = draw(sum(large), 6), draw(sum(large)), torch.randint(sum(large), (3, 7), generator=generator)
target[0, :2] = -100

def loss_alone(w, b, **options):
    h, w, b = (x.clone().requires_grad_() for x in (hidden, w, b))
    loss = linear_cross_entropy(h, w, target, linear_bias=b, **options)
    loss.backward()
    return loss.detach(), h.grad, w.grad, b.grad

used, usable = [], LossCall.usable
LossCall.usable = lambda *given: used.append(usable(*given)) or used[-1]
for lower, smoothing in ((0.0, 0.1), (150.0, 0.1), (torch.inf, 0.0)):
    if lower == torch.inf:  # classes that are taken out, and are no targets
        target[target >= 0] %= large[0]
    b = torch.where(torch.arange(len(bias)) < large[0], bias, bias - lower)
    exact = loss_alone(head, b, implementation="reference", label_smoothing=smoothing)
    options = {"workspace_bytes": 2**30, "process_group": group, "label_smoothing": smoothing}
    got = loss_alone(head[mine], b[mine], implementation="triton", **options)
    for n, (ours, whole) in enumerate(zip(got, exact, strict=True)):
        torch.testing.assert_close(ours, whole[mine] if n > 1 else whole)
assert len(used) == 3 and all(plan.kept for plan, _ in used)
"""

# Classes that are taken out by a bias of -inf, and ties.
EXTREMES = """
sizes, draw_again = (70, 41), torch.Generator().manual_seed(2)
begin = sum(sizes[:rank])
part = slice(begin, begin + sizes[rank])
h0, w0, b0 = (torch.randn(*shape, generator=draw_again) for shape in ((9, 6), (111, 6), (111,)))
labels = torch.randint(1, 70, (9,), generator=draw_again)

def everything(h, w, b, dtype=torch.float32, **options):
    h, w, b = (x.to(dtype, copy=True).requires_grad_() for x in (h, w, b))
    loss, of = linear_cross_entropy(h, w, labels, linear_bias=b, return_statistics=True, **options)
    (loss + 0.1 * (of.entropy.sum() + of.lse.sum())).backward()
    return [loss.detach(), *(x.detach() for x in of), h.grad, w.grad, b.grad]

every = "reference", "chunked", "triton"
for out, value, implementations in (
    (slice(70, 111), -torch.inf, every), (slice(70, 111), torch.finfo().min, every[2:]), (slice(70, 71), -torch.inf, every[1:])
):
    b = b0.clone()
    b[out] = value
    # To the definition the probabilities that are taken out are finite zeros: its entropy has no gradient at -inf.
    exact = everything(h0, w0, b.clamp(min=-1e5), torch.float64, implementation="reference")
    for implementation in implementations:
        got = everything(h0, w0[part], b[part], implementation=implementation, process_group=group)
        for n, (ours, whole) in enumerate(zip(got, exact, strict=True)):
            whole = (whole[part] if n > 6 else whole).double()
            error = float((ours - whole).norm() / whole.norm().clamp(min=1e-6))
            assert error < 1e-5, (implementation, out, value, n, error)
h, labels = torch.randn(48, 6, generator=draw_again).mul(2).round(), torch.zeros(48, dtype=torch.int64)
w = torch.cat([w0[:70], w0[:41]]).round()  # the rows of the second are among those of the first
first = (h @ w.T).argmax(-1)  # of integers
for implementation in ("chunked", "triton"):
    of = linear_cross_entropy(h, w[part], labels, process_group=group, return_statistics=True, implementation=implementation)[1]
    assert torch.equal(of.argmax, first), implementation
"""

FUSED_OPTIONS = """
from kernel.fused import run_backward, run_kept, run_products

large = 40, 33
generator = torch.Generator().manual_seed(1)
hidden, head, bias, scale = draw(2, 9, 6), draw(sum(large), 6), draw(sum(large)), draw(2, 9).abs()
target = torch.randint(sum(large), (2, 9), generator=generator)
target[0, :2] = target[1, 4] = 5  # ignored, and a row of the head
begin = sum(large[:rank])
mine = slice(begin, begin + large[rank])

def results(w, b, h=hidden, grads=(True, True), **options):
    h, w, b = (x.clone().requires_grad_(need) for x, need in ((h, grads[0]), (w, grads[1]), (b, grads[1])))
    loss, of = linear_cross_entropy(h, w, target, linear_bias=b, token_weight=scale, ignore_index=5,
                                    return_statistics=True, **options)
    told = loss.square().sum()
    if options["z_loss"]:
        kept = target != 5
        told = told + 0.1 * (of.entropy[kept].sum() - 2 * of.log_probability[kept].sum() + of.lse[kept].square().sum())
    told.backward(retain_graph=True)
    if options["reduction"] == "none":  # once more, what was kept being used up
        told.backward()
    return loss.detach(), *(x.detach() for x in of), *(x.grad for x in (h, w, b))

cases = (
    {"z_loss": 0.0, "label_smoothing": 0.1, "reduction": "none"},
    {"z_loss": 0.01, "confidence_penalty": 0.1, "reduction": "mean", "workspace_bytes": 2000},
    {"z_loss": 0.0, "softcap": 3.0, "label_smoothing": 0.2, "temperature": 2.0, "reduction": "sum"},
    {"z_loss": 0.01, "label_smoothing": 0.1, "reduction": "sum", "logit_scale": 5.0},
)
cases = [(options, (i != 2, i != 3), "triton") for i, options in enumerate(cases)] + [(cases[0], (True, True), "chunked")]
for options, grads, implementation in cases:
    exact = results(head, bias, implementation="reference", grads=grads, **options)
    got = results(head[mine], bias[mine], implementation=implementation, process_group=group, grads=grads, **options)
    for n, (ours, whole) in enumerate(zip(got, exact, strict=True)):
        if whole is not None:
            whole = (whole[mine] if n > 6 else whole).nan_to_num(-7).double()
            error = float((ours.nan_to_num(-7) - whole).norm() / whole.norm())
            assert error < 1e-4, (options, n, error)

# The others have other rows than in the last call with as many here: noticed, and computed once more.
from kernel.vocab_parallel import fused_slice

made, forward = [], fused_slice._forward
fused_slice._forward = lambda *given: made.append(given[4]) or forward(*given)
moved = (large[0], *(n + 7 for n in large[1:]))
wider, places = draw(sum(moved), 6), torch.randint(sum(moved), (2, 9), generator=generator)
begin = sum(moved[:rank])
part = slice(begin, begin + moved[rank])
found = linear_cross_entropy(hidden, wider[part], places, process_group=group, implementation="triton")
torch.testing.assert_close(found, linear_cross_entropy(hidden, wider, places))
assert [share.rows for share in made] == ([large, moved] if rank == 0 else [moved]), made
made.clear()
for here, labels in ((head[mine], target), (wider[part], places)) * 2:  # each known by its place in memory
    linear_cross_entropy(hidden, here, labels, process_group=group, implementation="triton")
assert [share.rows for share in made[-2:]] == [large, moved], made
assert len(made) == (5 if rank == 0 else 4), made
fused_slice._forward = forward

# One that fails in the forward or in the backward, before and after the sum has begun.
def said(call):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, str(error)[:60], flush=True)

def fails(*_, **__):
    raise MemoryError("no more")

def loss():
    h, w = (x.clone().requires_grad_() for x in (hidden, head[mine]))
    return linear_cross_entropy(h, w, target, process_group=group, implementation="triton")

fused_slice._forward = fails if rank == 0 else forward
said(loss)
fused_slice._forward = forward
patched = (run_backward, "recompute_strip"), (run_kept, "column_sum"), (run_products, "weight_gradient_kernel")
for module, name in patched:
    value, before = loss(), getattr(module, name)
    setattr(module, name, fails if rank == 0 and name != "column_sum" else before)
    said(value.backward)
    setattr(module, name, before)
"""


def test_dtensors_fsdp_and_the_fused_kernels(tmp_path):
    begin = [
        "ValueError linear_weight must be a plain tensor or a DTensor sharded by rows, Shard(dim=0), over a mesh of one",
        "ValueError input must be the same in every process, Replicate(), got Shard(dim=0). Redistribute it, or pass",
        "TypeError input must be a plain tensor where linear_weight is one, got a DTensor",
        "ValueError linear_weight must be a plain tensor or a DTensor sharded by rows, Shard(dim=0), over a mesh of one",
        "ValueError process_group must be None or hold the processes [0, 1] of linear_weight's mesh, got [",
        "ValueError target must be the same in every process of the group",
    ]
    program, tests = SHARDED + FUSED + EXTREMES + FUSED_OPTIONS, str(Path(__file__).parents[1])
    first, second = (out.splitlines() for out in with_rows((7, 6), program, tmp_path, tests))
    alone = [
        "ValueError input must be the same in every process, Replicate(), got Shard(dim=0).",
        "TypeError process_group must be a torch.distributed.ProcessGroup or None, got str.",
        "TypeError input must be a plain tensor where linear_weight is one, got a DTensor",
    ]
    assert [line.startswith(text) for line, text in zip(second[:3], alone, strict=True)] == [True] * 3, second
    assert first[:3] == ["RuntimeError process 1 of process_group refused its arguments; its error says why."] * 3
    for lines in (first[3:9], second[3:9]):
        assert [line.startswith(text) for line, text in zip(lines, begin, strict=True)] == [True] * len(begin), lines
        assert "with placement Replicate()" in lines[0]
        assert "over a mesh of 2 dimensions" in lines[3]
    assert first[9:11] == ["MemoryError no more"] * 2
    assert first[11].startswith("TypeError"), "after its sum had begun: the other has what it needs"
    assert second[9:] == [
        "RuntimeError process 0 of process_group failed while it computed; its err",
        "RuntimeError another process of process_group failed while it computed; i",
    ]
