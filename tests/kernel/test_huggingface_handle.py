"""The handle of a fused model: fusing again, finding it, and a fused model that is copied, pickled and sent away."""

import copy
import functools
import io
import pickle
import types
import warnings

import pytest
import torch
from tiny_models import V, make

from kernel.huggingface import FusedLoss, fuse_loss, fused, register_architecture
from kernel.huggingface import _architectures as architectures

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(3, V, (3, 10), generator=torch.Generator().manual_seed(1))


def loss_of(model, tokens):
    with torch.no_grad():
        return model(tokens, labels=tokens).loss.item()


class TestFusingAgain:
    def test_replaces_the_options(self, tokens):
        model = make()
        own = loss_of(model, tokens)
        assert fused(model) is None
        handles, losses = [], []
        for label_smoothing in (0.1, 0.5, 0.1):
            handles.append(fuse_loss(model, label_smoothing=label_smoothing))
            losses.append(loss_of(model, tokens))
            assert fused(model) is handles[-1]
        assert losses[0] == losses[2] != losses[1]
        handles[0].remove()  # of a loss that was replaced: no more to remove
        assert loss_of(model, tokens) == losses[2]
        handles[2].remove()
        assert loss_of(model, tokens) == own
        assert "forward" not in model.__dict__

    def test_contexts_nest(self, tokens):
        model = make()
        own = loss_of(model, tokens)
        with fuse_loss(model, label_smoothing=0.1):
            outer = loss_of(model, tokens)
            with fuse_loss(model, label_smoothing=0.5):
                assert loss_of(model, tokens) != outer
            assert loss_of(model, tokens) == outer
        assert loss_of(model, tokens) == own
        assert fused(model) is None
        fuse_loss(model, label_smoothing=0.1)
        with fuse_loss(model, label_smoothing=0.5), fuse_loss(model, label_smoothing=0.3):
            pass
        assert loss_of(model, tokens) == outer

    def test_a_refusal_leaves_what_was(self, tokens):
        model = make()
        handle = fuse_loss(model, label_smoothing=0.1)
        before = loss_of(model, tokens)
        model.loss_function = lambda *args, **kwargs: torch.zeros(())
        with pytest.raises(ValueError, match="model's own loss must be"):
            fuse_loss(model, label_smoothing=0.5)
        del model._loss_function
        assert fused(model) is handle
        assert loss_of(model, tokens) == before

    def test_around_a_forward_that_hides_the_first(self, tokens):
        model = make()
        fuse_loss(model, label_smoothing=0.1)
        smoothed = loss_of(model, tokens)
        own = functools.partial(type(model).forward, model)
        model.forward = lambda *args, **kwargs: own(*args, **kwargs)
        assert loss_of(model, tokens) != smoothed
        fuse_loss(model, label_smoothing=0.1)
        assert loss_of(model, tokens) == smoothed

    @pytest.mark.parametrize("how", ["method", "wraps", "lambda", "deleted"])
    def test_a_forward_replaced_later(self, tokens, how):
        model = make()
        own = loss_of(model, tokens)
        handle = fuse_loss(model, label_smoothing=0.5)
        inner = model.forward

        def liger(self, *args, **kwargs):
            return type(self).forward(self, *args, **kwargs)

        plain = functools.partial(liger, model)
        model.forward = {
            "method": types.MethodType(liger, model),
            "wraps": functools.wraps(inner)(lambda *args, **kwargs: plain(*args, **kwargs)),
            "lambda": lambda *args, **kwargs: plain(*args, **kwargs),
            "deleted": None,
        }[how]
        if how == "deleted":
            del model.forward
        assert loss_of(model, tokens) == own
        text = r"LlamaForCausalLM was fused and is not any more: its forward was replaced by .*(liger|lambda>|ForCausalLM\.forward), which .*Fuse it again"
        with pytest.warns(UserWarning, match=text):
            assert fused(model) is None
        model.forward = lambda *args, **kwargs: inner(*args, **kwargs)  # which leads to it
        assert fused(model) is handle
        handle.remove()
        assert fused(model) is None

    @pytest.mark.filterwarnings("ignore")  # of dynamo
    def test_through_wrappers(self, tokens, tmp_path):
        import peft

        model = make()
        expected = fuse_loss(model, label_smoothing=0.1)
        assert fused(torch.compile(model, backend="eager")) is expected
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
        wrapped = peft.get_peft_model(model, config)  # after fusing
        assert fused(wrapped) is expected
        assert wrapped(input_ids=tokens, labels=tokens).logits is None
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
        try:
            parallel = torch.nn.parallel.DistributedDataParallel(wrapped)
            assert fused(parallel) is expected
            again = fuse_loss(parallel, label_smoothing=0.3)
            assert fused(model) is again
            assert parallel(input_ids=tokens, labels=tokens).loss.item() == pytest.approx(loss_of(model, tokens))
        finally:
            torch.distributed.destroy_process_group()


