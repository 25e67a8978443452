"""Published rows that the simulator cannot answer yet, kept with the reason so that they are not forgotten."""

from __future__ import annotations

from moecast.validate.published.row import Row, Source, Use

_TRAINING = "training is not simulated"
_NO_SHAPE = "no preset of its GPU or model"
_NO_TRACE = "the routing of its model was not published"


def _rows(unit: str, why_not: str, *rows: tuple[str, float, Use]) -> tuple[Row, ...]:
    return tuple(Row(name=name, value=value, unit=unit, use=use, why_not=why_not) for name, value, use in rows)


GLM = Source(
    name="GLM-5.2 decode step",
    where="a decode step taken apart by its users",
    conditions="8 x H200, GLM-5.2 FP8: hidden 6144, 256 experts of 2048, top-8, 75 MoE layers; DP8 EP8, a token a rank",
    rows=_rows(
        "ms",
        _NO_SHAPE,
        ("step", 19.6, "fit"),
        ("dispatch and combine kernels", 4.75, "fit"),
        ("dispatch and combine with waiting", 7.73, "fit"),
        ("MoE block of a layer", 0.103, "fit"),
        ("MoE block of a layer with waiting", 0.145, "fit"),
    ),
)

EPLB_MEASURED = Source(
    name="EPLB on MI355",
    where="measured EPLB gains, DSv4-Pro",
    conditions="8 x MI355, EP8, prefill of 8,192 tokens",
    rows=_rows(
        "requests/s",
        _NO_SHAPE,
        ("TP without EP", 6.97, "in kind"),
        ("EP", 6.48, "in kind"),
        ("EPLB without spare slots", 7.56, "in kind"),
        ("EPLB, 64 spare slots, naive", 8.06, "in kind"),
        ("EPLB, 64 spare slots, biased", 8.68, "in kind"),
    ),
)

MOETUNER = Source(
    name="MoETuner",
    where="MoETuner, against contiguous placement",
    conditions="Mixtral-8x7B, EP4",
    rows=_rows(
        "% end to end",
        _NO_TRACE,
        ("8 x H100, TP2", 9.3, "check"),
        ("16 x H200 in two nodes, TP4", 17.5, "check"),
    ),
)

PROFILE = Source(
    name="DeepSeek profile",
    where="deepseek-ai/profile-data",
    conditions="DeepSeek-V3 training, EP64, 1F1B overlap, 20 of 132 SMs for communication",
    rows=_rows(
        "ms",
        _TRAINING,
        ("dispatch alone", 2.37, "fit"),
        ("combine alone", 4.70, "fit"),
        ("dispatch under compute, the fastest", 3.4, "fit"),
        ("dispatch under compute, the slowest", 4.35, "fit"),
        ("combine under compute", 6.18, "fit"),
        ("grouped FP8 GEMM", 1.43, "fit"),
    ),
)

MEGATRON = Source(
    name="Megatron-Bridge",
    where="NVIDIA-NeMo/Megatron-Bridge, performance summary",
    conditions="training, tokens/s per GPU",
    rows=_rows(
        "tokens/s",
        _TRAINING,
        ("Qwen3-30B-A3B, 16 x H100, FP8, TP1 PP2 EP8", 5275, "check"),
        ("DeepSeek-V3, 256 x GB200, bf16, TP1 PP4 EP64", 3139, "check"),
    ),
)

SOURCES = (GLM, EPLB_MEASURED, MOETUNER, PROFILE, MEGATRON)
