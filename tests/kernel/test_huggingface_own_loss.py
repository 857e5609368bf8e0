"""A fused model computes the model's own loss, or is refused: what the rules of a head do not show."""

import os
import re
import types

import pytest
import torch
import torch.nn.functional as F
from tiny_models import D, V, batch, make, of_class

from kernel.huggingface import Architecture, check_loss, fuse_loss, fused, register_architecture

transformers = pytest.importorskip("transformers")

DIFFERENT = r"model's own loss must be the one of a head, scale and cap of '{}', got [\d.]+ from {} and [\d.]+ from the"


class Divided(transformers.LlamaForCausalLM):
    def forward(self, *args, labels=None, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits / 4
        if labels is not None:
            out.loss = self.loss_function(out.logits, labels, V)
        return out


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
