"""The comparison made on fusing: special tokens, padding, training mode, half precision, and models that fail by themselves."""

import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from tiny_architectures import TINY, make_tiny
from tiny_models import D, V, make, of_class

from kernel.huggingface import check_loss, fuse_loss, fused
from kernel.huggingface._compare import _tf32
from kernel.huggingface._tokens import plain_tokens, special_tokens

transformers = pytest.importorskip("transformers")
Llama = transformers.LlamaForCausalLM
DIFFERENT = r"model's own loss must be the one of a head, .* without smoothing on 18 tokens"


def relabelled(change):
    """A Llama that leaves out labels."""

    class Relabelling(Llama):
        def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
            if labels is not None:
                labels = labels.masked_fill(change(self.config, input_ids, attention_mask), -100)
            return super().forward(input_ids, attention_mask, labels=labels, **kwargs)

    return of_class(Relabelling)


class Plus(Llama):
    """Its loss and a tenth of a nat, always or in training mode alone."""

    always = True

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        if out.loss is not None and (self.always or self.training):
            out.loss = out.loss + 0.1
        return out


class PlusInTraining(Plus):
    always = False


def steep(model, dtype, factor=40):
    """With logits of a hundred nats."""
    with torch.no_grad():
        model.lm_head.weight.mul_(factor)
    model = model.to(dtype)
    assert model(plain_tokens(model)["input_ids"]).logits.abs().max() > 50
    return model


LEFT_OUT = {
    "ends": lambda config, ids, mask: ids == config.eos_token_id,
    "beginnings": lambda config, ids, mask: ids == config.bos_token_id,
    "padding by token": lambda config, ids, mask: ids == config.pad_token_id,
    "padding by mask": lambda config, ids, mask: torch.zeros_like(ids, dtype=torch.bool) if mask is None else mask == 0,
}


