"""Hidden states that are saved for a benchmark: those measured, and a sample of other text for an order."""

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


def test_a_text_without_a_sample_is_refused(folder, tmp_path, capsys):
    np.savez(tmp_path / "ids.npz", ids=np.zeros(3 * LENGTH, dtype=np.int64))
    options = [str(folder), str(tmp_path / "x"), "--tokens", "1024", "--ids", str(tmp_path / "ids.npz")]
    assert main(options) == 2
    assert "the text must have 5 documents of 512 tokens to measure 1024, got 3" in capsys.readouterr().err
