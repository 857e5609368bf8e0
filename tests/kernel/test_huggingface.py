"""The fused loss inside Hugging Face models: equal to each architecture's own loss, and no logits anywhere."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import in_processes
from tiny_models import V, batch, count_calls, make
from torch.utils._python_dispatch import TorchDispatchMode

from kernel.huggingface import HeadScale, fuse_loss, head_scale, register_architecture
from kernel.huggingface._forward import part_of


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def smoothed_eager(model, tokens, labels, label_smoothing):
    logits = model(tokens).logits[:, :-1].float()
    return F.cross_entropy(logits.reshape(-1, V), labels[:, 1:].reshape(-1), label_smoothing=label_smoothing)


@pytest.mark.parametrize("model_type", ["cohere", "gemma2", "gpt2", "llama", "phi"])
def test_one_optimiser_step_with_smoothing_is_that_of_the_eager_loss(model_type):
    models, (tokens, labels) = [make(model_type), make(model_type)], batch()
    fuse_loss(models[0], label_smoothing=0.2)
    for model, fused in zip(models, (True, False), strict=True):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = model(tokens, labels=labels).loss if fused else smoothed_eager(model, tokens, labels, 0.2)
        loss.backward()
        optimiser.step()
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("model_type", "scale", "cap"), [("gemma2", 1.0, 3.0), ("cohere", 0.25, None), ("granite", 0.25, None)]
)
def test_scales_and_caps_come_from_the_config(model_type, scale, cap):
    assert head_scale(make(model_type)) == HeadScale(scale, cap)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 2.0}, {"softcap": 1.5}, {"temperature": 0.5, "label_smoothing": 0.1}, {"confidence_penalty": 0.3}],
)
def test_temperature_and_cap_of_the_loss_alone(options):
    model, (tokens, labels) = make(), batch()
    logits = model(tokens).logits[:, :-1].reshape(-1, V)
    cap = options.get("softcap")
    z = (logits if cap is None else cap * torch.tanh(logits / cap)) / options.get("temperature", 1.0)
    expected = F.cross_entropy(z, labels[:, 1:].reshape(-1), label_smoothing=options.get("label_smoothing", 0.0))
    entropy = torch.distributions.Categorical(logits=z).entropy()[labels[:, 1:].reshape(-1) != -100].mean()
    expected = expected - options.get("confidence_penalty", 0.0) * entropy
    fuse_loss(model, **options)
    torch.testing.assert_close(model(tokens, labels=labels).loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(tokens).logits[:, :-1].reshape(-1, V), logits)  # the model itself is as it was


def stepped(model, tokens, labels, number):
    """Loss and gradients of one batch in as many backward passes as it has rows."""
    model.zero_grad()
    losses = [
        model(row, labels=own, num_items_in_batch=number).loss
        for row, own in zip(tokens.split(1), labels.split(1), strict=True)
    ]
    for loss in losses:
        loss.backward()
    return torch.stack(losses).sum().detach(), gradients(model)


WAYS = [{}, {"workspace_bytes": 2**28}]  # the factor after the loss, and before its products


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("kind", [torch.tensor, int, float, np.int64])
def test_num_items_in_batch_makes_parts_add_up_to_the_whole(kind, options):
    """Also the row that has no label."""
    model, (tokens, labels) = make(), batch(rows=4)
    labels[1] = -100
    fuse_loss(model, label_smoothing=0.1, **options)
    whole = model(tokens, labels=labels).loss
    whole.backward()
    expected = whole.detach(), gradients(model)
    count = int((labels[:, 1:] != -100).sum())
    torch.testing.assert_close(stepped(model, tokens, labels, kind(count)), expected, rtol=1e-5, atol=1e-7)
    divided = model(tokens, labels=labels, num_items_in_batch=kind(3 * count)).loss
    torch.testing.assert_close(divided, whole / 3, rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("number", [torch.tensor(0), 0, torch.tensor([0])])
def test_no_items_in_the_batch(number, options):
    """As the mean of no labels: nan, and no gradient; of a quotient by 0 every one would be nan."""
    model, (tokens, labels) = make(), batch()
    fuse_loss(model, **options)
    for given in (labels, torch.full_like(labels, -100)):
        loss = model(tokens, labels=given, num_items_in_batch=number).loss
        loss.backward()
        assert loss.isnan()
        assert all(not g.any() for g in gradients(model).values())


def test_num_items_in_batch_is_one_number():
    model, (tokens, labels) = make(), batch()
    fuse_loss(model)
    with pytest.raises(ValueError, match=r"num_items_in_batch must be one number, got a tensor of shape \(2,\)"):
        model(tokens, labels=labels, num_items_in_batch=torch.tensor([3, 4]))
    with pytest.raises(TypeError, match=r"num_items_in_batch must be a number or a tensor of one, got str"):
        model(tokens, labels=labels, num_items_in_batch="3")


def test_the_host_does_not_read_the_number_of_items():
    """Nor sends one of its own, for which it would wait: no tensor is made of a number and moved."""
    meta = torch.empty((), device="meta", dtype=torch.int64)
    for number in (meta, 7):
        assert part_of(number, torch.empty(3, device="meta")).device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        meta.item()


def test_labels_shifted_beforehand():
    model, (tokens, labels) = make(), batch()
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    fuse_loss(model)
    assert model(tokens, shift_labels=shifted).loss == model(tokens, labels=labels).loss


def test_arguments_by_position_and_tuples_as_the_model_gives_them():
    model, (tokens, labels) = make(), batch()
    mask = torch.ones_like(tokens)
    mask[1, 8:] = 0
    own = model(tokens, attention_mask=mask, labels=labels).loss
    fuse_loss(model)
    torch.testing.assert_close(model(tokens, mask, labels=labels, return_dict=False)[0], own)


def test_extra_outputs_are_handed_through():
    model, (tokens, labels) = make(), batch()
    fuse_loss(model)
    out = model(tokens, labels=labels, output_hidden_states=True)
    assert len(out.hidden_states) == 3
    assert out.past_key_values is not None
    assert model.train()(tokens, labels=labels).past_key_values is None


def test_calls_without_labels_are_the_models_own():
    model, (tokens, _) = make(), batch()
    logits, text = model(tokens).logits, model.generate(tokens, max_new_tokens=3, do_sample=False)
    last = model(input_ids=tokens, logits_to_keep=1).logits  # a product of another shape may round otherwise
    with fuse_loss(model):
        torch.testing.assert_close(model(tokens).logits, logits)
        torch.testing.assert_close(model(input_ids=tokens, logits_to_keep=1).logits, last)
        assert torch.equal(model.generate(tokens, max_new_tokens=3, do_sample=False), text)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "cohere", "phi"])
def test_logits_in_evaluation_are_the_models_own(model_type):
    model, (tokens, labels) = make(model_type), batch()
    logits = model(tokens).logits
    fuse_loss(model, eval_logits=True)
    torch.testing.assert_close(model(tokens, labels=labels).logits, logits)
    assert model.train()(tokens, labels=labels).logits is None


class Sizes(TorchDispatchMode):
    """The most elements that any tensor made inside has."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("training", [True, False])
