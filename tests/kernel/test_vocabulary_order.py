"""A vocabulary sorted by frequency: the same loss and gradients, in the model's order."""

import copy

import pytest
import torch
from tiny_models import V, make

from kernel import GradientTolerance, LinearCrossEntropy, linear_cross_entropy, mean_probabilities, sort_vocabulary
from kernel.blocks import BLOCK_BYTES


def test_the_loss_of_sorted_rows_is_the_loss():
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(5, (30,), generator=generator)
    order = sort_vocabulary(counts)
    assert counts[order.permutation].tolist() == sorted(counts.tolist(), reverse=True)
    assert torch.equal(order.permutation[order.inverse], torch.arange(30))
    target = torch.randint(30, (12,), generator=generator)
    target[3] = -100
    tensors = [torch.randn(*shape, generator=generator).double() for shape in ((12, 4), (30, 4), (30,))]
    found = []
    for sort in (False, True):
        h, w, b = (t.clone().requires_grad_() for t in tensors)
        rows, bias, places = (order.rows(w), order.rows(b), order.places(target)) if sort else (w, b, target)
        loss, of = linear_cross_entropy(
            *(h, rows, places), linear_bias=bias, label_smoothing=0.1, softcap=3.0, return_statistics=True
        )
        loss.backward()
        found.append((loss, h.grad, w.grad, b.grad, order.classes(of.argmax) if sort else of.argmax))
    for ours, whole in zip(*found, strict=True):
        torch.testing.assert_close(ours, whole)
    with pytest.raises(ValueError, match=r"target must be in \[0, 30\) or equal ignore_index=-100, got 30"):
        linear_cross_entropy(tensors[0][:1], order.rows(tensors[1]), order.places(torch.tensor([30])))


