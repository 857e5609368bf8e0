"""Complete cells: all seeds, and the twin without smoothing."""

from analysis.lab.cells import coverage
from analysis.lab.records import config_key
from analysis.lab.registry import experiment
from analysis.study.grids import heads
from analysis.study.s1_ceilings import CeilingConfig


def grid():
    """Two cells of two seeds, each plain and at two smoothings."""
    return heads(
        teachers=["det"], vocab_sizes=[8], hidden_sizes=[4, 8], smoothings=(0.0, 0.1, 0.2), seeds=2
    )  # fmt: skip


def keys(configs):
    return {config_key(config) for config in configs}


class TestCoverage:
    def test_a_whole_grid_is_complete(self):
        found = coverage(experiment("S3"), grid(), keys(grid()))
        assert (found.keys, found.cells, found.not_run) == (keys(grid()), 6, 0)

    def test_a_seed_less_takes_its_cell_and_no_other(self):
        lost = next(c for c in grid() if c.hidden_size == 4 and c.label_smoothing == 0.2 and c.seed == 1000)
        found = coverage(experiment("S3"), grid(), keys(grid()) - keys([lost]))
        gone = keys([c for c in grid() if c.hidden_size == 4 and c.label_smoothing == 0.2])
        assert found.keys == keys(grid()) - gone
        assert found.missing == {"det V=8 D=4": 1}

    def test_without_the_plain_twin_nothing_of_a_cell_counts(self):
        lost = next(c for c in grid() if c.hidden_size == 8 and c.label_smoothing == 0)
        found = coverage(experiment("S3"), grid(), keys(grid()) - keys([lost]))
        assert found.keys == keys([c for c in grid() if c.hidden_size == 4])
        assert found.missing == {"det V=8 D=8": 3}

    def test_a_plain_cell_whose_twins_are_missing_does_not_count(self):
        found = coverage(experiment("S3"), grid(), keys([c for c in grid() if c.label_smoothing == 0]))
        assert not found.keys
        assert found.not_run == 6

    def test_configs_without_smoothing_are_cells_by_their_seeds(self):
        configs = [CeilingConfig(vocab_size=v, hidden_size=2, seed=seed) for v in (8, 16) for seed in range(2)]
        found = coverage(experiment("S1"), configs, keys(configs[:3]))
        assert found.keys == keys(configs[:2])
        assert found.missing == {"V=16 D=2": 1}
        assert coverage(experiment("S1"), configs, ()).not_run == 2
