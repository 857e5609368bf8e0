"""S11: the transformer, its training and what is measured of it, on sizes of a second."""

import json
import math
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis.calibration import true_calibration_error
from analysis.lab.cells import coverage
from analysis.lab.placement import Job, compute_job, order
from analysis.lab.records import config_key
from analysis.lab.registry import experiment
from analysis.lab.shared import kept, loaded, saved, whole_key
from analysis.study.from_scratch import pretraining
from analysis.study.from_scratch.grid import MAIN, TransformerConfig, configs, has_more_rows, row_seconds, solves_maps
from analysis.study.from_scratch.language import Vocabulary, broad_language
from analysis.study.from_scratch.measures import falls, known, scores, states
from analysis.study.from_scratch.pretraining import Languages, PretrainingConfig, Sizes, pretrain
from analysis.study.from_scratch.transformer import Transformer, Trunk
from analysis.study.from_scratch.tuning import arm_of, tuned

TRUNK = Trunk(layers=1, width=8, heads=2, context=6)
SIZES = Sizes(trunk=TRUNK, states=4, classes=6, successors=2, exponent=2.0, batch=8, step_size=5e-3)
SMALL = TransformerConfig(
    vocab_size=12, hidden_size=3, sizes=SIZES, tokens=20 * 8 * 6, sequences=6, tuning_batch=4, epochs=(1, 2),
    evaluated=8, asked=24,
)  # fmt: skip
CORNERS = "analysis.study.from_scratch.grid._CORNERS"


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def sequences(config=SMALL, count=5):
    world = Languages(config)
    return world.draw(world.broad, count, config.sequence + 1, (seeded(3), seeded(2)))


class TestTransformer:
    @pytest.mark.parametrize("tied", [False, True])
    def test_a_feature_depends_on_the_tokens_before_it_alone(self, tied):
        model = Transformer(12, 3, TRUNK, tied=tied, seed=0)
        tokens = sequences()[:, :-1]
        other = tokens.clone()
        other[:, 4:] = (other[:, 4:] + 1) % 12
        before, after = model.hidden(tokens), model.hidden(other)
        torch.testing.assert_close(before[:, :4], after[:, :4])
        assert ((before - after)[:, 4:].abs().amax(-1) > 1e-6).all()

    def test_the_loss_is_that_of_the_next_token(self):
        model, text = Transformer(12, 3, TRUNK, seed=0), sequences()
        logits = model.hidden(text[:, :-1]) @ model.head.T
        expected = F.cross_entropy(logits.flatten(0, 1) / 0.5, text[:, 1:].flatten(), label_smoothing=0.1)
        torch.testing.assert_close(model.loss(text, label_smoothing=0.1, temperature=0.5), expected)

    def test_width_and_vocabulary_leave_the_trunk_as_it_starts(self):
        one, two = (Transformer(v, d, TRUNK, seed=4) for v, d in ((6, 3), (24, 8)))
        for first, second in zip(one.blocks.parameters(), two.blocks.parameters(), strict=True):
            assert torch.equal(first, second)

    def test_tied_means_one_matrix(self):
        sizes = {tied: sum(p.numel() for p in Transformer(12, 3, TRUNK, tied=tied, seed=0).parameters()) for tied in
                 (False, True)}  # fmt: skip
        assert sizes[False] - sizes[True] == 12 * 8 - 3 * 8


