"""Trainers with the fused loss: gradient accumulation, mixed precision, evaluation, PEFT and TRL."""

import copy
import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny_models import count_calls
from tiny_training import LENGTH, Examples, V, arguments, model, smoothed_trainer

from kernel.huggingface import SmoothedLossMixin, fuse_loss

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("quiet_libraries")


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"gradient_checkpointing": True}])
def test_training_lowers_the_loss_without_logits(tmp_path, precision, monkeypatch):
    trained = model(tie_word_embeddings=True)
    trainer = smoothed_trainer()(
        trained, arguments(tmp_path, label_smoothing_factor=0.1, **precision), train_dataset=Examples(64)
    )
    calls = count_calls(monkeypatch, trained)
    trainer.train()
    assert calls == []
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 1
    assert all(parameter.dtype == torch.float32 for parameter in trained.parameters())


def test_losses_and_weights_are_those_of_the_trainers_own_label_smoothing(tmp_path):
    both = {}
    for cls in (transformers.Trainer, smoothed_trainer()):
        trainer = cls(model(), arguments(tmp_path, label_smoothing_factor=0.2, max_steps=5), train_dataset=Examples(64))
        trainer.train()
        both[cls] = trainer
    own, ours = both.values()
    steps = [[line for line in of.state.log_history if "loss" in line] for of in (own, ours)]
    assert len(steps[0]) == 5
    for a, b in zip(*steps, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    before = dict(model().named_parameters())
    for (name, a), b in zip(own.model.named_parameters(), ours.model.parameters(), strict=True):
        assert (a - b).norm() < 1e-3 * (a - before[name]).norm(), name


@pytest.mark.parametrize("mixin", [True, False])
def test_gradient_accumulation_is_one_big_batch(tmp_path, mixin):
    """Rows keep 9 to 15 labels: a mean of means would differ."""
    weights = []
    for size, steps in ((8, 1), (2, 4)):
        args = arguments(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=3,
            optim="sgd",
            max_grad_norm=0.0,
            learning_rate=0.5,
        )
        trained = model()
        if mixin:
            trainer = smoothed_trainer()(trained, args, train_dataset=Examples(64), label_smoothing=0.1)
        else:  # the model fused by hand, in transformers' own Trainer
            fuse_loss(trained, label_smoothing=0.1)
            trainer = transformers.Trainer(trained, args, train_dataset=Examples(64))
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trained.parameters()]))
    moved = (weights[0] - torch.cat([p.detach().flatten() for p in model().parameters()])).abs().max()
    assert moved > 1e-2
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_evaluation_builds_logits_only_where_they_are_wanted(tmp_path, monkeypatch):
    data, evaluated = Examples(8), model()
    trainer = smoothed_trainer()(evaluated, arguments(tmp_path), eval_dataset=data, label_smoothing=0.1)
    calls = count_calls(monkeypatch, evaluated)
    result = trainer.evaluate()
    assert calls == []
    logits = trainer.predict(data)
    assert len(calls) == 2  # batches
    expected = copy.deepcopy(evaluated)(data.tokens).logits
    torch.testing.assert_close(torch.from_numpy(logits.predictions), expected.detach())
    losses = [
        F.cross_entropy(
            expected[i : i + 4, :-1].reshape(-1, V), data.labels[i : i + 4, 1:].reshape(-1), label_smoothing=0.1
        )
        for i in (0, 4)
    ]
    assert result["eval_loss"] == pytest.approx(float(sum(losses) / 2), rel=1e-5)
    assert trainer.fused_loss.eval_logits is False


