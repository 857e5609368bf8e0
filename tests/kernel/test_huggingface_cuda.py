"""The fused loss in a model on a CUDA device, and the command that measures its memory."""

import csv
import json

import pytest
import torch

transformers = pytest.importorskip("transformers")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_bfloat16_autocast_on_a_gpu(label_smoothing):
    from kernel.huggingface import fuse_loss

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32_000, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.1, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).cuda().train()
    tokens = torch.randint(32_000, (4, 1024), device="cuda")

    def step(labels):
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = model(tokens, labels=labels)
            loss = out.loss
            if loss is None:
                z = out.logits[:, :-1].float().reshape(-1, 32_000)
                loss = torch.nn.functional.cross_entropy(z, tokens[:, 1:].reshape(-1), label_smoothing=label_smoothing)
        loss.backward()
        peak = torch.cuda.max_memory_allocated() - before
        return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}, peak

    expected, gradients, eager_peak = step(None)
    with fuse_loss(model, label_smoothing=label_smoothing):
        step(tokens)  # compiles
        loss, got, peak = step(tokens)
    torch.testing.assert_close(loss, expected, rtol=5e-3, atol=5e-3)
    for name, value in gradients.items():
        assert (got[name] - value).norm() <= 0.05 * value.norm(), name
    assert peak < eager_peak - 4 * 1024 * 32_000 * 4  # at least one float32 copy of the logits less


def test_the_command_writes_its_table(tmp_path):
    from kernel.benchmark.training_step import main

    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = ["--tokens", "64", "--rounds", "1", "--scale", "64", "--device", device]
    assert main([*small, "--out", str(tmp_path / "table.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert len(rows) == 8
    values = {(r["loss"], r["label_smoothing"], r["checkpointing"]): float(r["value"]) for r in rows}
    for checkpointing in ("True", "False"):  # the same loss by either way
        for smoothing, other in (("0.0", "model's own"), ("0.1", "transformers LabelSmoother")):
            mine = values["kernel.huggingface", smoothing, checkpointing]
            assert mine == pytest.approx(values[other, smoothing, checkpointing], abs=1e-2)
    assert all(float(r["ms"]) > 0 for r in rows)
    made = json.loads((tmp_path / "table.json").read_text())
    assert made["command"] == f"python -m kernel.benchmark.training_step {' '.join(small)}"
