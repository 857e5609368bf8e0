"""What would keep a trainer from its fused loss: refused before the first step, or at the first that goes without."""

import inspect
import types

import pytest
import torch
import torch.nn.functional as F
from tiny_training import LENGTH, Examples, V, arguments, model, smoothed_trainer

from kernel.huggingface import SmoothedLossMixin, fuse_loss, fused

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("quiet_libraries")


def smoothed(folder, trained=None, *, cls=None, label_smoothing=0.1, other_terms=False, **changes):
    made = cls or smoothed_trainer()
    data = {"train_dataset": Examples(16), "eval_dataset": Examples(8)}
    args = arguments(folder, max_steps=2, **changes)
    return made(trained or model(), args, label_smoothing=label_smoothing, other_terms=other_terms, **data)


class Plus100(transformers.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        return (loss + 100, outputs) if return_outputs else loss + 100


class TestOtherLosses:
    def test_a_class_between_the_mixin_and_the_trainer(self, tmp_path):
        class Between(SmoothedLossMixin, Plus100): ...

        with pytest.raises(TypeError, match=r"Plus100\.compute_loss would not run: SmoothedLossMixin stands before it"):
            smoothed(tmp_path, cls=Between)

    def test_a_class_before_the_mixin(self, tmp_path):
        class Before(Plus100, SmoothedLossMixin, transformers.Trainer): ...

        plain, more = (smoothed(tmp_path, cls=cls, other_terms=cls is Before) for cls in (None, Before))
        losses = []
        for trainer in (plain, more):
            trainer.train()
            losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
        assert losses[1] == pytest.approx([x + 100 for x in losses[0]], rel=1e-5)
        assert more.evaluate()["eval_loss"] > 100
        trainer = smoothed(tmp_path, cls=Before)
        text = r"Plus100\.compute_loss must return the fused loss, [\d.]+, got 10\d\.\d+: .* with other_terms=True"
        for call in (trainer.train, trainer.evaluate):
            with pytest.raises(ValueError, match=text):
                call()
        assert trainer.state.global_step == 0

    def test_a_mixin_before_no_trainer(self):
        class Alone(SmoothedLossMixin): ...

        with pytest.raises(TypeError, match=r"must stand before a subclass of transformers\.Trainer in Alone"):
            Alone()

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"loss_type": "dft"}, "args.loss_type must be 'nll', the loss that is smoothed, got 'dft'"),
            ({"router_aux_loss_coef": 0.1}, "args.router_aux_loss_coef must be None, got 0.1"),
        ],
    )
    def test_options_of_trl(self, tmp_path, change, text):
        import datasets
        import trl

        class SmoothedSFTTrainer(SmoothedLossMixin, trl.SFTTrainer): ...

        trained = model()
        trained.config.output_router_logits = False
        args = trl.SFTConfig(
            output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, **change,
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        data = datasets.Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}])
        with pytest.raises(ValueError, match=text):
            SmoothedSFTTrainer(trained, args, train_dataset=data, processing_class=tokenizer(), label_smoothing=0.1)

    def test_other_trainers_of_trl(self):
        import trl

        class Preferring(SmoothedLossMixin, trl.DPOTrainer): ...

        with pytest.raises(TypeError, match=r"DPOTrainer\.compute_loss would not run"):
            Preferring()

    @pytest.mark.parametrize("name", ["label_smoother", "compute_loss_func"])
    def test_a_loss_given_later(self, tmp_path, name):
        trainer = smoothed(tmp_path)
        setattr(trainer, name, lambda *args, **kwargs: torch.zeros(()))
        for call in (trainer.train, trainer.evaluate):
            with pytest.raises(ValueError, match=f"{name} must be None: it would need the logits"):
                call()

    def test_liger(self, tmp_path):
        import liger_kernel  # noqa: F401 - must be there

        with pytest.raises(ValueError, match=r"use_liger_kernel must not replace .*set args\.liger_kernel_config="):
            smoothed(tmp_path, use_liger_kernel=True)
        trainer = smoothed(tmp_path)
        trainer.args.use_liger_kernel = True
        with pytest.raises(ValueError, match="use_liger_kernel must not replace"):
            trainer.train()
        kernels = dict.fromkeys(("rope", "rms_norm", "swiglu", "fused_linear_cross_entropy"), False)
        trainer = smoothed(tmp_path, use_liger_kernel=True, liger_kernel_config=kernels)
        trainer.train()
        assert losses(trainer) == pytest.approx(losses_of_smoothed_logits(), rel=1e-4)


def tokenizer():
    import tokenizers

    words = {f"w{i}": i for i in range(V - 2)} | {"[PAD]": V - 2, "[EOS]": V - 1}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[PAD]"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", eos_token="[EOS]")


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def losses_of_smoothed_logits():
    trainer = transformers.Trainer(
        model(), arguments("/nowhere", max_steps=2, label_smoothing_factor=0.1), train_dataset=Examples(16)
    )
    trainer.train()
    return losses(trainer)


