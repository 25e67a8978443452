"""Record what SGLang's own scheduler decides for generated request traces, in tests/recordings/sglang-VERSION.json.gz.

    python tests/recordings/record_sglang.py 0.5.9 --traces 200 --seed 0 --environment FOLDER

Makes an environment in FOLDER with SGLang's wheel, installed without its dependencies, a CPU torch, and the packages
that its scheduler module imports; then runs itself in there. No model is loaded and no GPU is needed. `Scheduler`'s own
methods decide (`get_next_batch_to_run`, its `PrefillAdder`, `update_running_batch`, `retract_decode`) and end a batch
(`process_batch_result_prefill`, `_decode`), over SGLang's `ScheduleBatch`, `Req`, `ReqToTokenPool`, `ChunkCache` and
allocator; only what starts processes, talks to clients and logs is left out, and in place of a model every request in a
batch is given a token. Modules of compiled GPU kernels (`sgl_kernel`) are empty stand-ins, which nothing calls.

Prefix caching is off (`--disable-radix-cache`). A block is a token, as is SGLang's default.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.abc
import importlib.machinery
import os
import platform
import random
import subprocess
import sys
import types
import venv
from collections import Counter, deque
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).parent))
from scheduler_traces import Settings, Step, Trace, make_trace, write_traces

TORCH = "torch==2.13.0"
PACKAGES = (
    "aiohttp", "compressed-tensors", "dill",
    "einops", "fastapi", "gguf", "einops", "ipython", "msgspec", "numpy", "openai", "orjson",
    "packaging", "partial_json_parser", "pillow", "psutil", "pybase64", "pydantic", "pyzmq", "requests",
    "sentencepiece", "setproctitle", "torchvision", "transformers", "triton", "xgrammar",
)  # fmt: skip
KERNELS = ("sgl_kernel", "flashinfer", "deep_gemm", "decord", "outlines", "soundfile", "torchao")
MOST_STEPS = 20_000
QUIET = (
    "_abort_on_waiting_timeout", "_abort_on_running_timeout", "maybe_collect_routed_experts",
    "maybe_collect_customized_info", "_mamba_prefix_cache_update", "log_prefill_stats", "log_decode_stats",
    "maybe_send_health_check_signal",
)  # fmt: skip


def main() -> None:
    """Make the environment and record in it, or, inside it, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="SGLang's, as its wheel is named")
    parser.add_argument("--traces", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-overlap", action="store_true", help="without overlap scheduling")
    parser.add_argument("--environment", type=Path, required=True, help="a folder; kept, and used again if it exists")
    parser.add_argument("--inside", action="store_true", help="this is the environment")
    options = parser.parse_args()
    if options.inside:
        record(options.version, options.traces, options.seed, overlap=not options.no_overlap)
        return
    python = make_environment(options.environment / f"sglang-{options.version}", options.version)
    subprocess.run([python, __file__, *sys.argv[1:], "--inside"], check=True)


def make_environment(folder: Path, version: str) -> Path:
    """Its Python; packages are installed when it is new."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        for packages in ([TORCH], PACKAGES, ["--no-deps", f"sglang=={version}"]):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules for packages of compiled kernels, which are imported and never called."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        """Stand in for the packages of KERNELS that are not installed."""
        del path, target
        if name.split(".")[0] not in KERNELS:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        """Any name in it is something that does nothing."""
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: (  # type: ignore[method-assign]
            MagicMock(name=name) if not name.startswith("__") else _missing(name)
        )
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing runs."""


def _missing(name: str) -> Any:
    raise AttributeError(name)


def record(version: str, count: int, seed: int, *, overlap: bool) -> None:
    """Drive the scheduler over `count` traces and write what it did."""
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.meta_path.append(StandIns())
    import importlib.metadata as metadata

    assert metadata.version("sglang") == version, metadata.version("sglang")
    rng = random.Random(seed)
    traces = [run(fitted(make_trace(rng), rng), overlap=overlap) for _ in range(count)]
    suffix, flag = ("", "") if overlap else ("-no-overlap", " --no-overlap")
    path = Path(__file__).parent / f"sglang-{version}{suffix}.json.gz"
    provenance = {
        "made_by": f"python tests/recordings/record_sglang.py {version} --traces {count} --seed {seed}{flag}",
        "engine": f"SGLang {version}, its Scheduler, PrefillAdder and ScheduleBatch, no model",
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "python": platform.python_version(),
        "machine": "2 cores, no GPU",
    }
    write_traces(path, traces, provenance)
    steps = sum(len(trace.steps) for trace in traces)
    gone = sum(len(step.preempted) for trace in traces for step in trace.steps)
    sys.stdout.write(f"{path}: {count} traces, {steps} steps, {gone} retracted, {path.stat().st_size} bytes\n")


def fitted(trace: Trace, rng: random.Random) -> Trace:
    """The trace with what SGLang knows of its settings, and a cache that holds each request alone."""
    longest = max(prompt + output for _, prompt, output, _, _ in trace.requests)
    blocks = int((longest + 2) * rng.choice((1, 1.2, 1.5, 2, 3, 4, 8, 40)))
    settings = Settings(
        max_num_batched_tokens=trace.settings.max_num_batched_tokens,
        max_num_seqs=trace.settings.max_num_seqs,
        block_size=1,
        kv_blocks=blocks,
        chunked=True,
        prefix_caching=False,
        long_prefill_token_threshold=0,
        long_prefill_token_threshold_adaptive=False,
        reserve_full_isl=False,
        watermark=0.0,
        ignore_eos=rng.random() < 0.3,
        conservativeness=rng.choice((1.0, 1.0, 0.3, 0.05)),
    )
    rows = [(arrival, prompt, output, -1, 0) for arrival, prompt, output, _, _ in trace.requests]
    return replace(trace, settings=settings, requests=rows)


def run(trace: Trace, *, overlap: bool) -> Trace:
    """The trace with the steps that the scheduler takes from its first request's coming to its last one's end.

    With overlap, a batch is decided before the tokens of the one before are there, as `event_loop_overlap` does it."""
    scheduler = make_scheduler(trace, overlap=overlap)
    waiting = deque(enumerate(trace.requests))
    underway: deque[Launched] = deque()
    steps: list[Step] = []
    entered: set[int] = set()
    over: set[int] = set()
    now = 0
    while len(over) < len(trace.requests) or underway:
        assert now < MOST_STEPS, "it hangs"
        if not (scheduler.waiting_queue or scheduler.running_batch.reqs or scheduler.last_batch or underway):
            now = max(now, waiting[0][1][0])
        while waiting and waiting[0][1][0] <= now:
            scheduler.waiting_queue.append(make_request(*waiting.popleft(), ignore_eos=trace.settings.ignore_eos))
        batch = scheduler.cur_batch = scheduler.get_next_batch_to_run()
        if batch:
            now += 1
            at = None
            if (step := step_of(scheduler, batch, entered, underway)).requests:
                at = len(steps)
                steps.append(step)
                scheduler.retracted = []
            underway.append(Launched(batch=batch.copy(), result=result_of(batch), sampled=sampled(batch), step=at))
        if underway and (scheduler.last_batch or not overlap):
            launched = underway.popleft()
            scheduler.process_batch_result(launched.batch, launched.result)
            gone = [int(req.rid) for req in launched.batch.reqs if req.finished() and int(req.rid) not in over]
            over |= set(gone)
            if gone:
                assert launched.step is not None
                steps[launched.step] = replace(steps[launched.step], finished=gone)
        scheduler.last_batch = batch
    return replace(trace, steps=steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A batch whose tokens nobody has looked at: its place among the steps, and who gets a token of it."""

    batch: Any
    result: Any
    sampled: list[int]
    step: int | None


def sampled(batch: Any) -> list[int]:
    """Who is given a token: all but the one whose prompt goes on."""
    return [int(req.rid) for req in batch.reqs if not (batch.forward_mode.is_extend() and req is batch.chunked_req)]


def step_of(scheduler: Any, batch: Any, entered: set[int], underway: deque[Launched]) -> Step:
    """What a batch computes; who has all tokens once those under way are there is computed for nothing: left out."""
    under_way = Counter(id_ for launched in underway for id_ in launched.sampled)
    kept = [
        req for req in batch.reqs if len(req.output_ids) + under_way[int(req.rid)] < req.sampling_params.max_new_tokens
    ]
    requests = [int(req.rid) for req in kept]
    entered -= set(scheduler.retracted)
    admitted = [(id_, 0) for id_ in requests if id_ not in entered]
    entered |= set(requests)
    extends, allocator = batch.forward_mode.is_extend(), scheduler.token_to_kv_pool_allocator
    return Step(
        requests=requests,
        tokens=[req.extend_input_len for req in kept] if extends else [1] * len(requests),
        admitted=admitted,
        preempted=list(scheduler.retracted),
        finished=[],
        blocks_used=allocator.size - allocator.available_size(),
    )


def result_of(batch: Any) -> Any:
    """A token for each of a batch's requests."""
    import torch

    tokens = torch.ones(len(batch.reqs), dtype=torch.int64)
    batch.output_ids = tokens
    return SimpleNamespace(
        copy_done=None,
        logits_output=None,
        next_token_ids=tokens,
        extend_input_len_per_req=None,
        extend_logprob_start_len_per_req=None,
        can_run_cuda_graph=False,
        num_accepted_tokens=0,
    )


def make_request(index: int, row: tuple[int, int, int, int, int], *, ignore_eos: bool) -> Any:
    """A request as SGLang's own class."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    params = SamplingParams(max_new_tokens=row[2], ignore_eos=ignore_eos, temperature=0.0)
    params.normalize(None)
    return Req(str(index), "", [2] * row[1], params, eos_token_ids={0}, vocab_size=100)


def nothing(*_: Any, **__: Any) -> None:
    """In place of what a scheduler tells others."""


def make_scheduler(trace: Trace, *, overlap: bool) -> Any:
    """SGLang's scheduler over a trace's limits, without what starts processes."""
    import torch
    from sglang.srt import server_args as server_arguments
    from sglang.srt.disaggregation.utils import DisaggregationMode
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.chunk_cache import ChunkCache
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    limits = trace.settings

    class Driven(Scheduler):
        """Its decisions; it tells nobody of them."""

        def __init__(self) -> None:
            """Only what the decisions read."""

        def __getattr__(self, name: str) -> Any:
            """Options that are off."""
            if name.startswith(("enable_", "is_", "has_", "require_", "current_")):
                return False
            raise AttributeError(name)

        def stream_output(self, *_: Any, **__: Any) -> None:
            """Nobody reads it."""

        def _add_request_to_queue(self, req: Any, is_retracted: bool = False) -> None:
            if is_retracted:
                self.retracted.append(int(req.rid))
            self.waiting_queue.append(req)

        def maybe_prepare_mlp_sync_batch(self, batch: Any, need_sync: Any = None) -> Any:
            """No other rank steps with it."""
            del need_sync
            return batch

    for name in QUIET:
        setattr(Driven, name, nothing)
    options = MagicMock()
    options.configure_mock(
        chunked_prefill_size=limits.max_num_batched_tokens,
        enable_mixed_chunk=False,
        enable_dynamic_chunking=False,
        schedule_conservativeness=limits.conservativeness,
        enable_prefill_delayer=False,
        prefill_max_requests=None,
        pp_max_micro_batch_size=limits.max_num_seqs,
        attention_backend="torch_native",
        speculative_algorithm=None,
        disaggregation_mode="null",
        disaggregation_decode_enable_offload_kvcache=False,
        page_size=1,
        decode_log_interval=1 << 30,
        enable_priority_scheduling=False,
        enable_lora=False,
    )
    options.enable_mamba_extra_buffer = lambda: False
    server_arguments._global_server_args = options

    scheduler = Driven()
    pool = ReqToTokenPool(limits.max_num_seqs + 64, 4096, "cpu", enable_memory_saver=False)
    allocator = TokenToKVPoolAllocator(limits.kv_blocks, torch.float16, "cpu", MagicMock(), need_sort=False)
    cache = ChunkCache(
        CacheInitParams(disable=True, req_to_token_pool=pool, token_to_kv_pool_allocator=allocator, page_size=1)
    )
    given: dict[str, Any] = {
        "server_args": options,
        "req_to_token_pool": pool,
        "token_to_kv_pool_allocator": allocator,
        "tree_cache": cache,
        "page_size": 1,
        "pp_size": 1,
        "max_prefill_tokens": 16384,
        "schedule_policy": "fcfs",
        "schedule_low_priority_values_first": False,
        "disaggregation_mode": DisaggregationMode.NULL,
        "dllm_config": None,
        "waiting_queue": [],
        "last_batch": None,
        "cur_batch": None,
        "enable_overlap": overlap,
        "is_generation": True,
        "spec_algorithm": SpeculativeAlgorithm.NONE,
        "truncation_align_size": None,
        "model_config": MagicMock(is_encoder_decoder=False, is_matryoshka=False, vocab_size=100, context_len=4096),
        "grammar_manager": SimpleNamespace(has_waiting_grammars=lambda: False),
        "num_generated_tokens": 0,
        "forward_ct": 0,
        "forward_ct_decode": 0,
        "retracted": [],
        "priority_scheduling_preemption_threshold": 0,
        "device": "cpu",
        "metrics_collector": MagicMock(),
    }
    for name, value in given.items():
        setattr(scheduler, name, value)
    scheduler.running_batch = ScheduleBatch(reqs=[], batch_is_full=False)
    scheduler.init_chunked_prefill()
    scheduler.init_schedule_policy()
    return scheduler


if __name__ == "__main__":
    main()
