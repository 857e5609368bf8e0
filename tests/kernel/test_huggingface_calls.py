"""A fused model is called as the model itself is: the same inputs, keywords and outputs, or a refusal."""

import copy
import functools
import types

import pytest
import torch
from tiny_models import V, batch, make, of_class

from kernel.huggingface import Architecture, Extras, fuse_loss, fused, register_architecture

transformers = pytest.importorskip("transformers")


class TestAfterFusing:
    def test_a_head_that_grows(self):
        model, (tokens, labels) = make(), batch()
        fuse_loss(model)
        model.resize_token_embeddings(V + 5)
        loss = model(tokens, labels=labels).loss
        fused(model).remove()
        torch.testing.assert_close(loss, model(tokens, labels=labels).loss)

    def test_weights_given_for_one_call(self):
        model, (tokens, labels) = make(), batch()
        fuse_loss(model, label_smoothing=0.1)
        other = {name: 1.5 * value for name, value in model.state_dict().items()}
        loss = torch.func.functional_call(model, other, (tokens,), {"labels": labels}).loss
        model.load_state_dict(other)
        torch.testing.assert_close(loss, model(tokens, labels=labels).loss)

    def test_embeddings_for_tokens(self):
        model, (tokens, labels) = make(), batch()
        embedded = model.get_input_embeddings()(tokens)
        own = model(inputs_embeds=embedded, labels=labels).loss
        fuse_loss(model)
        torch.testing.assert_close(model(inputs_embeds=embedded, labels=labels).loss, own)

    def test_fused_in_training_with_checkpointing_and_again(self):
        model, (tokens, labels) = make().train(), batch()
        (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)({"use_reentrant": False})  # fmt: skip
        for _ in range(2):  # what transformers' hooks collect is not collected twice
            fuse_loss(model)
            out = model(tokens, labels=labels, output_hidden_states=True)
            assert len(out.hidden_states) == 1 + model.config.num_hidden_layers
        out.loss.backward()
        assert all(p.grad is not None for p in model.parameters())

    @pytest.mark.parametrize(
        ("labels", "error", "text"),
        [
            (lambda x: x.int(), TypeError, "target must be int64, got torch.int32"),
            (lambda x: x + V, ValueError, r"target must be in \[0, 67\) or equal ignore_index=-100"),
            (lambda x: x[:, :5], ValueError, r"target must have shape \(3, 12\), .* got \(3, 5\)"),
        ],
        ids=["integers", "range", "length"],
    )
    def test_labels_that_are_none(self, labels, error, text):
        model, (tokens, _) = make(), batch()
        fuse_loss(model)
        with pytest.raises(error, match=text):
            model(tokens, labels=labels(tokens))


