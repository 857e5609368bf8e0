"""The command of the audit: its options, what it writes, and weights that it does not take."""

import inspect
import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch

from analysis.audit import audit_model, verdict
from analysis.audit.__main__ import _parser, main


def test_the_defaults_of_the_command_are_those_of_the_function():
    options = _parser().parse_args(["MODEL", "--text", "FILE"])
    for name in ("label_smoothing", "max_tokens", "max_length", "skip", "batch_size"):
        default = inspect.signature(audit_model).parameters[name].default
        found = getattr(options, name)
        assert (tuple(found) if isinstance(found, list) else found) == default


@pytest.mark.parametrize("name", ["audit.png", "audit.json", "audit"])
def test_the_command_does_not_overwrite_its_own_table(folder, tmp_path, capsys, name):
    assert main([str(folder), "--text", "python", "--out", str(tmp_path / name)]) == 2
    assert "--out must end in .csv, got" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_asks_for_the_device_first(capsys):
    assert main(["nowhere", "--text", "python", "--device", "gpu"]) == 2
    assert "error: device must be one that torch can use here, got 'gpu'" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_the_command_says_that_there_is_no_cuda(folder, capsys):
    assert main([str(folder), "--text", "python", "--device", "cuda"]) == 2
    assert "error: device must be one that torch can use here, got 'cuda'" in capsys.readouterr().err


def _without_a_weight(place):
    change_weights(place, lambda weights: weights.pop("model.layers.0.self_attn.q_proj.weight"))


def _of_another_shape(place):
    change_weights(place, lambda weights: weights.update({"model.norm.weight": torch.ones(3)}))


def _corrupt(place):
    (place / "model.safetensors").write_bytes(b"no weights at all")


def _of_no_shape(place):
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "num_attention_heads": 5}))


def _with_an_adapter(place):
    (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/base"}))


def change_weights(place, change):
    safetensors = pytest.importorskip("safetensors.torch")
    weights = safetensors.load_file(place / "model.safetensors")
    change(weights)
    safetensors.save_file(weights, place / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_a_weight, "with no model.layers.0.self_attn.q_proj.weight."),
        (_of_another_shape, "with another shape of model.norm.weight."),
        (_corrupt, "model must be one that transformers can load"),
        (_of_no_shape, "model must be one that transformers can load"),
        (_with_an_adapter, "with an adapter (adapter_config.json). Merge it into its base first"),
    ],
)
def test_no_audit_of_weights_that_are_not_the_models(folder, tmp_path, capsys, spoil, message):
    place = tmp_path / "spoilt"
    shutil.copytree(folder, place)
    spoil(place)
    assert main([str(place), "--text", "python", "--out", str(tmp_path / "audit.csv")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "audit.csv").exists()


def test_the_command_writes_table_figure_and_verdict(folder, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("Some ordinary words.\n\n" * 200)
    out = tmp_path / "made" / "audit.csv"
    assert main([str(folder), "--text", str(tmp_path / "notes.txt"), "--out", str(out), "--max-tokens", "300", "--text-licence", "CC0-1.0"]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    table = pd.read_csv(out)
    assert verdict(table).splitlines()[0].split(":")[0] in printed
    assert printed.splitlines()[-3:] == table.loc[table["part"] == "recommendation", "text"].tolist()
    said = table.loc[table["part"] == "source"].set_index("name")["text"]
    assert said["model"] == "tiny"
    assert said["licence"] == "mit"
    assert said["revision"].startswith("sha256:")
    assert said["text"] == "notes.txt"
    assert said["text_licence"] == "CC0-1.0"
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "--max-tokens 300" in out.with_suffix(".json").read_text()


def test_import_help_and_first_use_without_transformers(tmp_path):
    script = """
import sys
sys.modules["transformers"] = None
import analysis.audit, kernel.huggingface
from analysis.audit.__main__ import main
try:
    main(["--help"])
except SystemExit as stop:
    print("help", stop.code)
print("use", main([sys.argv[1], "--text", "python"]))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "help 0" in done.stdout
    assert "use 2" in done.stdout
    assert "examples:" in done.stdout
    assert "a model needs transformers: pip install '.[real]' in a clone" in done.stderr
