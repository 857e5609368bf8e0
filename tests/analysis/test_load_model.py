"""Where models come from: a folder, a file or one commit of a hub, never pickles or code."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from analysis.audit.__main__ import main
from analysis.language_models import load_model

CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"  # read by transformers/modeling_utils.py


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere", "model must be a folder, a GGUF file or a hub's owner/name, got nowhere"),
        ("no/where.gguf", "no such file"),
        ("FOLDER/weights.bin", "model must be a folder of safetensors or a GGUF file"),
        ("FOLDER", "model.safetensors"),
    ],
)
def test_no_pickle_and_no_unknown_place_is_read(folder, tmp_path, capsys, model, message):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    torch.save(load_model(folder).model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "weights.bin").write_bytes(b"x")
    assert main([model.replace("FOLDER", str(tmp_path)), "--text", "python"]) == 2
    assert message in capsys.readouterr().err


def test_a_hub_is_asked_for_safetensors_of_one_commit_without_code(folder, tmp_path, monkeypatch):
    transformers, hub = pytest.importorskip("transformers"), pytest.importorskip("huggingface_hub")
    local, asked, files, adapters, commit = load_model(folder), [], [], [], "5e" * 20

    def answer(result):
        return lambda name, **options: asked.append((name, options, os.environ.get(CONVERSION))) or result

    nothing = {"missing_keys": set(), "mismatched_keys": set()}
    absent = hub.errors.LocalEntryNotFoundError("no such file")

    def download(name, file, *, revision):
        files.append((name, file, revision))
        if file == "adapter_config.json" and not adapters:
            raise absent
        return str(tmp_path / "snapshots" / commit / file)

    (tmp_path / "snapshots" / commit).mkdir(parents=True)
    (tmp_path / "snapshots" / commit / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", answer(local.tokenizer))
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", answer((local.model, nothing)))
    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.delenv(CONVERSION, raising=False)
    loaded = load_model("someone/model", revision="v2")
    assert (loaded.name, loaded.revision, loaded.licence) == ("someone/model", commit, "mit")
    assert files == [
        ("someone/model", "config.json", "v2"),
        ("someone/model", "adapter_config.json", commit),
        ("someone/model", "README.md", commit),
    ]
    assert len(asked) == 2
    for name, options, no_conversion in asked:
        assert name == "someone/model"
        assert not options["trust_remote_code"]
        assert not options["local_files_only"]
        assert options["revision"] == commit  # a tag may move between two files
        assert no_conversion == "1"
    assert asked[1][1]["use_safetensors"]
    assert CONVERSION not in os.environ
    monkeypatch.setenv(CONVERSION, "0")
    load_model("someone/model")
    assert os.environ[CONVERSION] == "0"
    adapters.append("one")
    with pytest.raises(OSError, match="got someone/model with an adapter"):
        load_model("someone/model")
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "config.json"))
    with pytest.raises(OSError, match="the hub must name a commit for someone/model at revision main, got"):
        load_model("someone/model")


def test_a_hub_model_kept_from_the_last_time_is_read_at_its_commit(folder, tmp_path):
    """The hub library's own folder, without a network."""
    pytest.importorskip("transformers")
    kept, commit = tmp_path / "hub" / "models--someone--tiny", "0123456789" * 4
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    shutil.copytree(folder, kept / "snapshots" / commit)
    script = """
from analysis.language_models import load_model
loaded = load_model("someone/tiny")
print(loaded.revision, loaded.licence, sum(p.numel() for p in loaded.model.parameters()))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    count = sum(p.numel() for p in load_model(folder).model.parameters())
    assert done.stdout.split() == [commit, "mit", str(count)], done.stderr


def test_a_revision_is_for_hubs(folder):
    with pytest.raises(ValueError, match="revision must be None for a local model"):
        load_model(folder, revision="main")