def rule(config):
    return architectures.HeadScale(logit_scale=1 / config.logits_scaling)


def in_a_worker(model, tokens, queue):
    with torch.no_grad():
        queue.put((model(tokens, labels=tokens).loss.item(), type(fused(model)).__name__))


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


class TestCopies:
    @pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, by_torch], ids=lambda f: f.__name__)
    @pytest.mark.parametrize("model_type", ["llama", "gemma2"])
    def test_are_fused_and_their_own(self, copied, model_type, tokens):
        model = make(model_type, tie_word_embeddings=False)
        handle = fuse_loss(model, label_smoothing=0.3, temperature=0.5)
        handle.options["z_loss"] = 0.1
        expected = loss_of(model, tokens)
        twin = copied(model)
        assert loss_of(twin, tokens) == expected
        assert isinstance(fused(twin), FusedLoss)
        assert fused(twin).model is twin
        assert fused(twin).options == handle.options
        with torch.no_grad():
            twin.lm_head.weight.mul_(2)
        assert loss_of(twin, tokens) != expected
        assert loss_of(model, tokens) == expected
        fused(twin).remove()
        assert twin(tokens, labels=tokens).logits is not None
        assert model(tokens, labels=tokens).logits is None

    @pytest.mark.usefixtures("rules")
    def test_a_registered_architecture_travels_too(self, tokens):
        register_architecture("granite", rule)
        model = make("granite")
        fuse_loss(model)
        expected, data = loss_of(model, tokens), pickle.dumps(model)
        del architectures._RULES["granite"]  # as in a process that has not registered it
        assert loss_of(pickle.loads(data), tokens) == expected

    def test_a_spawned_worker(self, tokens):
        model = make()
        fuse_loss(model, label_smoothing=0.3)
        context = torch.multiprocessing.get_context("spawn")
        queue = context.SimpleQueue()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            worker = context.Process(target=in_a_worker, args=(model, tokens, queue))
            worker.start()
        worker.join(120)
        assert worker.exitcode == 0
        assert queue.get() == (pytest.approx(loss_of(model, tokens)), "FusedLoss")

    def test_what_accelerate_prepares_and_unwraps(self, tokens):
        import accelerate

        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # as another test left it
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        model = make()
        handle = fuse_loss(model, label_smoothing=0.3)
        expected = loss_of(model, tokens)
        prepared = accelerator.prepare(model)
        assert fused(prepared) is handle
        assert loss_of(prepared, tokens) == pytest.approx(expected, rel=1e-2)
        plain = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        twin = copy.deepcopy(plain)
        with torch.no_grad():
            twin.lm_head.weight.mul_(2)
        assert loss_of(plain, tokens) == expected
        assert loss_of(twin, tokens) != expected
        assert loss_of(by_pickle(plain), tokens) == expected
        handle.remove()
        assert plain(tokens, labels=tokens).logits is not None

    def test_what_accelerate_has_prepared_already(self, tokens):
        import accelerate

        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # as another test left it
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        model = accelerator.prepare(make())
        with pytest.raises(ValueError, match=r"must be fused before accelerator\.prepare.*unwrap_model\(model, keep"):
            fuse_loss(model, label_smoothing=0.3)
        plain = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        fuse_loss(plain, label_smoothing=0.3)
        expected = make()
        fuse_loss(expected, label_smoothing=0.3)
        assert loss_of(plain, tokens) == loss_of(expected, tokens)

    def test_what_is_saved_is_the_plain_model(self, tokens, tmp_path):
        model = make()
        own = loss_of(model, tokens)
        fuse_loss(model, label_smoothing=0.3)
        assert set(model.state_dict()) == set(make().state_dict())
        model.save_pretrained(tmp_path)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert fused(loaded) is None
        assert loss_of(loaded, tokens) == pytest.approx(own, rel=1e-5)
