"""A head whose rows lie in several processes: loss, statistics and gradients are those of one process."""

import sys

import pytest
import torch
from helpers import OPTIONS
from processes import in_processes

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and sys.platform.startswith("linux")), reason="needs gloo"
)

START = """
from kernel import linear_cross_entropy

rows = eval(arguments[0])
group, begin = dist.group.WORLD, sum(rows[:rank])
mine = slice(begin, begin + rows[rank])
generator = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=generator)
hidden, head, bias, scale = draw(3, 7, 6), draw(sum(rows), 6), draw(sum(rows)), draw(3, 7).abs()
target = torch.randint(sum(rows), (3, 7), generator=generator)
target[0, :2] = -100
"""

SAME = """
def results(dtype, **options):
    h, w, b = (x.to(dtype, copy=True).requires_grad_() for x in (hidden, *parts))
    loss, of = linear_cross_entropy(h, w, target, linear_bias=b, token_weight=scale, return_statistics=True, **options)
    kept = target != -100
    told = of.entropy[kept].sum() - 2 * of.log_probability[kept].sum() + of.lse[kept].square().sum()
    (loss.square().sum() + 0.1 * told).backward()
    return loss.detach(), *(x.detach().nan_to_num(-7) for x in of), h.grad, w.grad, b.grad

for i, options in enumerate(eval(arguments[1])):
    for implementation in ("reference", "chunked"):
        options |= {"reduction": ("none", "mean", "sum")[i % 3], "implementation": implementation}
        parts = head, bias
        exact = results(torch.float64, **options)
        parts = head[mine], bias[mine]
        for dtype, near in ((torch.float64, 1e-11), (torch.float32, 1e-4)):  # the gradient of one row's bias cancels
            got = results(dtype, **options, process_group=group)
            again = results(dtype, **options, process_group=group)
            for n, (ours, twice, whole) in enumerate(zip(got, again, exact, strict=True)):
                whole = whole[mine] if n > 6 else whole
                assert torch.equal(ours, twice)
                error = (ours.double() - whole.double()).norm() / whole.double().norm().clamp(min=1e-9)
                assert error < near, (options, dtype, n, float(error))
print("same")
"""

REFUSED = """
def said(**changed):
    given = {"input": hidden, "linear_weight": head[mine], "target": target, "process_group": group, **changed}
    try:
        linear_cross_entropy(given.pop("input"), given.pop("linear_weight"), given.pop("target"), **given)
    except Exception as error:
        print(type(error).__name__, error, flush=True)

said(linear_weight=head[mine, :5] if rank == 1 else head[mine])
said(label_smoothing=0.1 * rank)
said(target=target + sum(rows))
said(**{"softcap": -1.0} if rank == 0 else {})
assert linear_cross_entropy(hidden, head[mine], target, process_group=group).isfinite()  # and goes on
"""


def run(folder, rows, program, *more):
    return in_processes(START + program, len(rows), folder, repr(rows), *more)


@pytest.mark.parametrize("rows", [(9, 4), (1, 7, 12)])
def test_they_are_those_of_one_process(rows, tmp_path):
    assert run(tmp_path, rows, SAME, repr(OPTIONS)) == ["same\n"] * len(rows)


def test_one_process_that_is_wrong_stops_all(tmp_path):
    first, second = (out.splitlines() for out in run(tmp_path, (9, 4), REFUSED))
    assert first[0] == "RuntimeError process 1 of process_group refused its arguments; its error says why."
    assert second[0].startswith("ValueError input must have shape (..., 5) to match linear_weight (4, 5)")
    for out in (first, second):
        assert out[1].startswith("ValueError input's shape, dtype and requires_grad and the options must be the same")
        assert out[2].startswith("ValueError target must be in [0, 13) or equal ignore_index=-100, got ")
        assert len(out) == 4
    assert first[3].startswith("ValueError softcap must be None or in ")
    assert second[3].startswith("RuntimeError process 0 of process_group refused its arguments")
