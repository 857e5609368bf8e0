"""The comparison with the model's own loss leaves the model as it was."""

import pytest
import torch
from tiny_models import batch, make, of_class

from kernel.huggingface import fuse_loss
from kernel.huggingface._undisturbed import undisturbed

transformers = pytest.importorskip("transformers")


class OwnBody(transformers.LlamaForCausalLM):
    """Its own loss, in a forward that leaves traces."""

    def forward(self, *args, **kwargs):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(*args, **kwargs)


class Remembers(transformers.LlamaForCausalLM):
    """Keeps things of each call, in place and anew."""

    def __init__(self, config):
        super().__init__(config)
        self.counts, self.seen, self.by_length, self.lengths = torch.tensor([1.0, 2.0]), ["a"], {1: "a"}, {1}
        self.last, self._calls = "a", 0

    def forward(self, *args, **kwargs):
        self.counts += 1
        self.seen.append("b")
        self.by_length.update({1: "b", 2: "b"})
        self.lengths.add(2)
        self.last, self._calls = "b", self._calls + 1
        self.fresh = self._fresh = [*getattr(self, "fresh", []), "b"]
        self.register_buffer("cached", torch.ones(1), persistent=False)
        return super().forward(*args, **kwargs)


class TestComparison:
    @pytest.mark.parametrize("training", [True, False])
    def test_the_comparison_leaves_no_trace(self, training):
        model = of_class(OwnBody, attention_dropout=0.5).train(training)
        model.model.layers[0].train(not training)
        model.calls = 3
        model.model.register_buffer("steps", torch.zeros(1))
        seen = []
        model.model.norm.register_forward_hook(lambda *_: seen.append(1))
        model.model.norm.register_forward_pre_hook(lambda *_: model.model.steps.add_(1) and None)
        modes = [m.training for m in model.modules()]
        hooks = list(model.model.norm._forward_hooks)
        torch.manual_seed(7)
        state = torch.get_rng_state()
        with fuse_loss(model):
            assert [m.training for m in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)
        assert (model.calls, seen, float(model.model.steps)) == (3, [], 0.0)
        assert all(p.grad is None for p in model.parameters())
        model(batch()[0])
        assert (seen, float(model.model.steps), list(model.model.norm._forward_hooks)) == ([1], 1.0, hooks)

    def test_what_a_forward_keeps_is_as_before(self):
        model = of_class(Remembers)
        before = {name: getattr(model, name) for name in ("counts", "seen", "by_length", "lengths", "last")}
        fuse_loss(model)
        assert all(getattr(model, name) is value for name, value in before.items())
        assert (model.counts.tolist(), model.seen, model.by_length, model.lengths) == ([1.0, 2.0], ["a"], {1: "a"}, {1})
        assert (model.last, model._calls) == ("a", 0)
        assert not hasattr(model, "fresh")
        assert not hasattr(model, "_fresh")
        assert not hasattr(model, "cached")
        model(batch()[0], output_hidden_states=True)
        assert (model._calls, len(model.fresh)) == (1, 1)

    def test_hidden_states_are_still_captured(self):
        """By hooks that transformers installs at the first call, and notes that it did."""
        model = make()
        for _ in range(2):
            fuse_loss(model)
            assert len(model(batch()[0], output_hidden_states=True).hidden_states) > 1

    def test_everything_is_put_back_after_an_error_too(self):
        model = make().train()
        model.model.register_buffer("steps", torch.zeros(1))

        def fail():
            with undisturbed(model):
                model.model.steps.add_(1)
                assert not model.training
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            fail()
        assert model.training
        assert float(model.model.steps) == 0

    def test_no_comparison(self, monkeypatch):
        model = make()
        monkeypatch.setattr(type(model), "forward", lambda *_, **__: pytest.fail("the model ran"))
        fuse_loss(model, verify=False)