def test_no_tensor_of_tokens_by_vocabulary_exists(training, monkeypatch):
    vocab, rows, length = 20_000, 16, 60  # 19 million logits; a block of the chunked loss has 4
    model = make(vocab_size=vocab).train(training)
    tokens = torch.randint(3, vocab, (rows, length))

    def run():
        with Sizes() as sizes, torch.set_grad_enabled(training):
            loss = model(tokens, labels=tokens).loss
            if training:
                loss.backward()
        return sizes.largest

    logits = rows * length * vocab
    assert run() >= logits  # the model's own loss makes them: the measurement sees it
    fuse_loss(model, label_smoothing=0.1)
    calls = count_calls(monkeypatch, model)
    assert run() < logits / 4
    assert calls == []


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_autocast_trains_float32_weights(tied):
    model, (tokens, labels) = make(tie_word_embeddings=tied), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = model(tokens, labels=labels).loss
    own.backward()
    expected = gradients(model)
    model.zero_grad()
    fuse_loss(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(tokens, labels=labels).loss
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, own, rtol=2e-2, atol=2e-2)
    for name, gradient in gradients(model).items():
        assert gradient.dtype == torch.float32
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < 0.05, name


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant):
    model, (tokens, labels) = make().train(), batch()
    fuse_loss(model, label_smoothing=0.1)
    model(tokens, labels=labels).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    name = "activation_checkpointing_enable"  # the name since transformers 5.2x
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model(tokens, labels=labels).loss.backward()
    for name, value in gradients(model).items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_a_frozen_head_gets_no_gradient():
    model, (tokens, labels) = make(tie_word_embeddings=False), batch()
    model.lm_head.weight.requires_grad_(False)
    fuse_loss(model, label_smoothing=0.1)
    model(tokens, labels=labels).loss.backward()
    assert model.lm_head.weight.grad is None
    assert model.model.embed_tokens.weight.grad is not None


def test_removing_gives_the_models_own_loss_back_and_copies_are_their_own():
    model, (tokens, labels) = make(), batch()
    own = model(tokens, labels=labels).loss
    fused = fuse_loss(model, label_smoothing=0.5)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.mul_(2)
    smoothed = model(tokens, labels=labels).loss
    assert twin(tokens, labels=labels).loss != smoothed  # a copy uses its own weights
    fused.remove()
    assert model(tokens, labels=labels).loss == own
    assert "forward" not in model.__dict__
    fuse_loss(model, label_smoothing=0.5)
    assert model(tokens, labels=labels).loss == smoothed


def test_removing_keeps_a_wrapper_put_around_since():
    model, (tokens, labels) = make(), batch()
    own, calls = model(tokens, labels=labels).loss, []
    fused = fuse_loss(model, label_smoothing=0.5)
    inner = model.forward
    model.forward = lambda *args, **kwargs: calls.append(1) or inner(*args, **kwargs)
    fused.remove()
    assert model(tokens, labels=labels).loss == own
    assert calls == [1]


