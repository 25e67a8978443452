"""Record what vLLM's own scheduler decides for generated request traces; writes tests/recordings/vllm-VERSION.json.gz.

    python tests/recordings/record_vllm.py 0.33.0 --traces 240 --seed 0 --environment FOLDER

Makes an environment in FOLDER with vLLM's wheel, installed without its dependencies, a CPU torch, and the packages
that its scheduler module imports; then runs itself in there. No model is loaded and no GPU is needed: the scheduler and
the KV cache manager are vLLM's classes, made from vLLM's own configuration values as its engine makes them; in place of
a model each request that has all its known tokens computed is given one. Only the config.json of a made-up Llama of one
layer is there, because a `ModelConfig` wants one.

vLLM keeps one block of its pool as a placeholder, so a cache of N usable blocks is one of N + 1 for it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import random
import subprocess
import sys
import venv
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from scheduler_traces import Settings, Step, Trace, make_trace, output_token, token_ids, write_traces

TORCH = "torch==2.13.0"
PACKAGES = (
    "aiohttp",
    "blake3",
    "cachetools",
    "cbor2",
    "cloudpickle",
    "diskcache",
    "einops",
    "fastapi",
    "gguf",
    "llguidance",
    "msgspec",
    "numpy",
    "openai",
    "openai_harmony",
    "packaging",
    "partial_json_parser",
    "pillow",
    "prometheus_client",
    "psutil",
    "py-cpuinfo",
    "pybase64",
    "pydantic",
    "pyyaml",
    "pyzmq",
    "regex",
    "requests",
    "setproctitle",
    "tqdm",
    "transformers",
    "uvloop",
    "xgrammar",
)
LATER = ("long_prefill_token_threshold_adaptive", "watermark")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 1000,
    "max_position_embeddings": 1 << 20,
    "torch_dtype": "float16",
}


def main() -> None:
    """Make the environment and record in it, or, inside it, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="vLLM's, as its wheel is named")
    parser.add_argument("--traces", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--async", action="store_true", dest="asynchronous", help="vLLM's asynchronous scheduling")
    parser.add_argument("--environment", type=Path, required=True, help="a folder; kept, and used again if it exists")
    parser.add_argument("--inside", action="store_true", help="this is the environment")
    options = parser.parse_args()
    if options.inside:
        record(options.version, options.traces, options.seed, options.environment, asynchronous=options.asynchronous)
        return
    python = make_environment(options.environment / f"vllm-{options.version}", options.version)
    subprocess.run([python, __file__, *sys.argv[1:], "--inside"], check=True)


def make_environment(folder: Path, version: str) -> Path:
    """Its Python; packages are installed when it is new."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        for packages in ([TORCH], PACKAGES, ["--no-deps", f"vllm=={version}"]):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def record(version: str, count: int, seed: int, folder: Path, *, asynchronous: bool) -> None:
    """Drive the scheduler over `count` traces and write what it did."""
    os.environ.setdefault("PYTHONHASHSEED", "0")
    import vllm

    assert vllm.__version__ == version, vllm.__version__
    rng = random.Random(seed)
    traces = [run(known_to_this_version(make_trace(rng)), folder, asynchronous=asynchronous) for _ in range(count)]
    suffix, kind = ("-async", "AsyncScheduler") if asynchronous else ("", "Scheduler")
    path = Path(__file__).parent / f"vllm-{version}{suffix}.json.gz"
    command = f"python tests/recordings/record_vllm.py {version} --traces {count} --seed {seed}"
    provenance = {
        "made_by": command + " --async" * asynchronous,
        "engine": f"vLLM {version}, its V1 {kind} and KVCacheManager, no model",
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "python": platform.python_version(),
        "machine": "2 cores, no GPU",
    }
    write_traces(path, traces, provenance)
    steps = sum(len(trace.steps) for trace in traces)
    sys.stdout.write(f"{path}: {count} traces, {steps} steps, {path.stat().st_size} bytes\n")


def known_to_this_version(trace: Trace) -> Trace:
    """The trace without settings that came later: a version that lacks one behaves as if it were off."""
    from vllm.config import SchedulerConfig

    fields = SchedulerConfig.__dataclass_fields__
    off = {name: type(getattr(trace.settings, name))(0) for name in LATER if name not in fields}
    return replace(trace, settings=replace(trace.settings, **off))


def run(trace: Trace, folder: Path, *, asynchronous: bool) -> Trace:
    """The trace with the steps that the scheduler takes from its first request's coming to its last one's end.

    Asynchronous, a step is decided before the tokens of the one before are there, as the engine's core does it with its
    queue of two batches. A step without work takes no time and is left out.
    """
    scheduler = make_scheduler(trace, folder, asynchronous=asynchronous)
    preempted = log_preemptions(scheduler)
    waiting = deque(enumerate(trace.requests))
    steps: list[Step] = []
    flying: deque[tuple[Any, list[list[int]], Step]] = deque()
    now = 0
    while waiting or scheduler.has_unfinished_requests():
        if not scheduler.has_unfinished_requests():
            now = max(now, waiting[0][1][0])
        while waiting and waiting[0][1][0] <= now:
            scheduler.add_request(make_request(*waiting.popleft(), trace.settings))
        decided = decide_step(scheduler, preempted)
        if decided[-1].requests:
            preempted.clear()
            flying.append(decided)
            steps.append(decided[-1])
            now += 1
        if flying and (len(flying) > asynchronous or not decided[-1].requests):
            end_step(scheduler, *flying.popleft())
        assert len(steps) < 100_000, "the scheduler hangs"
    return Trace(settings=trace.settings, requests=trace.requests, steps=steps)


def decide_step(scheduler: Any, preempted: list[str]) -> tuple[Any, list[list[int]], Step]:
    """Let it schedule: its output, the tokens that its requests will be given, and the step."""
    before = {request.request_id for request in scheduler.running}
    coming = {name: request.num_output_placeholders for name, request in scheduler.requests.items()}
    output = scheduler.schedule()
    counts = dict(output.num_scheduled_tokens)
    requests = {name: scheduler.requests[name] for name in counts}
    sampled = [
        [output_token(int(name), request.num_computed_tokens)]
        if request.num_computed_tokens == request.num_tokens + coming[name]
        else []
        for name, request in requests.items()
    ]
    admitted = [
        (int(name), request.num_computed_tokens - counts[name])
        for name, request in requests.items()
        if name not in before
    ]
    pool = scheduler.kv_cache_manager.block_pool
    step = Step(
        requests=[int(name) for name in counts],
        tokens=list(counts.values()),
        admitted=admitted,
        preempted=[int(name) for name in preempted],
        finished=[],
        blocks_used=pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),
    )
    return output, sampled, step


def end_step(scheduler: Any, output: Any, sampled: list[list[int]], step: Step) -> None:
    """Give the tokens, as if a model had made them, and note in the step who is at an end."""
    from vllm.v1.outputs import ModelRunnerOutput

    names = list(output.num_scheduled_tokens)
    scheduler.update_from_output(
        output,
        ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        ),
    )
    step.finished.extend(int(name) for name in names if name not in scheduler.requests)


def log_preemptions(scheduler: Any) -> list[str]:
    """A list to which the scheduler adds each request that it preempts, as it does."""
    names: list[str] = []
    preempt = scheduler._preempt_request

    def logged(request: Any, *values: Any, **options: Any) -> None:
        names.append(request.request_id)
        preempt(request, *values, **options)

    scheduler._preempt_request = logged
    return names


def make_request(index: int, row: tuple[int, int, int, int, int], settings: Settings) -> Any:
    """vLLM's request, whose blocks are hashed as its engine does it."""
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256)
    return Request(
        request_id=str(index),
        prompt_token_ids=token_ids(index, row),
        sampling_params=SamplingParams(max_tokens=row[2], ignore_eos=True),
        pooling_params=None,
        block_hasher=get_request_block_hasher(settings.block_size, sha256) if settings.prefix_caching else None,
    )


