"""A fused model computes the model's own loss, or is refused: what the rules and the numbers of a head do not show."""

import copy
import functools
import os
import re
import types

import pytest
import torch
import torch.nn.functional as F
from tiny_models import D, V, make, of_class

import kernel.huggingface._architectures as architectures
from kernel.huggingface import Architecture, Extras, check_loss, fuse_loss, fused, linear_head, register_architecture
from kernel.huggingface._undisturbed import undisturbed

transformers = pytest.importorskip("transformers")

DIFFERENT = r"model's own loss must be the one of a head, scale and cap of '{}', got [\d.]+ from {} and [\d.]+ from the"


def batch(rows=4, length=12):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, V, (rows, length), generator=generator)
    labels = tokens.clone()
    labels[0, :5] = -100
    return tokens, labels


@pytest.fixture
def rules(monkeypatch):
    monkeypatch.setattr(architectures, "_RULES", dict(architectures._RULES))


class Divided(transformers.LlamaForCausalLM):
    def forward(self, *args, labels=None, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits / 4
        if labels is not None:
            out.loss = self.loss_function(out.logits, labels, V)
        return out


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
    def test_a_subclass_with_another_forward(self):
        model, (tokens, labels) = of_class(Divided), batch()
        with pytest.raises(ValueError, match=DIFFERENT.format("llama", "Divided")) as error:
            fuse_loss(model)
        assert "verify=False fuses without this comparison" in str(error.value)
        own, got = (float(x) for x in re.findall(r"\d+\.\d+", str(error.value)))
        assert own < got - 0.5  # logits of several nats, divided by 4
        assert "forward" not in model.__dict__
        expected = model(tokens, labels=labels).loss
        fuse_loss(model, verify=False)
        assert model(tokens, labels=labels).loss > expected + 0.5  # positional arguments find their names
        with pytest.raises(ValueError, match="model's own loss must be"):
            check_loss(of_class(Divided))

    def test_a_loss_function_of_ones_own(self):
        model, (tokens, labels) = make(), batch()
        model.loss_function = lambda logits, labels, vocab_size, **kwargs: (
            2 * F.cross_entropy(logits[:, :-1].reshape(-1, vocab_size), labels[:, 1:].reshape(-1))
        )
        with pytest.raises(ValueError, match=DIFFERENT.format("llama", "LlamaForCausalLM")):
            fuse_loss(model)
        model = make()
        fuse_loss(model)
        model.loss_function = lambda *args, **kwargs: torch.zeros(())
        with pytest.raises(ValueError, match=r"model\.loss_function must be what it was when the model was fused"):
            model(tokens, labels=labels)

    def test_keywords_of_a_loss_function_of_ones_own(self):
        def own(logits, labels, vocab_size, focus=0.0, **kwargs):
            return transformers.loss.loss_utils.ForCausalLMLoss(logits, labels, vocab_size, **kwargs) * (1 - focus)

        model, (tokens, labels) = make(), batch()
        model.loss_function = own
        expected = model(tokens, labels=labels).loss
        fuse_loss(model)
        torch.testing.assert_close(model(tokens, labels=labels).loss, expected)
        with pytest.raises(TypeError, match="got a keyword that its loss does not take: 'focus'"):
            model(tokens, labels=labels, focus=0.5)

    def test_a_forward_of_the_instance(self):
        model = make()

        def other(self, *args, **kwargs):
            out = type(self).forward(self, *args, **kwargs)
            return out if out.loss is None else type(out)(loss=out.loss + 1, logits=out.logits)

        model.forward = types.MethodType(other, model)
        with pytest.raises(ValueError, match=DIFFERENT.format("llama", "LlamaForCausalLM")):
            fuse_loss(model)
        assert model.forward.__func__ is other

    @pytest.mark.usefixtures("rules")
    @pytest.mark.parametrize(
        ("model_type", "field"),
        [("granite", "logits_scaling"), ("cohere", "logit_scale"), ("gemma2", "final_logit_softcapping")],
    )
    def test_a_rule_that_knows_too_little(self, model_type, field):
        register_architecture(model_type)
        with pytest.raises(ValueError, match=rf"config\.{field} must be unset, got [\d.]+: the rule of '{model_type}'"):
            fuse_loss(make(model_type), verify=False)
        with pytest.raises(ValueError, match=DIFFERENT.format(model_type, ".*ForCausalLM")):
            check_loss(make(model_type))

    @pytest.mark.usefixtures("rules")
    def test_an_auxiliary_loss_that_the_rule_does_not_know(self):
        sizes = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
        register_architecture("mixtral", Architecture())
        model, (tokens, labels) = make("mixtral", **sizes, router_aux_loss_coef=0.5), batch()
        fuse_loss(model)  # without router logits it is a plain loss
        for change in ("call", "config"):
            model.config.output_router_logits = change == "config"
            with pytest.raises(ValueError, match="output_router_logits must be False: the rule of 'mixtral' has no"):
                model(tokens, labels=labels, **({"output_router_logits": True} if change == "call" else {}))
        with pytest.raises(ValueError, match="output_router_logits must be False"):
            fuse_loss(model)

    def test_a_model_that_cannot_compute_its_own_loss(self):
        class Broken(transformers.LlamaForCausalLM):
            def forward(self, *args, **kwargs):
                raise RuntimeError("pixel_values must be given")

        text = (
            "Broken fails without any fused loss, on 18 tokens with labels: RuntimeError: pixel_values must be given. "
        )
        with pytest.raises(ValueError, match=text + r"Mend that first; .*verify=False fuses") as error:
            fuse_loss(of_class(Broken))
        assert isinstance(error.value.__cause__, RuntimeError)

    @pytest.mark.parametrize("model_type", ["cohere", "cohere2", "granite", "gemma2", "llama", "phi"])
    def test_scale_and_cap_meet_a_bias_as_in_the_model(self, model_type):
        model, (tokens, labels) = make(model_type, tie_word_embeddings=False), batch()
        model.lm_head = torch.nn.Linear(D, V, bias=True)
        torch.nn.init.normal_(model.lm_head.bias, std=3.0)
        own = model(tokens, labels=labels).loss
        own.backward()
        expected = model.lm_head.bias.grad.clone()
        model.zero_grad()
        fuse_loss(model)
        loss = model(tokens, labels=labels).loss
        torch.testing.assert_close(loss, own, rtol=1e-5, atol=1e-5)
        loss.backward()
        torch.testing.assert_close(model.lm_head.bias.grad, expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        ("model_type", "field", "value"),
        [("granite", "logits_scaling", 1.5), ("gemma2", "final_logit_softcapping", 0.7), ("gemma2", "final_logit_softcapping", None)],
    )  # fmt: skip
    def test_options_are_read_at_each_call(self, model_type, field, value):
        model, (tokens, labels) = make(model_type), batch()
        fuse_loss(model)
        before = model(tokens, labels=labels).loss
        setattr(model.config, field, value)
        model.__dict__.update({"logit_scale": value} if field == "logit_scale" else {})
        loss = model(tokens, labels=labels).loss
        logits = model(tokens).logits[:, :-1]
        torch.testing.assert_close(loss, F.cross_entropy(logits.reshape(-1, V), labels[:, 1:].reshape(-1)))
        assert (loss - before).abs() > 0.05

    def test_a_cap_of_the_config_that_comes_later_meets_the_cap_of_the_loss(self):
        model, (tokens, labels) = make("gemma2"), batch()
        model.config.final_logit_softcapping = None
        fuse_loss(model, softcap=5.0)
        model.config.final_logit_softcapping = 3.0
        with pytest.raises(ValueError, match=r"softcap must be None for a model whose config caps at 3\.0, got 5.0"):
            model(tokens, labels=labels)

    def test_bfloat16_and_autocast(self):
        assert fuse_loss(make().to(torch.bfloat16)) is not None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fuse_loss(make())
            with pytest.raises(ValueError, match="model's own loss must be"):
                fuse_loss(of_class(Divided))
        with pytest.raises(ValueError, match="model's own loss must be"):
            fuse_loss(of_class(Divided).to(torch.bfloat16))

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


def hooked(model):
    model.lm_head.register_forward_hook(lambda module, x, y: y / 4)
    return model


def pre_hooked(model):
    model.lm_head.register_forward_pre_hook(lambda module, x: (x[0] / 4,))
    return model


def parametrised(model):
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)
    return model


