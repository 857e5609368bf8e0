"""Triton's interpreter where there is no GPU, without work that it throws away: half of the time, the same results."""

from __future__ import annotations

import importlib.util
import os
import warnings

import pytest
import torch
from interpreter import quicken

if not torch.cuda.is_available():  # before any test imports the kernels
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter():
    """Run all tests so that need it."""
    with pytest.MonkeyPatch.context() as replaced:
        if importlib.util.find_spec("triton") is not None:
            quicken(replaced.setattr)
        yield


@pytest.fixture
def worth_it_at_any_size(monkeypatch):
    """Let small problems leave tiles out on a GPU, where that takes longer than to compute them."""
    pytest.importorskip("triton")
    from kernel.fused import call

    monkeypatch.setattr(call, "most_active", lambda *args, **kwargs: 0.5)


@pytest.fixture
def kept_in_strips():
    """Plan as if launches cost nothing: small problems have several strips, and keep some."""
    pytest.importorskip("triton")
    from helpers import free_launches

    with free_launches():
        yield


@pytest.fixture
def quiet_libraries():
    """No warning of the libraries is an error; ours are errors elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def rules(monkeypatch):
    """Let a test register architectures that no other test sees."""
    from kernel.huggingface import _architectures

    monkeypatch.setattr(_architectures, "_RULES", dict(_architectures._RULES))
