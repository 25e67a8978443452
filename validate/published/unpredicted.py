"""Published rows that the simulator cannot answer yet, kept with the reason so that they are not forgotten."""

from __future__ import annotations

from moecast.validate.published.row import Row, Source, Use

_EFA = "no preset has Elastic Fabric Adapters"
_NO_ALL_REDUCE = "of collectives, only all-to-all is simulated"
_TRAINING = "training is not simulated"


def _rows(unit: str, why_not: str, *rows: tuple[str, float, Use]) -> tuple[Row, ...]:
    return tuple(Row(name=name, value=value, unit=unit, use=use, why_not=why_not) for name, value, use in rows)


AWS = Source(
    name="AWS",
    where="awsome-distributed-ai, micro-benchmarks/expert-parallelism (MIT-0)",
    conditions="4096 tokens, hidden 7168, top-8 of 256, bf16, GB/s of the RDMA leg; a repeat agrees within about 1 %",
    rows=_rows(
        "GB/s", _EFA,
        ("B300, 16 EFA per node: DeepEP dispatch, 16 ranks", 126.6, "fit"),
        ("B300, 16 EFA per node: DeepEP combine, 16 ranks", 106.4, "fit"),
        ("B300, 16 EFA per node: DeepEP dispatch, 64 ranks", 84.2, "check"),
        ("B300, 16 EFA per node: DeepEP combine, 64 ranks", 73.1, "check"),
        ("p5 (H100), 32 EFA per node: DeepEP dispatch, 32 ranks", 43.7, "fit"),
        ("p5 (H100), 32 EFA per node: DeepEP combine, 32 ranks", 46.1, "fit"),
    ),
)  # fmt: skip

AZURE = Source(
    name="Azure ND H200 v5",
    where="Azure's published nccl-tests, NCCL 2.20.5 with NVLS",
    conditions="8 x H200, in-place bus bandwidth",
    rows=_rows(
        "GB/s", _NO_ALL_REDUCE,
        ("NCCL all-reduce, 1 MiB", 52.96, "fit"),
        ("NCCL all-reduce, 16 MiB", 240.4, "check"),
        ("NCCL all-reduce, 256 MiB", 432.2, "check"),
        ("NCCL all-reduce, 8 GiB", 480.0, "fit"),
    ),
)  # fmt: skip

PROFILE = Source(
    name="DeepSeek profile",
    where="deepseek-ai/profile-data",
    conditions="DeepSeek-V3 training, EP64, 1F1B overlap, 20 of 132 SMs for communication",
    rows=_rows(
        "ms", _TRAINING, ("dispatch alone", 2.37, "fit"), ("combine alone", 4.70, "fit"),
    ),
)  # fmt: skip

MEGATRON = Source(
    name="Megatron-Bridge",
    where="NVIDIA-NeMo/Megatron-Bridge, performance summary",
    conditions="training, tokens/s per GPU",
    rows=_rows(
        "tokens/s", _TRAINING,
        ("Qwen3-30B-A3B, 16 x H100, FP8, TP1 PP2 EP8", 5275, "check"),
        ("DeepSeek-V3, 256 x GB200, bf16, TP1 PP4 EP64", 3139, "check"),
    ),
)  # fmt: skip

SOURCES = (AWS, AZURE, PROFILE, MEGATRON)