class TestWhatIsCompared:
    def test_tokens(self):
        model = make(unk_token_id=5)
        plain, special = plain_tokens(model), special_tokens(model)
        ids, mask = special["input_ids"], special["attention_mask"]
        assert not {0, 1, 2, 5} & {*plain["input_ids"].flatten().tolist()}
        assert {0, 1, 2, 5} <= {*ids[0].tolist()}
        assert mask.sum(1).tolist() == [9, 5]
        assert ids[1, 5:].tolist() == [0] * 4
        assert torch.equal(ids, special["labels"])

    def test_no_token_of_an_image(self):
        model = make()
        model.config.image_token_id, model.config.eos_token_id = 7, [2, 7]
        assert 7 not in special_tokens(model)["input_ids"]

    def test_a_config_without_special_tokens(self):
        model = make(pad_token_id=None, bos_token_id=None, eos_token_id=None)
        assert special_tokens(model)["attention_mask"].sum() == 14
        fuse_loss(model)

    @pytest.mark.parametrize("what", LEFT_OUT)
    def test_labels_left_out(self, what):
        with pytest.raises(ValueError, match=DIFFERENT + " with special ones and padding: its forward"):
            fuse_loss(relabelled(LEFT_OUT[what]))

    def test_a_loss_function_that_leaves_out_a_token(self):
        model = make()
        model.loss_function = lambda logits, labels, vocab_size, **kwargs: F.cross_entropy(
            logits[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1).masked_fill(labels[:, 1:].reshape(-1) == 2, -100)
        )
        with pytest.raises(ValueError, match=DIFFERENT + " with special ones and padding"):
            fuse_loss(model)

    def test_a_term_in_training_mode(self):
        model = of_class(PlusInTraining, attention_dropout=0.5).train()
        torch.manual_seed(3)
        state = torch.get_rng_state()
        with pytest.raises(ValueError, match=DIFFERENT + " in training mode: its forward"):
            fuse_loss(model)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(module.training for module in model.modules())
        fuse_loss(make(attention_dropout=0.5).train())  # dropout of layers is no difference

    @pytest.mark.parametrize("mask", [-torch.inf, torch.finfo(torch.float32).min])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_tokens_masked_out_of_the_logits(self, mask, dtype):
        """Whose size is no rounding."""
        used = [batch(make())["labels"] for batch in (plain_tokens, special_tokens)]
        absent = [x for x in range(V) if not any((x == labels).any() for labels in used)]

        class Masking(Llama):
            def forward(self, *args, labels=None, num_items_in_batch=None, **kwargs):
                out = super().forward(*args, **kwargs)
                out.logits = out.logits.float()
                out.logits[..., absent] = mask
                if labels is not None:
                    out.loss = self.loss_function(out.logits, labels, V, num_items_in_batch)
                return out

        with pytest.raises(ValueError, match=DIFFERENT):
            fuse_loss(of_class(Masking).to(dtype))

    def test_a_loss_that_ignores_the_number_of_items(self):
        model = make()
        model.loss_function = lambda logits, labels, vocab_size, **kwargs: F.cross_entropy(
            logits[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1)
        )
        with pytest.raises(
            ValueError, match=DIFFERENT + " with num_items_in_batch=5, as Trainers give it: its forward"
        ):
            fuse_loss(model)

    def test_a_model_that_returns_tuples(self):
        for cls in (Llama, Plus):
            model = of_class(cls)
            own = functools.partial(cls.forward, model)
            model.forward = lambda own=own, **inputs: tuple(own(**inputs).values())
            with contextlib.nullcontext() if cls is Llama else pytest.raises(ValueError, match=DIFFERENT):
                fuse_loss(model)

    def test_a_batch_that_the_model_cannot_compute_is_left_out(self):
        class Unpadded(Llama):
            def forward(self, input_ids=None, labels=None, attention_mask=None):
                if attention_mask is not None:
                    raise NotImplementedError("no padding")
                return super().forward(input_ids, labels=labels)

        model = of_class(Unpadded)
        own = model(**plain_tokens(model)).loss
        fuse_loss(model)
        torch.testing.assert_close(model(**plain_tokens(model)).loss, own)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_a_tenth_of_a_nat_shows_beside_large_logits(self, dtype):
        check_loss(steep(make(tie_word_embeddings=False), dtype))
        with pytest.raises(ValueError, match=DIFFERENT):
            check_loss(steep(of_class(Plus, tie_word_embeddings=False), dtype))

    def test_under_autocast(self):
        right, wrong = (steep(of_class(cls, tie_word_embeddings=False), torch.float32) for cls in (Llama, Plus))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            check_loss(right)
            with pytest.raises(ValueError, match=DIFFERENT):
                check_loss(wrong)

    def test_logits_made_without_the_head_may_be_rounded(self):
        class Functional(Llama):
            def forward(self, input_ids=None, attention_mask=None, labels=None, return_dict=None):
                hidden = self.model(input_ids, attention_mask=attention_mask)[0]
                logits = F.linear(hidden, self.lm_head.weight)
                loss = self.loss_function(logits, labels, V)
                return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits)

        model = of_class(Functional, tie_word_embeddings=False).to(torch.bfloat16)
        check_loss(model)
        model.loss_function = lambda logits, labels, vocab_size: logits.float().square().mean()
        with pytest.raises(ValueError, match=DIFFERENT):
            check_loss(model)

    @pytest.mark.parametrize(("noise", "passes"), [(1e-3, True), (0.5, False)])
    def test_a_model_that_sums_in_another_order_at_each_call(self, noise, passes):
        class Noisy(Llama):
            def forward(self, *args, **kwargs):
                out = super().forward(*args, **kwargs)
                out.loss = out.loss * (1 + noise * torch.rand(()))
                return out

        model = of_class(Noisy).to(torch.bfloat16)
        if passes:
            check_loss(model)
        else:
            with pytest.raises(ValueError, match=DIFFERENT):
                check_loss(model)

    @pytest.mark.parametrize(("precision", "rounds"), [("highest", False), ("high", True), (None, True)])
    def test_products_of_float32_on_a_gpu_are_rounded_if_they_may_be(self, precision, rounds, monkeypatch):
        def setting():
            if precision is None:
                raise RuntimeError("a mix of the legacy and new APIs")
            return precision

        monkeypatch.setattr(torch, "get_float32_matmul_precision", setting)
        assert _tf32() == rounds

    @pytest.mark.parametrize("model_type", ["granite", "cohere", "gemma2"])
    def test_a_scaled_bias_of_half_precision(self, model_type):
        model = make(model_type, tie_word_embeddings=False)
        model.lm_head = torch.nn.Linear(D, V, bias=True)
        torch.nn.init.normal_(model.lm_head.bias, std=5.0)
        check_loss(model.to(torch.bfloat16))

    @pytest.mark.parametrize("model_type", sorted(TINY)[::4])
    def test_architectures_in_bfloat16(self, model_type):
        model = make_tiny(model_type).to(torch.bfloat16)
        fuse_loss(model)
        assert fused(model) is not None
        assert "forward" not in model.get_output_embeddings().__dict__
        own = model.loss_function
        model.loss_function = lambda *args, **kwargs: 0.02 + own(*args, **kwargs)
        with pytest.raises(ValueError, match=DIFFERENT):
            check_loss(model)


class TestModelsThatFail:
    def test_parameters_that_are_not_finite(self):
        model = make()
        weight = model.model.layers[1].mlp.down_proj.weight
        for bad in (torch.nan, torch.inf):
            with torch.no_grad():
                weight[0, 0] = bad
            text = (
                r"finite loss of its own, got nan from Llama.* parameter 'model\.layers\.1\.mlp\.down_proj\.weight' is"
            )
            with pytest.raises(ValueError, match=text):
                fuse_loss(model)

    def test_an_embedding_that_only_a_special_token_reads(self):
        model = make(tie_word_embeddings=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[2] = torch.nan
        with pytest.raises(ValueError, match=r"the parameter 'model\.embed_tokens\.weight' is not finite"):
            fuse_loss(model)

    def test_numbers_that_overflow(self):
        class Overflowing(Llama):
            def forward(self, *args, **kwargs):
                out = super().forward(*args, **kwargs)
                out.loss = out.loss * torch.inf
                return out

        with pytest.raises(
            ValueError, match=r"finite loss of its own, got inf from Overflowing .*its activations overf"
        ):
            fuse_loss(of_class(Overflowing))