def make_scheduler(trace: Trace, folder: Path, *, asynchronous: bool) -> Any:
    """vLLM's scheduler over a cache of one group of full attention."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    settings = trace.settings
    config = make_config(trace, folder, asynchronous=asynchronous)
    spec = FullAttentionSpec(block_size=settings.block_size, num_kv_heads=1, head_size=1, dtype=torch.float16)
    blocks = settings.kv_blocks + 1
    config.cache_config.num_gpu_blocks = blocks
    cache = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    return config.scheduler_config.get_scheduler_cls()(
        vllm_config=config,
        kv_cache_config=cache,
        structured_output_manager=StructuredOutputManager(config),
        block_size=settings.block_size,
    )


def make_config(trace: Trace, folder: Path, *, asynchronous: bool) -> Any:
    """vLLM's configuration; settings that this version does not have are left out."""
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig

    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    settings = trace.settings
    most = max(prompt + output for _, prompt, output, _, _ in trace.requests)
    scheduler = {
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "max_num_seqs": settings.max_num_seqs,
        "enable_chunked_prefill": settings.chunked,
        "long_prefill_token_threshold": min(settings.long_prefill_token_threshold, most),
        "scheduler_reserve_full_isl": settings.reserve_full_isl,
        "async_scheduling": asynchronous,
        "is_encoder_decoder": False,
    }
    for name in LATER:
        if name in SchedulerConfig.__dataclass_fields__:
            scheduler[name] = getattr(settings, name)
    return VllmConfig(
        model_config=ModelConfig(
            model=str(folder / "model"), skip_tokenizer_init=True, dtype="float16", max_model_len=most, seed=0
        ),
        scheduler_config=SchedulerConfig(max_model_len=most, **scheduler),
        cache_config=CacheConfig(block_size=settings.block_size, enable_prefix_caching=settings.prefix_caching),
        device_config=DeviceConfig("cpu"),
    )


if __name__ == "__main__":
    main()