def test_unknown_architectures_are_refused_until_registered():
    model = make()
    model.config.model_type = "unheard"
    text = r"lists \d+\), got 'unheard' \(LlamaForCausalLM\).*register_architecture\('unheard', rule\)"
    with pytest.raises(ValueError, match=text):
        fuse_loss(model)
    register_architecture("registered", lambda config: HeadScale(softcap=config.cap))
    made_up = SimpleNamespace(config=SimpleNamespace(model_type="registered", cap=7))
    assert head_scale(made_up) == HeadScale(1.0, 7.0)
    made_up.config.cap = -1
    with pytest.raises(ValueError, match="softcap must be None or in"):
        head_scale(made_up)


@pytest.mark.parametrize(
    ("model", "options", "error", "text"),
    [
        (torch.nn.Linear(2, 2), {}, TypeError, "model must be a transformers model with a config, got Linear"),
        ("llama", {"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ("llama", {"implementation": "fast"}, ValueError, "implementation must be one of"),
        ("llama", {"softcap": 0.0}, ValueError, "softcap must be None or in .*, got 0.0"),
        ("gemma2", {"softcap": 5.0}, ValueError, "softcap must be None for a model whose config caps at 3.0, got 5.0"),
    ],
)
def test_what_cannot_be_is_refused(model, options, error, text):
    with pytest.raises(error, match=text):
        fuse_loss(make(model) if isinstance(model, str) else model, **options)


def test_a_base_model_without_a_head_is_refused():
    with pytest.raises(TypeError, match="model must have a language-model head around a base model, got LlamaModel"):
        fuse_loss(make().model)


@pytest.mark.parametrize("keep", [2, torch.tensor([0, 1])])
def test_selecting_logits_of_labelled_calls_is_refused(keep):
    model, (tokens, labels) = make(), batch()
    fuse_loss(model)
    with pytest.raises(ValueError, match="logits_to_keep must be 0 when labels are given"):
        model(tokens, labels=labels, logits_to_keep=keep)


@pytest.mark.parametrize(("call", "error", "text"), [((1,), TypeError, "model_type must be a str, got int"), (("x", 1), TypeError, "rule must be a function")])  # fmt: skip
def test_registering_checks_its_arguments(call, error, text):
    with pytest.raises(error, match=text):
        register_architecture(*call)


def test_import_and_first_use_without_transformers():
    program = """
import sys
sys.modules["transformers"] = None
import kernel.huggingface as hf
print(hf.known_architectures()[:1])
try:
    hf.SmoothedTrainer
except ImportError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "('afmoe',)" in out
    assert "SmoothedTrainer needs transformers and accelerate: pip install '.[huggingface]' in a clone" in out


DISTRIBUTED = """
import transformers
from torch.nn.parallel import DistributedDataParallel
from kernel.huggingface import fuse_loss

torch.manual_seed(0)
sizes = dict(vocab_size=67, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=True)).train()
fuse_loss(model, label_smoothing=0.1)
tokens = torch.randint(67, (4, 12), generator=torch.Generator().manual_seed(1))
model(tokens, labels=tokens, num_items_in_batch=44).loss.backward()
whole = {n: p.grad.clone() for n, p in model.named_parameters()}
model.zero_grad()
part = tokens[2 * rank : 2 * rank + 2]
# transformers' Trainer multiplies by the number of processes, as DDP averages over them.
wrapped = DistributedDataParallel(model)
loss = 2 * wrapped(input_ids=part, labels=part, num_items_in_batch=44).loss
loss.backward()
for name, parameter in model.named_parameters():
    torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-4, atol=1e-6, msg=name)
"""


def test_two_processes_share_one_batch(tmp_path):
    pytest.importorskip("transformers")
    in_processes(DISTRIBUTED, 2, tmp_path)


@pytest.mark.filterwarnings("ignore")  # dynamo looks at what warns when looked at
@pytest.mark.parametrize("options", [{}, {"implementation": "reference", "workspace_bytes": 2**28}])
def test_a_compiled_model(options):
    """Once, whatever the number of items; the reference in one graph, while the others look at their targets."""
    model, (tokens, labels) = make("cohere", num_hidden_layers=1), batch()  # whose scale is read while it is traced
    fuse_loss(model, label_smoothing=0.1, **options)
    numbers = [torch.tensor(n) for n in (20, 30)]
    expected = [model(tokens, labels=labels, num_items_in_batch=n).loss for n in numbers]
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=bool(options))
    got = compiled(input_ids=tokens, labels=labels, num_items_in_batch=numbers[0]).loss
    torch.testing.assert_close(got, expected[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        got = compiled(input_ids=tokens, labels=labels, num_items_in_batch=numbers[1]).loss
    torch.testing.assert_close(got, expected[1])
