"""The same drawn examples in every run; ``pytest --hypothesis-profile=default`` looks for new ones."""

import random
import sys

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws without a seed of its own depends neither on the tests before it nor on the process."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries draw from the global state
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)