class TestTheLossCounts:
    @pytest.mark.parametrize("wrapped", [True, False])
    def test_a_forward_replaced_before_training(self, tmp_path, wrapped):
        trained = model()
        trainer = smoothed(tmp_path, trained)
        own = type(trained).forward

        def other(self, input_ids=None, labels=None, **kwargs):
            return own(self, input_ids=input_ids, labels=labels, **kwargs)

        if wrapped:
            other.__wrapped__ = own
        trained.forward = types.MethodType(other, trained)
        weights = trained.lm_head.weight.detach().clone()
        with pytest.raises(ValueError, match="its forward was replaced after it was fused"):
            trainer.train()
        assert torch.equal(trained.lm_head.weight, weights)
        assert trainer.state.global_step == 0
        with pytest.raises(ValueError, match="its forward was replaced after it was fused"):
            trainer.evaluate()

    def test_a_forward_replaced_in_training(self, tmp_path):
        class Replacing(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, model, **kwargs):
                model.forward = types.MethodType(type(model).forward, model)

        trainer = smoothed(tmp_path)
        trainer.add_callback(Replacing())
        with pytest.raises(ValueError, match="its forward was replaced after it was fused"):
            trainer.train()
        assert trainer.state.global_step == 1

    @pytest.mark.parametrize("by", ["class", "instance"])
    def test_a_compute_loss_that_does_not_call_it(self, tmp_path, by):
        def own(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            logits = model(inputs["input_ids"]).logits
            return F.cross_entropy(logits[:, :-1].reshape(-1, V), inputs["labels"][:, 1:].reshape(-1))

        cls = type("Own", (smoothed_trainer(),), {"compute_loss": own} if by == "class" else {})
        trainer = smoothed(tmp_path, cls=cls)
        if by == "instance":
            trainer.compute_loss = types.MethodType(own, trainer)
        with pytest.raises(
            ValueError, match=r"compute_loss, or the step around it, was overridden without a call of super\(\)"
        ):
            trainer.train()
        assert trainer.state.global_step == 0

    @pytest.mark.parametrize("name", ["compute_loss", "training_step", "on the instance", "forward"])
    def test_what_is_returned_is_the_fused_loss(self, tmp_path, name):
        """A step that runs the fused loss and then returns something else."""

        class Other(smoothed_trainer()):
            if name == "training_step":

                def training_step(self, *args, **kwargs):
                    return super().training_step(*args, **kwargs) * 2

            if name == "compute_loss":

                def compute_loss(self, model, inputs, **kwargs):
                    loss = super().compute_loss(model, inputs, **kwargs)
                    with torch.no_grad():
                        self.fused_loss.model(**inputs)
                    return loss.detach() * 0 + self.fused_loss.model.lm_head.weight.square().mean()

        trained = model()
        trainer = smoothed(tmp_path, trained, cls=Other)
        if name == "on the instance":
            first = trainer.compute_loss
            trainer.compute_loss = lambda *args, **kwargs: first(*args, **kwargs) * 2
        if name == "forward":
            inner = trained.forward

            def outer(*args, **kwargs):
                out = inner(*args, **kwargs)
                return out if out.loss is None else type(out)(loss=out.loss + 1)

            outer.__signature__ = inspect.signature(inner)
            trained.forward = outer
        owner = {"forward": "the forward put around the model", "on the instance": r"trainer\.compute_loss"}
        text = owner.get(name, rf".*Other\.{name}") + " must return the fused loss, "
        with pytest.raises(ValueError, match=text):
            trainer.train()
        assert trainer.state.global_step == 0
        assert "training_step" not in vars(trainer)

    @pytest.mark.parametrize("calls", [True, False])
    def test_what_an_evaluation_reports_is_the_fused_loss(self, tmp_path, calls):
        class Other(smoothed_trainer()):
            def prediction_step(self, model, inputs, *args, **kwargs):
                if not calls:
                    return torch.tensor(1.0), None, None
                loss, *others = super().prediction_step(model, inputs, *args, **kwargs)
                return loss / 2, *others

        trainer = smoothed(tmp_path, cls=Other)
        text = (
            r"Other\.prediction_step must return the fused loss, "
            if calls
            else "compute_loss, or the step around it, was overridden"
        )
        for call in (trainer.evaluate, lambda: trainer.predict(Examples(4))):
            with pytest.raises(ValueError, match=text):
                call()
        assert "prediction_step" not in vars(trainer)

    @pytest.mark.parametrize("changes", [{"gradient_accumulation_steps": 2}, {"average_tokens_across_devices": True}])
    def test_factors_of_the_trainer_are_its_own(self, tmp_path, changes):
        """The mean of a step over parts that the model normalises, or that it does not."""
        for normalised in (True, False):
            trainer = smoothed(tmp_path, **changes)
            trainer.model_accepts_loss_kwargs = normalised
            trainer.train()
            assert trainer.state.global_step == 2

    def test_a_step_that_never_calls_it(self, tmp_path):
        class Own(smoothed_trainer()):
            def training_step(self, model, inputs, num_items_in_batch=None):
                loss = model(**inputs).loss
                loss.backward()
                return loss.detach()

        trainer = smoothed(tmp_path, cls=Own)
        with pytest.raises(
            ValueError, match=r"compute_loss, or the step around it, was overridden without a call of super\(\)"
        ):
            trainer.train()
        assert trainer.state.global_step == 0

    def test_a_forward_wrapped_by_others_is_found(self, tmp_path):
        trained = model()
        trainer = smoothed(tmp_path, trained)
        inner, calls = trained.forward, []
        outer = lambda *args, **kwargs: calls.append(1) or inner(*args, **kwargs)  # noqa: E731
        outer.__signature__ = inspect.signature(inner)  # Trainers read which columns of the data it takes
        trained.forward = outer
        trainer.train()
        assert len(calls) == 3  # a look whether the loss is there, two steps
        assert losses(trainer) == pytest.approx(losses_of_smoothed_logits(), rel=1e-4)


class TestAfterwards:
    def test_the_models_own_loss_is_back(self, tmp_path):
        trained, data, inside = model(), Examples(4), []

        class Watching(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, model, **kwargs):
                inside.append(model(data.tokens, labels=data.labels))

        trainer = smoothed(tmp_path, trained)
        trainer.add_callback(Watching())
        trainer.train()
        outputs = trained(data.tokens, labels=data.labels)
        assert [out.logits is None for out in (outputs, *inside)] == [False, False, False]
        labels = data.labels[:, 1:].reshape(-1)
        torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits[:, :-1].reshape(-1, V), labels))
        assert fused(trained) is None
        again = smoothed(tmp_path, trained, label_smoothing=0.3)  # a second trainer
        again.train()
        assert trainer.fused_loss.options["label_smoothing"] == 0.1
        again.fused_loss.remove()
        assert "forward" not in trained.__dict__

    def test_after_a_trainer_of_transformers(self, tmp_path):
        """Whose accelerate leaves autocast around the forward."""
        trained = model()
        args = arguments(tmp_path, max_steps=1, bf16=True, learning_rate=0.0)
        transformers.Trainer(trained, args, train_dataset=Examples(16)).train()
        trainer = smoothed(tmp_path, trained)
        trainer.train()
        assert losses(trainer) == pytest.approx(losses_of_smoothed_logits(), rel=1e-4)

    def test_unless_asked_otherwise(self, tmp_path):
        trained, data = model(), Examples(4)
        trainer = smoothed_trainer()(
            trained, arguments(tmp_path, max_steps=1), train_dataset=data, label_smoothing=0.1, stay_fused=True
        )
        trainer.train()
        assert fused(trained) is trainer.fused_loss
        assert trained(data.tokens, labels=data.labels).logits is None

    def test_a_loss_fused_by_hand_comes_back(self, tmp_path):
        trained, data = model(), Examples(4)
        by_hand = fuse_loss(trained, label_smoothing=0.5)
        trainer = smoothed(tmp_path, trained)
        trainer.train()
        assert losses(trainer) == pytest.approx(losses_of_smoothed_logits(), rel=1e-4)
        assert fused(trained) is by_hand
        assert trained(data.tokens, labels=data.labels).logits is None

    @pytest.mark.parametrize("metrics", [True, False])
    def test_evaluation_reports_both(self, tmp_path, metrics):
        """The smoothed loss, a mean of batches as of the Trainer, and the log-likelihood of all labels."""
        evaluated, data = model(), Examples(7)
        trainer = smoothed_trainer()(
            evaluated,
            arguments(tmp_path),
            eval_dataset=data,
            label_smoothing=0.2,
            loss_options={"temperature": 2.0},
            compute_metrics=(lambda _: {"one": 1.0}) if metrics else None,
        )
        result = trainer.evaluate()
        logits = evaluated(data.tokens).logits[:, :-1].reshape(-1, V)
        labels = data.labels[:, 1:].reshape(-1)
        assert result["eval_nll"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        rows, columns = 4 * (LENGTH - 1), logits / 2
        means = [F.cross_entropy(columns[s], labels[s], label_smoothing=0.2) for s in (slice(rows), slice(rows, None))]
        assert result["eval_loss"] == pytest.approx(float(4 * means[0] + 3 * means[1]) / 7, rel=1e-5)
        assert abs(result["eval_loss"] - result["eval_nll"]) > 0.01
        assert ("eval_one" in result) == metrics
        assert trainer.predict(data).metrics["test_nll"] == pytest.approx(result["eval_nll"])
        assert "test_nll" not in trainer.predict([{"input_ids": row} for row in data.tokens]).metrics
