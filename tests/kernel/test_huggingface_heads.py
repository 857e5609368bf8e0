"""Heads that are no plain matrix are refused; those that are computed in another way give the model's own loss."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import D, V, batch, make, of_class

from kernel.huggingface import check_loss, fuse_loss, linear_head

transformers = pytest.importorskip("transformers")


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
