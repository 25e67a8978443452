"""Which path the kernels take here: compiled Triton, interpreted Triton, or plain PyTorch."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

Path = Literal["auto", "reference", "triton"]
PATHS: tuple[str, ...] = ("auto", "reference", "triton")


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """What this process can run: found once, since Triton reads TRITON_INTERPRET only when it is first imported."""

    triton: bool
    interpreted: bool
    cuda: bool


@cache
def support() -> Support:
    """Find what this process can run; see `Support`."""
    return Support(
        triton=importlib.util.find_spec("triton") is not None,
        interpreted=os.environ.get("TRITON_INTERPRET") == "1",
        cuda=torch.cuda.is_available(),
    )


def choose_path(path: str, device: torch.device, *, found: Support | None = None) -> Literal["reference", "triton"]:
    """Choose the path for tensors on `device`: Triton where it compiles, PyTorch elsewhere, or the one asked for.

    Parameters
    ----------
    path
        "auto", or an override: "reference" or "triton".
    device
        Where the tensors are.
    found
        What the process can run; None: looked up.

    Raises
    ------
    ValueError
        The path asked for is unknown or cannot run on this device; says what would make it run.
    """
    found = support() if found is None else found
    if path not in PATHS:
        raise ValueError(f"path = {path!r}: one of {', '.join(PATHS)}")
    if path == "reference":
        return "reference"
    compiled = found.triton and device.type == "cuda" and not found.interpreted
    if path == "auto":
        return "triton" if compiled else "reference"
    if not found.triton:
        raise ValueError("path = 'triton': Triton is not installed (pip install triton, Linux only)")
    if not compiled and not found.interpreted:
        raise ValueError(
            f"path = 'triton' on {device}: Triton compiles for CUDA devices only; on a CPU set "
            "TRITON_INTERPRET=1 in the environment before Python starts"
        )
    return "triton"


@cache
def shared_memory_bytes(device_index: int) -> int:
    """Look up the shared memory that one thread block of a CUDA device can have."""
    properties = torch.cuda.get_device_properties(device_index)
    return int(getattr(properties, "shared_memory_per_block_optin", 99 * 1024))