def own_forward(model):
    model.lm_head.forward = lambda x: 2 * F.linear(x, model.lm_head.weight)
    return model


class Scaled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def subclassed(model):
    model.lm_head = Scaled(D, V, bias=False)
    return model


def on_meta(model):
    return model.to("meta")


def offloaded(model):
    import accelerate

    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def quantised(model):
    from torchao import quantization

    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(), filter_fn=lambda module, name: name == "lm_head")
    return model


def of_integers(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.to(torch.int8), requires_grad=False)
    return model


def of_float8(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.to(torch.float8_e4m3fn), requires_grad=False)
    return model


def hooked_wrapper(model):
    import peft

    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    wrapped = peft.get_peft_model(model, config).get_base_model()
    wrapped.lm_head.register_forward_hook(lambda module, x, y: y / 4)
    return wrapped


def of_trainable_tokens(model):
    import peft

    model.lm_head.weight = model.get_input_embeddings().weight
    model.config.tie_word_embeddings = True
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=[1, 2])
    return peft.get_peft_model(model, config).get_base_model()


UNREADABLE = [
    (hooked_wrapper, "has hooks, which would not run. Remove them"),
    (
        of_trainable_tokens,
        r"is a peft\..*TrainableTokensWrapper, no torch.nn.Linear. Train the head through modules_to",
    ),
    (hooked, "has hooks, which would not run. Remove them"),
    (pre_hooked, "has hooks, which would not run. Remove them"),
    (parametrised, "has a parametrization. Remove it"),
    (own_forward, "has a forward of its own, which would not run. Remove it"),
    (subclassed, "is a Scaled, whose forward may compute something else. Put a torch.nn.Linear in its place"),
    (on_meta, "is on the meta device, without numbers. Load or materialise its weights"),
    (offloaded, r"is offloaded by accelerate. Load the model with its head on a device \(device_map\)"),
    (quantised, "holds a .*, no plain tensor. Leave the head out of quantisation"),
    (of_integers, "holds int8. Leave the head out of quantisation"),
    (of_float8, "holds float8_e4m3fn. Leave the head out of quantisation"),
]