class TestPretraining:
    def test_it_learns_the_language(self):
        config = replace(SMALL, tokens=80 * 8 * 6).pretraining
        world = Languages(config)
        model, falling = pretrain(config, world)
        text = known(sequences(count=40), world.broad, world.vocabulary, seeded(0))
        start = Transformer(12, 3, TRUNK, seed=1000)
        divergence = {
            name: scores(found.hidden(text.sequences[:, :-1]).detach().flatten(0, 1), found.head.detach(), text)
            for name, found in (("after", model), ("before", start))
        }
        assert divergence["after"]["divergence"] < 0.6 * divergence["before"]["divergence"]
        assert math.isfinite(falling)

    def test_vocabularies_read_the_same_classes_and_a_few_tokens_come_again(self):
        batches = {}
        start = PretrainingConfig(vocab_size=6, hidden_size=3, tokens=10 * 8 * 6, sizes=SIZES)
        for v, symbols, distinct in ((6, "live", 0), (24, "live", 0), (9, "dead", 0), (24, "live", 100)):
            config = replace(start, vocab_size=v, symbols=symbols, distinct=distinct)
            world = Languages(config)
            batches[v, distinct] = torch.cat(list(pretraining._batches(config, world, "cpu"))) // world.vocabulary.split
        assert torch.equal(batches[6, 0], batches[24, 0])
        assert torch.equal(batches[6, 0], batches[9, 0])
        assert batches[6, 0].shape == batches[24, 100].shape == (80, 7)
        assert len(batches[24, 100].unique(dim=0)) <= 100 // 6
        assert len(batches[24, 0].unique(dim=0)) > 70

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"vocab_size": 13}, r"^vocab_size must be a multiple of the 6 classes, got 13\.$"),
            ({"symbols": "many"}, r"^symbols must be .*'live'.* got 'many'\.$"),
            ({"arms": ("c=3",)}, r"^name must be of words among b, T, cap, penalty .* got 'c=3'\.$"),
            ({"epochs": (2, 1)}, r"^epochs must ascend from at least 1, got \(2, 1\)\.$"),
            ({"tokens": 10}, r"^tokens must be at least 48, got 10\.$"),
        ],
    )
    def test_bad_configs_are_refused(self, change, text):
        with pytest.raises(ValueError, match=text):
            replace(SMALL, **change)


