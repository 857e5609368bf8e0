"""A tiny model in a folder, and pairs in its token ids: made once in a process, for whatever tests read them."""

import pytest
from tiny_models import save_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny model under a licence."""
    place = tmp_path_factory.mktemp("model") / "tiny"
    save_folder(place)
    (place / "README.md").write_text("---\nlicense: mit\n---\n")
    return place


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A tiny model in a folder, and the sample in its token ids."""
    from tiny_tuning import save_sample  # what few of the tests import

    folder = tmp_path_factory.mktemp("real")
    save_sample(folder)
    return folder


@pytest.fixture(scope="session")
def known(place):
    """These token ids."""
    from analysis.study.real_tuning.token_files import read_tokens

    return read_tokens(place / "tokens.npz")