def test_metrics_get_the_logits(tmp_path):
    def accuracy(prediction):
        guess = prediction.predictions.argmax(-1)[:, :-1]
        kept = prediction.label_ids[:, 1:] != -100
        return {"accuracy": float((guess == prediction.label_ids[:, 1:])[kept].mean())}

    trainer = smoothed_trainer()(
        model(),
        arguments(tmp_path),
        train_dataset=Examples(64),
        eval_dataset=Examples(8, seed=1),
        compute_metrics=accuracy,
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > before + 0.5


def own_smoothed_losses(tmp_path, smoothing, **changes):
    """Of transformers' own Trainer, from full logits."""
    args = arguments(tmp_path, label_smoothing_factor=smoothing, max_steps=3, **changes)
    trainer = transformers.Trainer(args=args, model_init=lambda: model(), train_dataset=Examples(64))
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_models_of_model_init_are_smoothed(tmp_path, monkeypatch):
    """train() makes a new model each time; so does every trial of a search."""

    trainer = smoothed_trainer()(
        args=arguments(tmp_path, label_smoothing_factor=0.3, max_steps=3),
        model_init=lambda: model(),
        train_dataset=Examples(64),
    )
    for _ in range(2):
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        assert losses == pytest.approx(own_smoothed_losses(tmp_path, 0.3), rel=1e-4)
    # as optuna's, which need not be installed: hp_params knows the types of what is
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    trainer.hp_search_backend = transformers.trainer_utils.HPSearchBackend.OPTUNA
    trainer.hp_space = lambda trial: trial.params
    for smoothing in (0.1, 0.2):
        trainer.train(trial=SimpleNamespace(number=0, params={"label_smoothing_factor": smoothing}))
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        assert losses == pytest.approx(own_smoothed_losses(tmp_path, smoothing), rel=1e-4)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\], got 3.0"):
        trainer.train(trial=SimpleNamespace(number=0, params={"label_smoothing_factor": 3.0}))


def test_the_same_model_from_model_init_again_and_again(tmp_path):
    same = model()
    trainer = smoothed_trainer()(
        args=arguments(tmp_path, max_steps=1), model_init=lambda: same, train_dataset=Examples(64), label_smoothing=0.1
    )
    trainer.train()
    fused = trainer.fused_loss
    trainer.train()
    assert trainer.fused_loss is fused
    assert fused.options["label_smoothing"] == 0.1


def test_a_model_without_the_trainers_loss_is_not_trained(tmp_path):
    trainer = smoothed_trainer()(model(), arguments(tmp_path), train_dataset=Examples(64), label_smoothing=0.1)
    first, trainer.model = trainer.model, model(seed=1)
    trainer.model_wrapped = trainer.model
    with pytest.raises(ValueError, match="model must be the one that this trainer fused"):
        trainer.train()
    trainer.model = trainer.model_wrapped = first
    trainer.fused_loss.remove()
    with pytest.raises(ValueError, match="whose fused loss was removed"):
        trainer.evaluate(Examples(4))


def test_inputs_without_labels(tmp_path):
    trainer = smoothed_trainer()(model(), arguments(tmp_path))
    with pytest.raises(ValueError, match=r"inputs must hold labels, got \['input_ids'\]"):
        trainer.compute_loss(trainer.model, {"input_ids": torch.tensor([[1, 2]])})
    data = [{"input_ids": row} for row in Examples(4).tokens]
    assert trainer.predict(data).predictions.shape == (4, LENGTH, V)


def test_what_the_trainer_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"compute_loss_func must be None"):
        smoothed_trainer()(model(), arguments(tmp_path), compute_loss_func=lambda *_: 0)
    parameters = list(inspect.signature(transformers.Trainer.__init__).parameters)[3:]
    before = [None] * parameters.index("compute_loss_func")
    with pytest.raises(ValueError, match=r"compute_loss_func must be None"):
        smoothed_trainer()(model(), arguments(tmp_path), *before, lambda *_: 0)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\], got 2.0"):
        smoothed_trainer()(model(), arguments(tmp_path), label_smoothing=2.0)
    several = arguments(tmp_path)
    several._n_gpu = 2
    with pytest.raises(ValueError, match=r"args.n_gpu must be at most 1, got 2: DataParallel"):
        smoothed_trainer()(model(), several)


