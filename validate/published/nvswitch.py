"""All-to-alls over four H100 of one NVSwitch node, from PyTorch's and NCCL's own issue trackers."""

from __future__ import annotations

from moecast.validate.published.questions import AllToAll
from moecast.validate.published.row import Row, Source, Use

MIB = 2**20


def _row(name: str, mebibytes: int, value_us: float, use: Use) -> Row:
    question = AllToAll(cluster="dgx-h100", ranks=4, bytes_per_rank=mebibytes * MIB)
    return Row(name=f"{name}, 4 GPUs, {mebibytes} MiB", value=value_us, unit="us", use=use, question=question)


SOURCE = Source(
    name="4 x H100",
    where="NVSHMEM all_to_all_vdev: pytorch/pytorch 154580; NCCL all-to-all: NVIDIA/nccl 2169",
    conditions="4 x H100 on NVSwitch; sizes are bytes per rank",
    rows=(
        _row("NVSHMEM all_to_all_vdev", 1, 25.7, "fit"),
        _row("NVSHMEM all_to_all_vdev", 8, 40.8, "check"),
        _row("NVSHMEM all_to_all_vdev", 128, 383, "fit"),
        _row("NCCL all-to-all", 500, 1174, "check"),
    ),
)
