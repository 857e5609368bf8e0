"""Teachers: distributions of the promised shape, samples that follow them, seeds that do one thing each."""

import numpy as np
import pytest
import scipy.stats
import torch

from analysis.teachers import DeterministicTeacher, PaddedTeacherConfig, TeacherConfig, make_teacher, random_streams


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def conditionals(config, seed=0):
    teacher = make_teacher(config, generator(seed))
    return teacher.conditionals(slice(0, config.n_contexts))


@pytest.mark.parametrize("kind", ["det", "lowrank", "sparse"])
def test_conditionals_are_distributions_in_float64(kind):
    p = conditionals(TeacherConfig(kind=kind, vocab_size=20, n_contexts=60))
    assert p.shape == (60, 20)
    assert p.dtype == torch.float64
    torch.testing.assert_close(p.sum(-1), torch.ones(60, dtype=torch.float64), rtol=0, atol=1e-12)
    assert p.min() >= 0


def test_det_makes_every_token_a_target_equally_often():
    p = conditionals(TeacherConfig(kind="det", vocab_size=5, n_contexts=15))
    assert torch.equal(p.sum(0), torch.full((5,), 3.0, dtype=torch.float64))
    assert torch.equal(p.max(-1).values, torch.ones(15, dtype=torch.float64))


def test_lowrank_logits_have_the_rank_the_spread_and_the_zipf_slope():
    config = TeacherConfig(kind="lowrank", vocab_size=400, n_contexts=300, rank=8, logit_std=3.0, zipf_exponent=1.5)
    log_p = conditionals(config).log().numpy()
    rank_logits = log_p + 1.5 * np.log(np.arange(1, 401))
    rank_logits -= rank_logits.mean(-1, keepdims=True)  # the normaliser and nothing else
    assert np.linalg.matrix_rank(rank_logits, tol=1e-8) == 8
    assert rank_logits.std() == pytest.approx(3.0, rel=0.15)  # 8 x 700 Gaussians: sd of the estimate about 5 %
    slope = np.polyfit(np.log(np.arange(1, 401)), log_p.mean(0), 1)[0]
    assert slope == pytest.approx(-1.5, abs=0.3)


def test_sparse_is_lowrank_with_peaks_in_half_the_contexts():
    make = {"vocab_size": 30, "n_contexts": 40, "peak": 12.0, "peak_fraction": 0.5}
    plain = conditionals(TeacherConfig(kind="lowrank", **make)).log()
    ratio = conditionals(TeacherConfig(kind="sparse", **make)).log() - plain
    raised = ratio - ratio.median(-1, keepdim=True).values
    assert ((raised - 12).abs() < 1e-9).sum(-1).tolist().count(1) == 20
    assert ((raised.abs() < 1e-9).sum(-1) >= 29).all()


@pytest.mark.parametrize("kind", ["det", "lowrank", "sparse"])
def test_blocks_are_the_whole(kind):
    config = TeacherConfig(kind=kind, vocab_size=6, n_contexts=18)
    whole = conditionals(config)
    blocks = list(make_teacher(config, generator()).to("cpu").blocks(24))  # four contexts
    assert [part.stop - part.start for part, _ in blocks] == [4, 4, 4, 4, 2]
    torch.testing.assert_close(torch.cat([p for _, p in blocks]), whole, rtol=1e-12, atol=0)


def test_samples_follow_the_conditionals():
    config = TeacherConfig(kind="lowrank", vocab_size=6, n_contexts=4, logit_std=1.0)
    teacher = make_teacher(config, generator())
    drawn = teacher.sample(20_000, generator(1))
    counts = torch.zeros(4, 6, dtype=torch.float64)
    counts[drawn.context, drawn.token] = drawn.weight
    assert counts.sum(-1).tolist() == [20_000.0] * 4
    expected = teacher.conditionals(slice(0, 4)) * 20_000
    p_values = scipy.stats.chisquare(counts.numpy(), expected.numpy(), axis=-1).pvalue
    assert p_values.min() > 1e-4