class TestPeft:
    def adapted(self, **changes):
        import peft

        config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], **changes)
        wrapped = peft.get_peft_model(model(), config)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)  # an adapter that does something
        return wrapped

    def eager(self, wrapped, data):
        logits = wrapped(data.tokens).logits[:, :-1].reshape(-1, V)
        return F.cross_entropy(logits, data.labels[:, 1:].reshape(-1), label_smoothing=0.1)

    def test_a_frozen_head_under_an_adapter(self):
        wrapped, data = self.adapted(), Examples(4)
        expected = self.eager(wrapped, data)
        expected.backward()
        gradients = {n: p.grad.clone() for n, p in wrapped.named_parameters() if p.grad is not None}
        wrapped.zero_grad()
        fuse_loss(wrapped, label_smoothing=0.1)
        loss = wrapped(input_ids=data.tokens, labels=data.labels).loss
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert {n for n, p in wrapped.named_parameters() if p.grad is not None} == set(gradients)
        assert all("lora" in name for name in gradients)
        for name, parameter in wrapped.named_parameters():
            if name in gradients:
                torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-7)

    def test_a_head_trained_through_modules_to_save(self):
        wrapped, data = self.adapted(modules_to_save=["lm_head"]), Examples(4)
        fuse_loss(wrapped, label_smoothing=0.1)
        with torch.no_grad():
            wrapped.get_base_model().lm_head.modules_to_save["default"].weight.mul_(3)
        expected = self.eager(wrapped, data)
        loss = wrapped(input_ids=data.tokens, labels=data.labels).loss
        torch.testing.assert_close(loss, expected)
        loss.backward()
        head = wrapped.get_base_model().lm_head
        assert head.modules_to_save["default"].weight.grad.abs().max() > 0
        assert head.original_module.weight.grad is None
        with wrapped.disable_adapter():
            loss = wrapped(input_ids=data.tokens, labels=data.labels).loss
            torch.testing.assert_close(loss, self.eager(wrapped, data))

    def test_an_adapter_around_the_head_is_refused(self):
        import peft

        wrapped = peft.get_peft_model(model(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"]))
        with pytest.raises(
            TypeError, match=r"is a peft\..*Linear, no torch.nn.Linear. Train the head through modules_to_save"
        ):
            fuse_loss(wrapped)

    def test_training_an_adapter(self, tmp_path):
        wrapped = self.adapted()
        trainer = smoothed_trainer()(
            wrapped, arguments(tmp_path, bf16=True), train_dataset=Examples(64), label_smoothing=0.1
        )
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        assert losses[-1] < losses[0] - 0.1


@pytest.fixture
def sft(tmp_path):
    """Arguments of an SFTTrainer."""
    import datasets
    import tokenizers
    import trl

    words = {f"w{i}": i for i in range(V - 2)} | {"[PAD]": V - 2, "[EOS]": V - 1}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[PAD]"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", eos_token="[EOS]")
    rows = [{"prompt": f"w{i}", "completion": f" w{i + 1} w{i + 2}"} for i in range(40)]
    fields = arguments(tmp_path).to_dict()
    kept = (
        "output_dir",
        "use_cpu",
        "report_to",
        "save_strategy",
        "logging_steps",
        "disable_tqdm",
        "learning_rate",
        "max_steps",
    )
    args = trl.SFTConfig(
        **{k: fields[k] for k in kept}, per_device_train_batch_size=4, dataloader_pin_memory=False, bf16=False
    )
    data = datasets.Dataset.from_list(rows)
    return {"args": args, "train_dataset": data, "eval_dataset": data, "processing_class": tokenizer}


@pytest.mark.parametrize("peft", [False, True])
def test_trl_without_the_mixin_is_told_that_it_passes_by_the_fused_loss(sft, peft):
    import trl

    trained = TestPeft().adapted() if peft else model()
    handle = fuse_loss(trained, label_smoothing=0.5)
    sft["args"].max_steps = 2
    trainer = trl.SFTTrainer(trained, **sft)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.evaluate()
        tokens = torch.arange(6)[None]
        trained.train()(input_ids=tokens, labels=tokens)  # through TRL's forward to the fused loss
        trained(input_ids=tokens)
        assert not [w for w in said if "was fused" in str(w.message)]
        trainer.train()
    (told,) = [str(w.message) for w in said if "was fused" in str(w.message)]
    assert "was fused with label_smoothing=0.5, but is trained on another loss" in told
    handle.remove()
    assert not handle.model.base_model._forward_pre_hooks


@pytest.mark.parametrize("smoothed", [0.3, 0.0])
@pytest.mark.parametrize("peft", [False, True])
def test_a_trainer_that_takes_the_labels_from_a_fused_model_is_refused(tmp_path, smoothed, peft):
    trained = TestPeft().adapted() if peft else model()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    handle = fuse_loss(trained, label_smoothing=smoothed)
    args = arguments(tmp_path, label_smoothing_factor=0.1, max_steps=1)
    trainer = transformers.Trainer(trained, args, train_dataset=Examples(8), eval_dataset=Examples(8))
    for run in (trainer.train, trainer.evaluate):
        with pytest.raises(
            ValueError, match=r"label_smoothing_factor must be 0, got 0\.1: .* labels away .* never run"
        ):
            run()
    torch.testing.assert_close(dict(trained.state_dict()), before, rtol=0, atol=0)
    trainer.label_smoother = None
    trainer.train()
    handle.remove()
    trainer = transformers.Trainer(trained, args, train_dataset=Examples(8))  # its own smoothing, of its own loss
    trainer.train()


def test_a_loss_function_of_the_trainer_is_refused_for_its_fused_model_alone(tmp_path):
    teacher, trained = model(), model()
    fuse_loss(teacher.eval(), label_smoothing=0.1)

    def distilled(outputs, labels, num_items_in_batch=None):
        with torch.no_grad():
            wanted = teacher(labels.clamp(min=0)).logits.softmax(-1)
        return F.cross_entropy(outputs.logits.flatten(0, 1), wanted.flatten(0, 1))

    args = arguments(tmp_path, max_steps=1)
    transformers.Trainer(trained, args, train_dataset=Examples(8), compute_loss_func=distilled).train()
    fuse_loss(trained)
    trainer = transformers.Trainer(trained, args, train_dataset=Examples(8), compute_loss_func=distilled)
    with pytest.raises(ValueError, match=r"compute_loss_func must be None, got a function: .* labels away"):
        trainer.train()
    trained(torch.arange(6)[None])  # without labels, by nobody's compute_loss: its own logits


def test_trl(sft, monkeypatch):
    import trl

    steps = []

    def eager(inputs):
        weights = {name: value.detach() for name, value in trained.state_dict().items()}
        plain = model()
        plain.load_state_dict(weights)
        logits = plain(inputs["input_ids"], attention_mask=inputs.get("attention_mask")).logits
        return F.cross_entropy(logits[:, :-1].reshape(-1, V), inputs["labels"][:, 1:].reshape(-1), label_smoothing=0.1)

    class SmoothedSFTTrainer(SmoothedLossMixin, trl.SFTTrainer):
        def compute_loss(self, module, inputs, *args, **kwargs):
            if module.training:
                expected = eager(inputs).item()
                loss = super().compute_loss(module, inputs, *args, **kwargs)
                steps.append((loss.item(), expected))
                return loss
            return super().compute_loss(module, inputs, *args, **kwargs)

    trained = model()
    trainer = SmoothedSFTTrainer(trained, **sft, label_smoothing=0.1)
    calls = count_calls(monkeypatch, trained)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert calls == []
    after = trainer.evaluate()["eval_loss"]
    assert after < before - 0.5
    ours, expected = zip(*steps, strict=True)
    assert len(ours) == 20
    assert ours == pytest.approx(expected, rel=1e-5)
    assert ours[-1] < ours[0] - 0.5
    batches = [eager(batch).item() for batch in trainer.get_eval_dataloader()]
    assert after == pytest.approx(sum(batches) / len(batches), rel=1e-4)
