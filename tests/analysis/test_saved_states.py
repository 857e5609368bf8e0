"""Hidden states that are saved for a benchmark: those measured, and a sample of other text for an order."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_models import save_folder

from analysis.language_models import load_model
from analysis.language_models.documents import Encoded
from analysis.language_models.features import hidden_states
from analysis.language_models.saved_states import main

pytest.importorskip("transformers")
LENGTH = 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_folder(path)
    return path


def saved(folder, tmp_path, *options):
    from safetensors.torch import load_file

    path = tmp_path / "states.safetensors"
    assert main([str(folder), str(path), *options]) == 0
    return load_file(path)


def test_the_sample_is_other_text_and_no_neighbour(folder, tmp_path):
    model = load_model(folder).model
    start = model.config.bos_token_id
    ids = np.random.default_rng(0).integers(2, 90, 22 * LENGTH)
    np.savez(tmp_path / "ids.npz", ids=ids)
    found = saved(
        folder, tmp_path, "--tokens", f"{9 * LENGTH - 5}", "--sample", "3000", "--ids", str(tmp_path / "ids.npz")
    )

    def states(documents):
        of = [[start, *ids[i * LENGTH : (i + 1) * LENGTH].tolist()] for i in documents]
        return hidden_states(model, [Encoded(tokens, tokens) for tokens in of], pad=0)

    measured, others = states(range(2, 11)), states([0, *range(12, 17)])  # not 1 and 11
    torch.testing.assert_close(found["hidden"], measured.hidden[: 9 * LENGTH - 5].bfloat16())
    assert torch.equal(found["target"], torch.from_numpy(ids[2 * LENGTH : 11 * LENGTH - 5]))
    torch.testing.assert_close(found["sample"], others.hidden[:3000].bfloat16())


def test_pythons_text_is_long_enough_for_both(folder, tmp_path):
    found = saved(folder, tmp_path, "--tokens", "700", "--sample", "1500")
    assert [len(found[name]) for name in ("hidden", "target", "sample")] == [700, 700, 1500]
    assert found["weight"].shape[1] == found["hidden"].shape[1]


def ids_of(tmp_path, documents):
    """Options with the ids of a text of so many documents."""
    path = tmp_path / "ids.npz"
    np.savez(path, ids=np.random.default_rng(0).integers(2, 90, int(documents * LENGTH)))
    return "--ids", str(path)


@pytest.mark.parametrize(
    ("tokens", "least"),
    [(1024, 5), (9 * LENGTH, 3)],  # a sample behind what is measured, and its neighbour; before it
)
def test_a_text_without_a_sample_is_refused(tokens, least, folder, tmp_path, capsys):
    options = [str(folder), str(tmp_path / "x"), "--tokens", str(tokens), "--sample", "300"]
    assert main([*options, *ids_of(tmp_path, least - 1)]) == 2
    text = f"the text must have at least {least} documents of 512 tokens to measure up to {tokens // LENGTH} of them"
    assert f"{text}, got {least - 1}" in capsys.readouterr().err
    assert main([*options, *ids_of(tmp_path, least)]) == 0


@pytest.mark.parametrize("option", [("--tokens", "-600"), ("--tokens", "0"), ("--sample", "0"), ("--sample", "1.5")])
def test_a_number_of_tokens_that_is_none_is_refused(option, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(folder), str(tmp_path / "x"), *option, *ids_of(tmp_path, 22)])
    assert stop.value.code == 2
    assert f"{option[0]}: must be a whole number of at least 1, got '{option[1]}'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_less_than_what_was_asked_for_is_told(folder, tmp_path, capsys):
    """Of a text of 9 documents and a half, 2 to 10 are asked for, and a sample of those before 1."""
    found = saved(folder, tmp_path, "--tokens", f"{9 * LENGTH}", "--sample", "600", *ids_of(tmp_path, 9.5))
    assert [len(found[key]) for key in ("hidden", "target", "sample")] == [7.5 * LENGTH, 7.5 * LENGTH, LENGTH]
    told = capsys.readouterr().err
    assert f"warning: the text is short: hidden has {7.5 * LENGTH:.0f} tokens of {9 * LENGTH}" in told
    assert f"warning: the text is short: sample has {LENGTH} tokens of 600" in told
    found = saved(folder, tmp_path, "--tokens", f"{9 * LENGTH}", "--sample", "600", *ids_of(tmp_path, 13))
    assert [len(found[key]) for key in ("hidden", "sample")] == [9 * LENGTH, 600]
    assert "the text is short" not in capsys.readouterr().err


def test_documents_without_a_first_token_predict_one_less(folder, tmp_path, capsys):
    other = tmp_path / "model"
    shutil.copytree(folder, other)
    for path in (other / "config.json", other / "generation_config.json"):
        if path.exists():
            path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token_id": None}))
    found = saved(other, tmp_path, "--tokens", f"{2 * LENGTH}", "--sample", f"{LENGTH}", *ids_of(tmp_path, 22))
    assert [len(found[key]) for key in ("hidden", "sample")] == [2 * LENGTH, LENGTH]
    assert "the text is short" not in capsys.readouterr().err