def test_pairs_are_distinct_and_ascending():
    drawn = make_teacher(TeacherConfig(kind="lowrank", vocab_size=9, n_contexts=50), generator()).sample(8, generator())
    pair = drawn.context * 9 + drawn.token
    assert (pair.diff() > 0).all()
    assert drawn.weight.max() > 1  # something was counted twice


@pytest.mark.parametrize("kind", ["det", "sparse"])
def test_population_holds_every_probability(kind):
    config = TeacherConfig(kind=kind, vocab_size=7, n_contexts=14)
    everything = make_teacher(config, generator()).population()
    p = torch.zeros(14, 7, dtype=torch.float64)
    p[everything.context, everything.token] = everything.weight
    torch.testing.assert_close(p, conditionals(config), rtol=1e-12, atol=0)


def test_det_samples_cost_nothing_at_llm_vocabularies():
    drawn = DeterministicTeacher(torch.arange(2**20), 2**20).sample(8, generator())  # N x V would be 8 TiB
    assert drawn.weight.unique().tolist() == [8.0]


def test_one_seed_fixes_all_and_each_stream_is_its_own():
    config = TeacherConfig(kind="lowrank", vocab_size=9, n_contexts=5)
    first, again = (random_streams(3, 2) for _ in range(2))
    assert torch.equal(
        make_teacher(config, first[0]).population().weight, make_teacher(config, again[0]).population().weight
    )
    assert torch.equal(torch.rand(3, generator=first[1]), torch.rand(3, generator=random_streams(3, 5)[1]))
    streams = [torch.rand(1, generator=g).item() for seed in range(5) for g in random_streams(seed, 4)]
    assert len(set(streams)) == 20


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"kind": "dense"}, ValueError, r"kind must be one of \('det', 'lowrank', 'sparse'\), got 'dense'\."),
        ({"vocab_size": 1}, ValueError, r"vocab_size must be at least 2, got 1\."),
        ({"vocab_size": 8.0}, TypeError, r"vocab_size must be an int, got 8\.0\."),
        ({"n_contexts": True}, TypeError, r"n_contexts must be an int, got True\."),
        ({"samples_per_context": 0}, ValueError, r"samples_per_context must be at least 1, got 0\."),
        ({"seed": -1}, ValueError, r"seed must be at least 0, got -1\."),
        ({"logit_std": float("nan")}, ValueError, r"logit_std must not be NaN, got nan\."),
        ({"peak": float("inf")}, ValueError, r"peak must be finite and at least 0, got inf\."),
        ({"peak_fraction": 1.5}, ValueError, r"peak_fraction must be in \[0, 1\], got 1\.5\."),
        (
            {"vocab_size": 8, "n_contexts": 12},
            ValueError,
            r"n_contexts must be a multiple of vocab_size = 8 for a det teacher, got 12\.",
        ),
    ],
)
def test_config_errors_say_what_is_allowed(fields, kind, message):
    with pytest.raises(kind, match=f"^{message}$"):
        TeacherConfig(**fields)


def test_dead_tokens_change_neither_conditionals_nor_samples():
    """The problem of S10: one and the same at every vocabulary."""
    live = TeacherConfig(kind="lowrank", vocab_size=12, n_contexts=20)
    padded = PaddedTeacherConfig(kind="lowrank", vocab_size=30, n_contexts=20, dead_tokens=18)
    first, second = (make_teacher(config, random_streams(0, 1)[0]) for config in (live, padded))
    q = second.conditionals(slice(0, 20))
    assert q.shape == (20, 30)
    assert torch.equal(q[:, :12], first.conditionals(slice(0, 20)))
    assert not q[:, 12:].any()
    for a, b in zip(*(t.sample(8, random_streams(1, 1)[0]) for t in (first, second.to("cpu"))), strict=True):
        assert torch.equal(a, b)
    assert len(second.population().token) == len(first.population().token)
    with pytest.raises(ValueError, match="vocab_size must be at least 20, got 19"):
        PaddedTeacherConfig(kind="lowrank", vocab_size=19, n_contexts=20, dead_tokens=18)
