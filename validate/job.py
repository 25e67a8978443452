"""The processes of a replay: who they are, what carries their bytes, and how they are timed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from moecast.errors import MoecastError
from moecast.validate.launch import launch_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One process among those that `torchrun` started.

    Parameters
    ----------
    rank, world_size
        As `torchrun` numbers them.
    backend
        "nccl" where every rank of this host has a GPU of its own, else "gloo".
    device
        Where this rank's bytes are.
    """

    rank: int
    world_size: int
    backend: str
    device: torch.device

    def median_s(self, function: Callable[[], object], *, repeats: int, warmup: int) -> float:
        """Time `function` on this rank: the median over repeats that all ranks begin together, after a warm-up."""
        times = []
        for index in range(warmup + repeats):
            dist.barrier()
            taken = self._once_s(function)
            if index >= warmup:
                times.append(taken)
        return statistics.median(times)

    def _once_s(self, function: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            start_s = time.perf_counter()
            function()
            return time.perf_counter() - start_s
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return 1e-3 * float(start.elapsed_time(end))

    def check_agreement(self, text: str) -> None:
        """Make sure that all ranks were asked the same: they would wait for each other for ever.

        Raises
        ------
        MoecastError
            Names the first rank that was asked something else than rank 0.
        """
        asked = [""] * self.world_size
        dist.all_gather_object(asked, hashlib.sha256(text.encode()).hexdigest())
        different = [rank for rank, other in enumerate(asked) if other != asked[0]]
        if different:
            rule = f"rank {different[0]} reads another plan, trace or workload than rank 0"
            raise MoecastError(rule, field="replay")

    def gather(self, own: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Collect an array of every rank, by rank."""
        mine = torch.from_numpy(own).to(self.device)
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everyone, mine)
        return np.asarray(torch.stack(everyone).cpu().numpy())

    def sum(self, own: float) -> float:
        """Add a number of every rank."""
        return float(self.gather(np.array([own], np.float64)).sum())

    def device_names(self) -> tuple[str, ...]:
        """Name every rank's device."""
        on_gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else f"CPU ({platform.machine()})"
        names = [""] * self.world_size
        dist.all_gather_object(names, name)
        return tuple(names)


@contextlib.contextmanager
def join_job(ranks: int) -> Iterator[Job]:
    """Join the process group of `torchrun` for a plan of `ranks` ranks, and leave it at the end.

    Raises
    ------
    MoecastError
        The job has another number of processes than the plan has ranks; says how to start it.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != ranks:
        raise MoecastError(
            f"the plan has {ranks} ranks: start it with {launch_line(ranks)}", field="WORLD_SIZE", value=world_size
        )
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= local_size and dist.is_nccl_available()
    device = torch.device("cuda", local_rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    backend = "nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, device_id=device if on_gpus else None)
    try:
        yield Job(rank=rank, world_size=world_size, backend=backend, device=device)
    finally:
        dist.destroy_process_group()
