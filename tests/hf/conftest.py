"""One thread for torch, and a tiny model that most tests share."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the capture needs torch")
pytest.importorskip("transformers", minversion="5.0", reason="the capture needs transformers 5")

import transformers  # noqa: E402

from tests.hf.families import FAMILIES  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> transformers.PreTrainedModel:
    """A Mixtral of three layers; built anew, because tests change it."""
    return FAMILIES[0].build()
