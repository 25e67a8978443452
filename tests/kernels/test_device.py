"""Which path runs where, with what the process can do given instead of found."""

from __future__ import annotations

import pytest
import torch

from moecast.kernels.device import Support, choose_path

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
COMPILED = Support(triton=True, interpreted=False, cuda=True)
INTERPRETED = Support(triton=True, interpreted=True, cuda=False)
WITHOUT = Support(triton=False, interpreted=False, cuda=True)


def test_auto_takes_triton_only_where_it_is_compiled() -> None:
    assert choose_path("auto", CUDA, found=COMPILED) == "triton"
    assert choose_path("auto", CPU, found=COMPILED) == "reference"
    assert choose_path("auto", CPU, found=INTERPRETED) == "reference"
    assert choose_path("auto", CUDA, found=WITHOUT) == "reference"


def test_a_path_can_be_forced() -> None:
    assert choose_path("triton", CPU, found=INTERPRETED) == "triton"
    assert choose_path("reference", CUDA, found=COMPILED) == "reference"


def test_what_cannot_run_says_why() -> None:
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        choose_path("triton", CPU, found=COMPILED)
    with pytest.raises(ValueError, match="not installed"):
        choose_path("triton", CUDA, found=WITHOUT)
    with pytest.raises(ValueError, match="one of auto, reference, triton"):
        choose_path("fast", CPU)
