"""Chooses, before anything imports Triton, how its kernels run here: compiled on a GPU, else interpreted on the CPU."""

from __future__ import annotations

import os

import pytest
import torch

# Triton reads this once, when it is first imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
