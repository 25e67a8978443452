"""Decode steps behind serving runs that others measured: rows of `serving.csv`, asked as questions.

In a run with prefill on other GPUs (mode `disagg`), the time per output token is that of one decode
step at the batch in flight and a context of prompt and half the output. In a run of one kind of
worker (`agg`) prefill stands between decode steps; where it takes little, the same holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from moecast.sim import ModelShape, Plan, Workload, kernels_on, load_model, simulate
from moecast.sim.cost.gpus import GPUS
from moecast.sim.degrees import Degrees
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.topology import Cluster, load_cluster
from moecast.traces import RoutingTrace
from moecast.validate.published.row_pool import RowPool

Fields = Mapping[str, str]

PRESETS = {
    "h100_sxm": "dgx-h100", "h200_sxm": "dgx-h200", "h20": "dgx-h200", "a100_sxm": "dgx-h100", "b200_sxm": "dgx-b200",
    "b300_sxm": "dgx-b300", "gb200": "gb200-nvl72", "gb300": "gb300-nvl72",
}  # fmt: skip
MODELS = {
    "deepseek-v3": "deepseek-v3", "deepseek-r1": "deepseek-v3", "minimax-m2.5": "minimax-m2.5",
    "qwen3.5-397b-a17b": "qwen3.5-397b-a17b", "qwen3-235b-a22b": "qwen3-235b-a22b", "gpt-oss-120b": "gpt-oss-120b",
    "qwen3-30b-a3b": "qwen3-30b-a3b", "mixtral-8x7b": "mixtral-8x7b", "mixtral-8x22b": "mixtral-8x22b",
    "kimi-k2": "kimi-k2",
}  # fmt: skip
MEAN_LENGTH = 0.9
"""Real lengths are uniform between 0.8 and 1 of the nominal ones."""
LITTLE_PREFILL = 0.1
"""Aggregate rows whose prefill takes more than this part of the time are no decode steps."""
KV_TYPES = {"trtllm": "fp8"}
"""Engines' defaults; others keep the cache in bf16."""
ONE_TEXT = "gamma:0.8"
"""Experts' loads within single kinds of text of DeepSeek-V2-Lite's recorded prompts: coefficient of variation 0.83."""
GRACE = ("gb200", "gb300")
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRow:
    """One run, as far as a decode step needs it.

    Parameters
    ----------
    batch
        Sequences in flight on each attention-DP rank; of aggregate rows those that decode.
    tp, dp
        Ranks that share attention, and groups of them.
    ep, etp
        Of the experts, over the same GPUs; None: as many as `etp` leaves.
    workers, prefill
        Mode `disagg`: how many workers decode, and those that compute prompts.
    """

    id: str
    model: str
    gpu: str
    engine: str
    version: str
    precision: str
    mode: str
    isl: int
    osl: int
    batch: float
    stated: float
    concurrency: float
    ttft_ms: float
    tpot_ms: float
    tp: int
    dp: int
    ep: int | None
    etp: int
    use: str
    workers: int = 1
    prefill: RowPool | None = None

    @classmethod
    def of(cls, fields: Fields) -> ServingRow:
        """Read a row of the file; empty columns are what they usually are.

        Raises
        ------
        ValueError
            A number that is none, or one that a decode step cannot do without.
        """

        def number(name: str, default: float | None = None) -> float:
            text = fields.get(name) or ""
            if not text and default is not None:
                return default
            try:
                value = float(text)
            except ValueError:
                raise ValueError(f"{name} = {text!r}: a number") from None
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} = {text!r}: finite and not negative")
            return value

        tp, dp = int(number("decode_attn_tp", 1)), int(number("decode_attn_dp", 1))
        etp = int(number("decode_moe_tp", 1))
        workers = number("decode_workers", 1)
        apart = (fields.get("mode") or "agg") == "disagg"
        stated = number("decode_batch_stated_per_attn_dp_rank", number("concurrency", 1) / max(workers * dp, 1))
        return cls(
            id=fields["id"],
            model=fields["model"],
            gpu=fields["gpu"],
            engine=fields.get("engine") or "neutral",
            version=fields.get("image_version") or "",
            precision=fields.get("precision") or "fp8",
            mode=fields.get("mode") or "agg",
            isl=int(number("isl")),
            osl=int(number("osl")),
            batch=number("decode_in_flight_per_attn_dp_rank", stated),
            stated=stated,
            concurrency=number("concurrency", stated * workers * dp),
            ttft_ms=number("ttft_mean_ms", 0.0),
            tpot_ms=number("tpot_mean_ms"),
            tp=tp,
            dp=dp,
            ep=int(number("decode_moe_ep", 0)) or None,
            etp=etp,
            use=fields.get("use") or "check",
            workers=max(1, int(workers)) if apart else 1,
            prefill=RowPool.of(number, "prefill") if apart else None,
        )

    @property
    def ranks(self) -> int:
        """GPUs of a decode worker."""
        return self.tp * self.dp

    @property
    def gpus(self) -> int:
        """Of all its workers."""
        return self.workers * self.ranks + (0 if self.prefill is None else self.prefill.gpus)

    @property
    def context(self) -> int:
        """Keys that a decoded token reads in the mean."""
        return max(1, round(MEAN_LENGTH * (self.isl + self.osl / 2)))

    @property
    def worker(self) -> ServingRow:
        """One worker that decodes, alone."""
        return replace(self, workers=1, prefill=None)

    @property
    def prefill_share(self) -> float:
        """Part of the time that prefill takes in an aggregate run: what a request waits for others' prompts."""
        decode_ms = MEAN_LENGTH * self.osl * self.tpot_ms
        return (self.batch - 1) * self.ttft_ms / decode_ms if decode_ms else math.inf

    @property
    def family(self) -> str:
        """What it is judged with."""
        if self.mode == "disagg":
            return "decode steps" if self.batch >= MEAN_LENGTH * self.stated else "decode steps, batches not full"
        little = self.prefill_share <= LITTLE_PREFILL
        return "decode steps beside little prefill" if little else "decode beside prefill"

    def cluster(self) -> Cluster:
        """Its GPUs, in nodes of their preset; whose kernels run.

        Raises
        ------
        ValueError
            A GPU that nothing is known of.
        """
        if self.gpu not in PRESETS:
            raise ValueError(f"gpu = {self.gpu!r}: one of {', '.join(PRESETS)}")
        return _cluster(self.gpu, self.engine, self.gpus)

    def shape(self) -> ModelShape:
        """Its model, in the element types of its precision.

        Raises
        ------
        ValueError
            A model that nothing is known of.
        """
        name = self.model.rsplit("/", 1)[-1].lower().removesuffix("-nvfp4").removesuffix("-fp8").removesuffix("-fp4")
        if name not in MODELS:
            raise ValueError(f"model = {self.model!r}: one of {', '.join(MODELS)}")
        # Of an NVFP4 checkpoint the experts are; attention, shared experts and dense layers stay in
        # bf16.
        weights, dense = {"fp4": ("nvfp4", "bf16"), "bf16": ("bf16", "bf16")}.get(self.precision, ("fp8", "fp8"))
        if "gpt-oss" in name:
            weights, dense = "mxfp4", "bf16"
        kv_type = KV_TYPES.get(self.engine, "bf16")
        return load_model(MODELS[name]).with_types(weight_type=weights, dense_type=dense, kv_type=kv_type)

    def plan(self, model: ModelShape) -> Plan:
        """Attention by TP or DP, experts of the same GPUs by EP or TP; tokens as its engine moves them."""
        degrees = Degrees(tp=self.tp, ep=self.ep, etp=self.etp)
        plan = degrees.contiguous(model.shape_LEK, model.moe_layer_ids, ranks=self.ranks)
        dispatch = dispatch_of(self) if self.dp > 1 and plan.ep > 1 else None
        return plan.with_(sequence_parallel=self.tp == 1, dispatch=dispatch)

    def predict_ms(self, *, network: str = "bound") -> float:
        """Milliseconds of a decode step, between whole batches in proportion."""
        low = max(1, math.floor(self.batch))
        if self.batch <= 1:
            return self._step_ms(1, network)
        part = self.batch - low
        low_ms = self._step_ms(low, network)
        return low_ms if part < 0.01 else (1 - part) * low_ms + part * self._step_ms(low + 1, network)

    def _step_ms(self, batch: int, network: str) -> float:
        cluster, model = self.worker.cluster(), self.shape()
        plan = self.plan(model)
        work = Workload(phase="decode", tokens_per_rank=batch, steps=1, context=self.context, seed=SEED, reuse=True)
        trace = one_text_routing(model, batch * plan.dp)
        found = simulate(cluster, model, plan, trace, work, network=network, gains=False)
        assert found.step_time_s is not None
        return found.step_time_s * 1e3