class TestHead:
    @pytest.mark.parametrize(("change", "text"), UNREADABLE, ids=[change.__name__ for change, _ in UNREADABLE])
    @pytest.mark.filterwarnings("ignore")  # of torchao's imports
    def test_what_is_no_matrix_is_refused(self, change, text):
        model = change(make(tie_word_embeddings=False))
        for verify in (True, False):
            with pytest.raises(TypeError, match=f"can be read as one floating-point matrix, got one that {text}"):
                fuse_loss(model, verify=verify)
        with pytest.raises(TypeError, match=text):
            linear_head(model)
        with pytest.raises(TypeError, match=text):
            check_loss(model)

    @pytest.mark.parametrize("change", [hooked, own_forward], ids=lambda change: change.__name__)
    def test_a_hook_that_comes_later(self, change):
        model, (tokens, labels) = make(), batch()
        fuse_loss(model)
        change(model)
        with pytest.raises(TypeError, match="got one that has "):
            model(tokens, labels=labels)

    def test_a_head_that_accelerate_moves(self):
        import accelerate

        model, (tokens, labels) = make(), batch()
        own = model(tokens, labels=labels).loss
        accelerate.hooks.add_hook_to_module(
            model.lm_head, accelerate.hooks.AlignDevicesHook(torch.device("cpu"), io_same_device=True)
        )
        fuse_loss(model)
        torch.testing.assert_close(model(tokens, labels=labels).loss, own)

    def test_a_quantised_body_under_a_plain_head(self):
        from torchao import quantization

        model, (tokens, labels) = make(tie_word_embeddings=False), batch()
        quantization.quantize_(
            model,
            quantization.Int8WeightOnlyConfig(),
            filter_fn=lambda m, name: isinstance(m, torch.nn.Linear) and name != "lm_head",
        )
        own = model(tokens, labels=labels).loss
        fuse_loss(model)
        torch.testing.assert_close(model(tokens, labels=labels).loss, own)

    def test_a_float32_head_on_a_bfloat16_body(self):
        """Mamba casts hidden states to the head's dtype; Llama fails by itself, and says so before the first step."""

        class Casting(transformers.LlamaForCausalLM):
            def forward(self, *args, labels=None, num_items_in_batch=None, **kwargs):
                hidden = self.model(*args, **{k: v for k, v in kwargs.items() if k != "return_dict"})[0]
                logits = self.lm_head(hidden.to(self.lm_head.weight.dtype))
                loss = None if labels is None else self.loss_function(logits, labels, V, num_items_in_batch)
                return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits)

        tokens, labels = batch()
        model = of_class(Casting, tie_word_embeddings=False).to(torch.bfloat16)
        model.lm_head.float()
        own = model(input_ids=tokens, labels=labels).loss
        fuse_loss(model, eval_logits=True)
        out = model(input_ids=tokens, labels=labels)
        assert out.loss.dtype == out.logits.dtype == torch.float32
        torch.testing.assert_close(out.loss, own, rtol=1e-5, atol=1e-5)
        model.train()(input_ids=tokens, labels=labels).loss.backward()
        assert model.lm_head.weight.grad.dtype == torch.float32
        plain = make(tie_word_embeddings=False).to(torch.bfloat16)
        plain.lm_head.float()
        with pytest.raises(
            ValueError, match=r"LlamaForCausalLM fails without any fused loss, on 18 tokens .*RuntimeError: .*dtype"
        ):
            fuse_loss(plain)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # as a Trainer with bf16=True computes it
            own = plain(tokens, labels=labels).loss
            fuse_loss(plain)
            torch.testing.assert_close(plain(tokens, labels=labels).loss, own, rtol=2e-2, atol=2e-2)


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
            (lambda x: x[:, :5], ValueError, r"target must have shape \(4, 12\), .* got \(4, 5\)"),
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