class TestTuning:
    def test_arms_differ_in_what_they_name(self):
        text = sequences(count=8)
        start = Transformer(12, 3, TRUNK, seed=0)
        tune = partial(tuned, start, text, epochs=(1, 3), batch=4, step_size=5e-3, weight_decay=0.1, seed=0)
        found = {name: dict(tune(arm_of(name)))[3] for name in ("b=0", "b=0.2", "b=0 frozen", "b=0 cap=2")}
        gain, plain = start.norm.weight, found["b=0"].norm.weight
        assert torch.equal(found["b=0 frozen"].norm.weight, gain)
        assert not torch.equal(plain, gain)
        heads = [model.head for model in found.values()]
        assert not any(torch.equal(heads[0], other) for other in heads[1:])
        assert [epoch for epoch, _ in tune(arm_of("b=0"))] == [1, 3]
        again = dict(tune(arm_of("b=0")))[3]
        torch.testing.assert_close(again.head, heads[0])

    def test_smoothing_takes_confidence_as_predicted_in_sign(self):
        torch.manual_seed(0)
        head, hidden = torch.randn(12, 3), 3 * torch.randn(40, 3)
        target = torch.distributions.Categorical(logits=hidden @ head.T).sample()
        pair = (hidden, target)
        found = falls(head, pair, {"train": pair, "broad": pair}, [0.1], contexts=10)
        assert found["train"]["scale_fall_0.1"] == pytest.approx(found["broad"]["scale_fall_0.1"])
        assert found["train"]["scale_fall_0.1"] > 0
        assert found["train"]["frozen_fall_0.1"] > 0
        assert found["train"]["frozen_solved"] == 1
        assert not [name for line in found.values() for name in line if "affine" in name]
        documents = states(hidden, target, torch.arange(40) // 4)
        more = falls(head, pair, {"train": pair, "broad": pair}, [0.1], contexts=10, mapped=documents)
        assert {"affine_fall_0.1", "low_rank_fall_0.1"} <= set(more["broad"])
        assert more["train"]["affine_fall_0.1"] > 0
        assert more["train"]["scale_fall_0.1"] == pytest.approx(found["train"]["scale_fall_0.1"])

    def test_maps_are_solved_for_in_the_first_grid_alone(self):
        chosen = [config for config in configs("full") if solves_maps(config)]
        assert len(chosen) == 27
        assert {config.arms for config in chosen} == {MAIN}
        assert not any(solves_maps(config) for config in configs("quick"))


class TestScores:
    def test_they_are_those_of_the_whole_distributions(self):
        language = broad_language(4, 6, successors=2, exponent=1.0, seed=0)
        words = Vocabulary(classes=6, split=3, exponent=1.0, dead=2)
        text = words.draw(language.draw(30, 5, seeded(1)), seeded(2))
        batch = known(text, language, words, seeded(0))
        torch.manual_seed(1)
        hidden, head = torch.randn(120, 4), torch.randn(words.size, 4)
        p = (hidden.double() @ head.double().T / 0.7).softmax(-1).numpy()
        truth = words.spread(batch.classes).numpy()
        found = scores(hidden, head, batch, temperature=0.7)
        target = text[:, 1:].flatten().numpy()
        assert found["true_ece"] == pytest.approx(true_calibration_error(p, truth, n_bins=15, tie_tolerance=0.01))
        kl = np.where(truth > 0, truth * np.log(np.where(truth > 0, truth, 1) / p), 0).sum(-1).mean()
        assert found["divergence"] == pytest.approx(kl)
        assert found["nll"] == pytest.approx(-np.log(p[np.arange(120), target]).mean())
        assert found["truth_confidence"] == pytest.approx(truth.max(-1).mean())
        assert found["confidence"] == pytest.approx(p.max(-1).mean())
        options = np.take_along_axis(p, batch.options.numpy(), -1)
        options /= options.sum(-1, keepdims=True)
        assert found["option_confidence"] == pytest.approx(options.max(-1).mean())
        assert found["option_accuracy"] == pytest.approx((options.argmax(-1) == 0).mean())

    def test_of_the_truth_itself_nothing_is_wrong(self):
        """Logits that are the logarithm of the truth, as a head of full rank can give them."""
        language = broad_language(4, 6, successors=2, exponent=1.0, seed=0)
        words = Vocabulary(classes=6, split=2)
        text = words.draw(language.draw(400, 5, seeded(1)), seeded(2))
        batch = known(text, language, words, seeded(0))
        hidden = words.spread(batch.classes).log()
        found = scores(hidden, torch.eye(12, dtype=torch.float64), batch)
        assert found["true_ece"] < 1e-3  # tokens within a hundredth tie
        assert found["divergence"] == pytest.approx(0, abs=1e-9)
        assert found["confidence"] == pytest.approx(found["truth_confidence"])
        assert found["estimated_ece"] < 0.06
        # the token that came is likelier among drawn ones than the truth says: not an error of the model
        assert found["option_ece"] == pytest.approx(found["truth_option_ece"], abs=1e-9)
        assert found["truth_option_ece"] > 0.02

    def test_options_are_different_and_the_others_come_as_the_unigram_says(self):
        """Without the token that came: of 3 drawn in turn, the first has the renormalised unigram."""
        language = broad_language(4, 6, successors=2, exponent=1.0, seed=0)
        words = Vocabulary(classes=6, dead=3)
        text = language.draw(20000, 2, seeded(1))
        options = known(text, language, words, seeded(0)).options
        assert torch.equal(options[:, 0], text[:, 1])
        ordered = options.sort(-1).values
        assert (ordered[:, 1:] > ordered[:, :-1]).all()
        assert int(options.max()) < 6
        of_one = options[options[:, 0] == 2]
        weight = language.unigram.clone()
        weight[2] = 0
        share = torch.bincount(of_one[:, 1], minlength=6) / len(of_one)
        assert (share - weight / weight.sum()).abs().max() < 5 * (0.25 / len(of_one)) ** 0.5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder and the first row in it."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CORNERS, ((3,), (12,)))
        return out, compute_job(Job("S11", SMALL), device="cpu", out=out)


class TestRows:
    def test_a_row_has_every_method_epoch_distribution_and_reading(self, made):
        _, row = made
        json.dumps(row)
        lines = row["measurements"]
        assert {line["method"] for line in lines} == set(MAIN)
        trained = [line for line in lines if line["reading"] == "as_trained"]
        assert len(trained) == 3 * (1 + 2 * 2)
        assert [line["method"] for line in lines if line["reading"] == "post_hoc"] == list(MAIN)
        predicted = [line for line in trained if "gain_fall_0.1" in line]
        assert {(line["method"], line["epoch"]) for line in predicted} == {("b=0", 1), ("b=0", 2)}
        assert all(math.isfinite(line["true_ece"]) and line["divergence"] > 0 for line in lines)
        assert row["model_seed"] == 1000

    def test_other_tunings_of_a_model_find_it_where_the_first_left_it(self, made, monkeypatch):
        out, row = made
        kept_files = list((out / "shared" / "S11").glob("*.kept"))
        assert [path.stem for path in kept_files] == [f"{whole_key(SMALL.pretraining, 1)}_cpu"]

        def refused(*arguments, **options):
            raise AssertionError("pretrained again")

        monkeypatch.setattr("analysis.study.s11_transformers.pretrain", refused)
        monkeypatch.setattr(CORNERS, ((3,), (12,)))
        more = compute_job(Job("S11", replace(SMALL, arms=("b=0",), epochs=(1,))), device="cpu", out=out)
        first = [line for line in more["measurements"] if not line["epoch"]]
        assert len(first) == 3
        for line, known_line in zip(first, row["measurements"], strict=False):
            assert line["true_ece"] == pytest.approx(known_line["true_ece"], abs=1e-9)

    def test_models_of_one_row_are_not_kept(self):
        grid = configs("full")
        counts = Counter(config.pretraining for config in grid)
        assert {c.pretraining for c in grid if has_more_rows(c)} == {p for p, count in counts.items() if count > 1}
        assert sorted(Counter(counts.values())) == [1, 2]
        assert all(row_seconds(c, "cuda") > c.steps * 1e-2 for c in grid)  # each may have to be pretrained

    def test_without_a_folder_the_row_is_the_same(self, made):
        _, row = made
        again = experiment("S11").compute(replace(SMALL, arms=("b=0",)))
        for one, two in zip(row["measurements"], again["measurements"], strict=False):
            assert one["confidence"] == pytest.approx(two["confidence"], abs=1e-3)

    def test_the_first_grid_starts_first_and_is_complete_without_the_others(self):
        study, grid = experiment("S11"), configs("full")
        started = [job.config for job in order([study], "full", "cuda")]
        first = {config_key(c) for c in started[:27]}
        main = [c for c in grid if (c.symbols, c.tied, c.distinct, c.arms, c.smoothing) == ("live", False, 0, MAIN, 0)]
        assert first == {config_key(c) for c in main}
        assert {(c.vocab_size, c.hidden_size) for c in main} == {
            (v, d) for v in (256, 4096, 65536) for d in (16, 64, 256)
        }
        assert coverage(study, grid, first).keys == first
        # dead tokens, little text, tied heads, further tunings, smoothed pretraining
        kinds = [(c.symbols == "dead", c.distinct > 0, c.tied, c.arms != MAIN, c.smoothing > 0) for c in started[27:]]
        assert [kind.index(True) for kind in kinds] == [*18 * [0], *27 * [1], *27 * [2], *12 * [3], *12 * [4]]
        # every b that a plain further tuning has is predicted where its model is tuned without
        predicted = {c.pretraining: set(c.predicted) for c in main}
        for further in (c for c in started if c.arms != MAIN):
            plain = {
                arm.label_smoothing
                for arm in map(arm_of, further.arms)
                if arm == (arm.name, *arm_of(f"b={arm.label_smoothing}")[1:])
            }
            assert plain == {0.05, 0.2}
            assert plain | {0.1} == predicted[further.pretraining]


class TestKept:
    @pytest.mark.parametrize("damage", [b"", b"no number", b"\x80\x04junk", b"PK\x03\x04", None])
    def test_it_is_made_once_and_again_where_it_is_damaged(self, tmp_path, damage):
        calls = []

        def make():
            calls.append(1)
            return {"made": torch.tensor(len(calls))}

        path = tmp_path / "new" / "a.kept"
        get = partial(kept, tmp_path / "new", "a", make, saved, loaded)
        assert [int(get()["made"]) for _ in range(2)] == [1, 1]
        path.write_bytes(path.read_bytes()[:100] if damage is None else damage)
        assert [int(get()["made"]) for _ in range(2)] == [2, 2]
        assert int(kept(None, "a", make, saved, loaded)["made"]) == 3

    def test_its_name_depends_on_defaults_too(self, monkeypatch):
        one = SMALL.pretraining
        monkeypatch.setattr(Sizes.__dataclass_fields__["step_size"], "default", 5e-3)
        assert config_key(one) != whole_key(one, 1)
        start = whole_key(one, 1)
        assert {whole_key(replace(one, sizes=replace(SIZES, step_size=1e-3)), 1), whole_key(one, 2)}.isdisjoint({start})