def dispatch_of(row: ServingRow) -> str:
    """How an engine moves tokens between DP ranks.

    DeepEP's low-latency kernels in SGLang; TensorRT-LLM's all-to-all over NVLink (a copy per rank),
    which it has on Grace hosts only; else an all-gather.
    """
    if row.engine == "trtllm" and row.gpu in GRACE:
        return "per_rank"
    return "per_choice" if row.engine == "sglang" else "all_gather"


@lru_cache(maxsize=64)
def _cluster(gpu: str, engine: str, ranks: int) -> Cluster:
    one = load_cluster(PRESETS[gpu])
    built = load_cluster(PRESETS[gpu], nodes=-(-ranks // one.n_gpus))
    if GPUS[gpu].name != built.hardware.name:
        built = built.with_hardware(replace(GPUS[gpu], kernels=built.hardware.kernels))
    return kernels_on(built, engine=engine)


def one_text_routing(model: ModelShape, tokens: int) -> RoutingTrace:
    """Routing of tokens that are all of one kind of text, as answers to prompts of random tokens are.

    Nobody recorded these runs' routing. How uneven it is, is taken from recorded prompts and not
    from the rows.
    """
    return _routing(replace(model, name="one text"), tokens)


@lru_cache(maxsize=16)
def _routing(model: ModelShape, tokens: int) -> RoutingTrace:
    return routing_by_law(parse_law(ONE_TEXT), model, tokens=tokens, sequence=1, phase="decode", position=0, seed=SEED)