@pytest.mark.skipif(os.name != "posix", reason="needs gloo")
class TestSharded:
    @pytest.fixture
    def mesh(self, tmp_path):
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
        yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        torch.distributed.destroy_process_group()

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("first", ["fused", "sharded"])
    def test_fsdp_units_of_blocks(self, mesh, first):
        from torch.distributed.fsdp import fully_shard

        model, (tokens, labels) = make(), batch()
        own = model(tokens, labels=labels).loss
        if first == "fused":
            fuse_loss(model)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if first == "sharded":
            fuse_loss(model)
        loss = model(tokens, labels=labels).loss
        torch.testing.assert_close(loss, own)
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        other = of_class(Divided)
        fully_shard(other, mesh=mesh)
        with pytest.raises(ValueError, match="model's own loss must be"):
            fuse_loss(other)

    @pytest.mark.filterwarnings("ignore")
    def test_a_unit_of_the_head_alone(self, mesh):
        from torch.distributed.fsdp import fully_shard

        model, (tokens, labels) = make(tie_word_embeddings=False), batch()
        fully_shard(model.lm_head, mesh=mesh)
        fully_shard(model, mesh=mesh)
        with pytest.raises(TypeError, match="got one that has hooks"):
            fuse_loss(model)
        from torch.distributed.tensor import Shard, distribute_tensor

        model = make(tie_word_embeddings=False)
        model.lm_head.weight = torch.nn.Parameter(distribute_tensor(model.lm_head.weight.detach(), mesh, [Shard(0)]))
        with pytest.raises((TypeError, ValueError), match=r"is sharded|fails without any fused loss"):
            fuse_loss(model)
        fuse_loss(model, verify=False)
        with pytest.raises(
            TypeError, match=r"got one that is sharded \(DTensor of shape \(67, 16\)\). Leave the head out"
        ):
            model(tokens, labels=labels)
        assert fused(model) is not None