def test_mean_probabilities(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    h, w, b = (torch.randn(*shape, generator=generator) for shape in ((2, 5, 4), (9, 4), (9,)))
    expected = (3 * torch.tanh((2 * h @ w.T + b) / 3)).softmax(-1).mean((0, 1))
    for size in (2**10, 2**24):
        monkeypatch.setitem(BLOCK_BYTES, "cpu", size)
        torch.testing.assert_close(mean_probabilities(h, w, linear_bias=b, softcap=3.0, logit_scale=2.0), expected)
    with pytest.raises(ValueError, match=r"input must hold at least one token, got shape \(0, 4\)"):
        mean_probabilities(h[0, :0], w)


@pytest.mark.parametrize(
    ("frequency", "error", "text"),
    [
        ([1, 2], TypeError, "frequency must be a torch.Tensor, got list"),
        (torch.ones(2, 2), ValueError, r"frequency must have shape \(vocab_size,\), got \(2, 2\)"),
        (torch.tensor([1.0, -2.0]), ValueError, "frequency must be at least 0, got -2.0"),
        (torch.tensor([1.0, torch.nan]), ValueError, "frequency must be at least 0, got nan"),
    ],
)
def test_what_cannot_be_sorted(frequency, error, text):
    with pytest.raises(error, match=text):
        sort_vocabulary(frequency)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler and torch.func
@pytest.mark.parametrize("size", [(7,), (7, 3)])
def test_rows_have_the_gradients_of_a_product_with_the_permutation(size):
    """Once, twice, forward, in a batch, and compiled."""
    order = sort_vocabulary(torch.tensor([3, 1, 4, 1, 5, 9, 2]))
    matrix = torch.eye(7, dtype=torch.float64)[order.permutation]
    head, gradient = (torch.randn(*size, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.equal(order.rows(head), matrix @ head)
    assert torch.equal(torch.autograd.grad(order.rows(head), head, gradient)[0], matrix.T @ gradient)
    assert torch.autograd.gradcheck(order.rows, head, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(order.rows, head)
    heads = torch.stack((head, 2 * head)).detach()
    assert torch.equal(torch.func.vmap(order.rows)(heads), torch.stack([order.rows(h) for h in heads]))
    compiled = torch.compile(order.rows, backend="aot_eager", fullgraph=True)
    assert torch.equal(torch.autograd.grad(compiled(head), head, gradient)[0], matrix.T @ gradient)


def test_rows_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"head must have 3 rows, got shape \(4, 2\)"):
        sort_vocabulary(torch.ones(3)).rows(torch.ones(4, 2))


def test_a_module_takes_a_tolerance_that_tells():
    told = GradientTolerance(0.01)
    LinearCrossEntropy(4, 300, gradient_tolerance=told)(torch.ones(2, 4), torch.tensor([1, 2])).backward()
    assert told.weight_active == 1.0
    with pytest.raises(ValueError, match=r"gradient_tolerance must be in \[0, 1\), got 2.0"):
        LinearCrossEntropy(4, 300, gradient_tolerance=2)


@pytest.mark.parametrize("tied", [True, False])
def test_a_fused_model_keeps_its_own_order(tied):
    pytest.importorskip("transformers")
    from kernel.huggingface import fuse_loss

    tokens = torch.randint(3, V, (3, 10), generator=torch.Generator().manual_seed(1))
    order, told = sort_vocabulary(torch.arange(V)), GradientTolerance(1e-6)
    found = []
    for options in ({}, {"vocabulary_order": order, "gradient_tolerance": told}):
        model = make(tie_word_embeddings=tied)
        before = copy.deepcopy(model.state_dict())
        fuse_loss(model, label_smoothing=0.1, **options)
        model = copy.deepcopy(model)
        told.weight_active = 0.0
        model(tokens, labels=tokens).loss.backward()
        assert not options or told.weight_active == 1  # told by the copy
        assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
        found.append([p.grad for p in model.parameters()])
    for ours, whole in zip(*found, strict=True):
        torch.testing.assert_close(ours, whole)
    with pytest.raises(TypeError, match=r"vocabulary_order must be a kernel.VocabularyOrder or None, got Tensor"):
        fuse_loss(model, vocabulary_order=order.permutation)  # pyright: ignore[reportArgumentType]


def test_with_the_head_rows_that_are_alike_share_tiles_of_like_frequency():
    """Four kinds of rows, in turn: each tile of a band of four or more has one."""
    v = 35 * 256 + 100
    generator = torch.Generator().manual_seed(0)
    frequency = torch.arange(v, 0, -1)
    kind = torch.arange(v) % 4
    weight = torch.randn(4, 6, generator=generator)[kind] + 0.01 * torch.randn(v, 6, generator=generator)
    classes = torch.randperm(v, generator=generator)
    plain = sort_vocabulary(frequency[classes])
    order = sort_vocabulary(frequency[classes], weight[classes].bfloat16())
    found = classes[order.permutation]
    assert torch.equal(order.permutation[order.inverse], torch.arange(v))
    begin = 0
    for tiles in (*[1] * 8, *[2] * 4, *[4] * 4):  # bands
        end = begin + 256 * tiles
        assert torch.equal(found[begin:end].sort().values, torch.arange(begin, end))
        held = kind[found[begin:end]].view(tiles, 256)
        assert tiles < 4 or (held == held[:, :1]).all()
        total = frequency[found[begin:end]].view(tiles, 256).sum(1)
        assert (total[1:] <= total[:-1]).all()
        begin = end
    assert torch.equal(order.permutation[begin:], plain.permutation[begin:])  # behind the last whole band
    assert torch.equal(order.permutation[: 8 * 256], plain.permutation[: 8 * 256])


@pytest.mark.parametrize("weight", [torch.ones(3), torch.ones(2, 4)])
def test_another_head_is_refused(weight):
    with pytest.raises(ValueError, match=r"linear_weight must have shape \(3, hidden_size\), got \("):
        sort_vocabulary(torch.ones(3), weight)


def random_head(tiles=16, d=6, seed=0):
    """Counts with ties, and a head of as many whole tiles, of which the last 8 lie in bands of 2."""
    generator = torch.Generator().manual_seed(seed)
    v = tiles * 256
    return torch.randint(200, 2000, (v,), generator=generator), torch.randn(v, d, generator=generator)


def test_autocast_changes_no_order():
    frequency, weight = random_head()
    plain = sort_vocabulary(frequency, weight)
    assert not torch.equal(plain.permutation, sort_vocabulary(frequency).permutation)
    with torch.autocast("cpu", torch.bfloat16):
        found = sort_vocabulary(frequency, weight)
    assert torch.equal(found.permutation, plain.permutation)


@pytest.mark.parametrize("size", [2.0**27, 2.0**-66])
def test_the_size_of_the_head_changes_no_order(size):
    """About 1e8 and 1e-20, whose products would overflow or vanish in float32; powers of two, which round nothing."""
    frequency, weight = random_head()
    plain, found = sort_vocabulary(frequency, weight), sort_vocabulary(frequency, size * weight)
    assert torch.equal(found.permutation, plain.permutation)


def test_tiles_fall_by_frequency_where_half_precision_could_not_sum_it():
    """256 counts above 256 are more than float16 holds."""
    frequency, weight = random_head()
    found = sort_vocabulary(frequency.clamp(300).half(), weight)
    assert found.permutation.sort().values.tolist() == list(range(len(weight)))
    total = frequency.clamp(300)[found.permutation].view(-1, 2, 256).sum(2)[4:]
    assert (total > 65504).all()
    assert (total[:, 1] <= total[:, 0]).all()
    assert torch.equal(found.permutation, sort_vocabulary(frequency.clamp(300), weight).permutation)


def test_equal_classes_stay_in_their_order_and_ties_change_nothing():
    frequency, weight = random_head()
    assert torch.equal(
        sort_vocabulary(torch.ones_like(frequency), weight[:1].expand_as(weight)).permutation,
        torch.arange(len(weight)),
    )
    weight[1::2] = weight[::2]  # pairs of equal rows
    frequency = frequency // 500
    first, second = (sort_vocabulary(frequency, weight).permutation for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("v", "d"), [(1, 3), (2, 1), (255, 4), (257, 1), (8 * 256 + 1, 2), (10 * 256, 1), (4001, 1)])
def test_of_any_size_it_is_a_permutation(v, d):
    generator = torch.Generator().manual_seed(0)
    frequency, weight = torch.rand(v, generator=generator), torch.randn(v, d, generator=generator)
    found = sort_vocabulary(frequency, weight)
    assert torch.equal(found.permutation.sort().values, torch.arange(v))
    assert torch.equal(found.permutation[found.inverse], torch.arange(v))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("v", [3, 4096])
def test_a_head_that_is_not_finite_is_refused(value, v):
    weight = torch.ones(v, 2)
    weight[v - 1, 1] = value
    with pytest.raises(ValueError, match=r"linear_weight must be finite, got infinite entries or entries that are no"):
        sort_vocabulary(torch.ones(v), weight.requires_grad_())