class TestKeywords:
    def test_ignore_index_is_honoured(self):
        model, (tokens, _) = make(), batch()
        tokens[1, 3:7] = 0
        own = model(tokens, labels=tokens, ignore_index=0).loss
        assert (own - model(tokens, labels=tokens).loss).abs() > 1e-3
        fuse_loss(model)
        torch.testing.assert_close(model(tokens, labels=tokens, ignore_index=0).loss, own)
        summed = model(tokens, labels=tokens, ignore_index=0, num_items_in_batch=10).loss
        torch.testing.assert_close(summed, own * (tokens[:, 1:] != 0).sum() / 10)

    @pytest.mark.parametrize("name", ["weight", "reduction", "label_smoothing", "temperature", "fused_lm_head"])
    def test_what_the_loss_does_not_take_is_refused(self, name):
        model, (tokens, labels) = make(), batch()
        fuse_loss(model)
        with pytest.raises(TypeError, match=f"got a keyword that its loss does not take: '{name}'"):
            model(tokens, labels=labels, **{name: 1})
        assert model(tokens, **({} if name == "fused_lm_head" else {name: 1})).logits is not None

    @pytest.mark.parametrize("where", ["subclass", "instance", "loss_function", "loss_type", "partial", "popped"])
    def test_what_only_ones_own_code_reads_is_refused(self, where, monkeypatch):
        def loss(logits, labels, vocab_size, my_weight=1, **kwargs):
            return my_weight * transformers.loss.loss_utils.ForCausalLMLoss(logits, labels, vocab_size, **kwargs)

        def weighted(self, *args, my_weight=None, **kwargs):
            out = transformers.LlamaForCausalLM.forward(self, *args, **kwargs)
            if my_weight is not None:
                out.loss = out.loss * my_weight
            return out

        def popping(self, *args, **kwargs):
            return weighted(self, *args, my_weight=kwargs.pop("my_weight", None), **kwargs)

        if where in ("subclass", "popped"):
            forward = weighted if where == "subclass" else popping
            model = of_class(type("Weighted", (transformers.LlamaForCausalLM,), {"forward": forward}))
        elif where == "instance":
            model = make()
            model.forward = types.MethodType(weighted, model)
        elif where == "loss_type":
            monkeypatch.setitem(transformers.loss.loss_utils.LOSS_MAPPING, "Weighted", loss)
            model = make()
            model.loss_type = "Weighted"
        elif where == "partial":
            model = make()
            model.loss_function = functools.partial(loss, my_weight=1)
        else:

            class Weighted(transformers.LlamaForCausalLM):
                def loss_function(self, logits, labels, vocab_size, my_weight=1, **kwargs):
                    return loss(logits, labels, vocab_size, my_weight, **kwargs)

            model = of_class(Weighted)
        tokens, labels = batch()
        everything = {"attention_mask": torch.ones_like(tokens), "output_hidden_states": True, "use_cache": False}
        own = model(input_ids=tokens, labels=labels, my_weight=2, **everything).loss
        fuse_loss(model)
        torch.testing.assert_close(2 * model(input_ids=tokens, labels=labels, **everything).loss, own)
        with pytest.raises(
            TypeError, match=r"got a keyword that its loss does not take: 'my_weight'.*Architecture whose"
        ):
            model(input_ids=tokens, labels=labels, my_weight=2)
        fuse_loss(model)  # a second time, around the first
        with pytest.raises(TypeError, match="does not take: 'my_weight'"):
            model(input_ids=tokens, labels=labels, my_weight=2)

    @pytest.mark.usefixtures("rules")
    def test_what_the_body_or_a_registered_rule_reads_is_honoured(self):
        class Body(transformers.LlamaModel):
            def forward(self, *args, shift=0.0, **kwargs):
                out = super().forward(*args, **kwargs)
                out.last_hidden_state = out.last_hidden_state + shift
                return out

        class Shifting(transformers.LlamaForCausalLM):
            def __init__(self, config):
                super().__init__(config)
                self.model = Body(config)

        class Adding(transformers.LlamaForCausalLM):
            def forward(self, *args, more=0.0, **kwargs):
                out = super().forward(*args, **kwargs)
                out.loss = out.loss + more
                return out

        tokens, labels = batch()
        for cls, given in ((Shifting, {"shift": 0.5}), (Adding, {"more": 0.5})):
            if cls is Adding:
                register_architecture(
                    "llama",
                    Architecture(extras=lambda model, outputs, given: Extras(torch.tensor(given.get("more", 0.0)))),
                )
            model = of_class(cls)
            own = [model(input_ids=tokens, labels=labels, **more).loss for more in ({}, given)]
            fuse_loss(model)
            got = [model(input_ids=tokens, labels=labels, **more).loss for more in ({}, given)]
            torch.testing.assert_close(got, own)
            assert abs(own[1] - own[0]) > 0.1

    def test_without_any_label(self):
        model, (tokens, _) = make(), batch()
        none = torch.full_like(tokens, -100)
        own = model(tokens, labels=none, num_items_in_batch=1).loss
        fuse_loss(model, label_smoothing=0.1)
        assert model(tokens, labels=none).loss.isnan()
        torch.testing.assert_close(model(tokens, labels=none, num_items_in_batch=1).loss, own)

    @pytest.mark.parametrize("eval_logits", [True, False])
    def test_tuples_keep_the_place_of_the_logits(self, eval_logits):
        model, (tokens, labels) = make(), batch()
        own = model(tokens, labels=labels, return_dict=False)
        fuse_loss(model, eval_logits=eval_logits)
        got = model(tokens, labels=labels, return_dict=False)
        assert len(got) == len(own)
        assert type(got[2]) is type(own[2])
        assert (got[1] is None) is not eval_logits
        model.config.return_dict = False
        assert isinstance(model(tokens, labels=labels), tuple)

    def test_a_cache_of_earlier_tokens(self):
        model, (tokens, labels) = make(), batch()
        with torch.no_grad():
            past = model(tokens[:, :5], use_cache=True).past_key_values
        own = model(tokens[:, 5:], labels=labels[:, 5:], past_key_values=copy.deepcopy(past)).loss
        fuse_loss(model)
        got = model(tokens[:, 5:], labels=labels[:, 5:], past_key_values=past)
        torch.testing.assert_close(got.loss, own)
        assert got.past_key_values.get_seq_length() == tokens.shape[1]
