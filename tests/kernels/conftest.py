"""Where the kernels run here: on a GPU, else interpreted on the CPU (tests/conftest.py tells Triton so)."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
