"""What the hosts of a process group tell each other before they compute, seen in one process."""

from types import SimpleNamespace

import pytest
import torch

from kernel import LinearCrossEntropy, head_statistics, linear_cross_entropy
from kernel.vocab_parallel import agreement, host_numbers
from kernel.vocab_parallel.agreement import _digest

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")


def test_it_takes_process_groups_alone():
    arguments = torch.eye(3), torch.eye(3), torch.arange(3)
    for call in (linear_cross_entropy, head_statistics):
        with pytest.raises(TypeError, match=r"process_group must be a torch.distributed.ProcessGroup or None, got str"):
            call(*arguments, process_group="tp")
    with pytest.raises(TypeError, match=r"process_group must be a torch.distributed.ProcessGroup or None, got int"):
        LinearCrossEntropy(3, 3, process_group=0)


def test_values_that_trade_places_have_another_digest():
    pairs = [[0, 3, 3, 0], [3, 0, 0, 3]], [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]]
    for first, second in pairs:
        assert _digest(torch.tensor(first)) != _digest(torch.tensor(second))
        assert torch.equal(_digest(torch.tensor(first)), _digest(torch.tensor([first]).T))
    masks = torch.randint(0, 2, (20000, 14), generator=torch.Generator().manual_seed(0)).unique(dim=0)
    assert len({int(_digest(mask)) for mask in masks}) == len(masks) > 10000


@pytest.mark.parametrize(
    ("served", "devices", "bound", "place"),
    [
        (["cpu", "cuda"], ("cuda:1", "cuda:1"), None, "cpu"),
        (["cuda"], ("cuda:1", "cuda:1"), None, "cuda:1"),
        (["cuda"], ("cpu", "cuda:1"), "cuda:2", "cuda:1"),  # input is wrong, which the others have to learn
        (["cuda"], ("cpu", None), "cuda:2", "cuda:2"),
        (["cuda"], ("cpu", None), None, "cuda"),  # the current one
    ],
)
def test_hosts_tell_each_other_through_the_device_of_the_tensors(served, devices, bound, place, monkeypatch):
    """Not through the current device: without set_device all processes of a group of NCCL would take the first GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    group = SimpleNamespace(bound_device_id=None if bound is None else torch.device(bound))
    given = []
    monkeypatch.setattr(agreement.dist, "get_rank", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for module in (agreement, host_numbers):
        monkeypatch.setattr(module, "served", lambda _: served)
    monkeypatch.setattr(agreement, "HostNumbers", lambda *told: given.append(told) or 1 / 0)
    with FakeTensorMode():
        tensors = (None if device is None else torch.empty(3, 3, device=device) for device in devices)
        with pytest.raises(ZeroDivisionError):
            agreement.propose(group, lambda: "options", *tensors, None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: (device, priority))
    ((_, told, device),) = given
    assert (told, device) == (group, torch.device(place))
    if device.type == "cuda":
        assert host_numbers._stream(device) == (3 if device.index is None else device.index, -1)
    host_numbers._streams.clear()
