"""Makes the dumps in `sglang-0.5.23/` with SGLang's own recorder, on a CPU, for the tests to import.

    pip download --no-deps sglang==0.5.23 && unzip -q sglang-*.whl -d sglang-wheel
    python -m tests.importers.record_sglang sglang-wheel tests/importers/sglang-0.5.23

The wheel cannot be installed here as a whole (it wants CUDA), and need not be: its `expert_distribution.py` is loaded
as it is, what it imports from the rest of SGLang is replaced by settings and stubs, and its recorder is driven as the
model runner drives it: a forward pass, its layers, `on_select_experts` in each MoE layer, a dump. The routing that it
records is made up by `routing()`.
"""

import contextlib
import enum
import importlib.util
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np

HIDDEN_LAYERS, DENSE, EXPERTS, PHYSICAL, CHOICES, RANKS = 3, 1, 6, 8, 2, 2
MODES = ("per_token", "per_pass", "stat")
PASSES = ((11, "EXTEND", (4, 2)), (12, "DECODE", (1, 1, 1)), (13, "IDLE", ()), (14, "DECODE", (1, 1)))
"""(forward pass, mode, tokens of each request)."""


def physical_to_logical():
    """[hidden layers, physical experts]: two spare slots a layer, in another order in each."""
    rng = np.random.default_rng(1)
    return np.stack([rng.permutation(np.r_[np.arange(EXPERTS), 0, 3]) for _ in range(HIDDEN_LAYERS)])


def routing(rank, forward_pass, tokens):
    """Physical ids [tokens, MoE layers, choices] of a pass; no logical expert twice."""
    rng = np.random.default_rng([rank, forward_pass])
    maps = physical_to_logical()
    ids = np.zeros((tokens, HIDDEN_LAYERS - DENSE, CHOICES), np.int64)
    for token, layer in np.ndindex(ids.shape[:2]):
        for choice, logical in enumerate(rng.permutation(EXPERTS)[:CHOICES]):
            ids[token, layer, choice] = rng.choice(np.flatnonzero(maps[layer + DENSE] == logical))
    return ids


class _ForwardMode(enum.IntEnum):
    EXTEND = 1
    DECODE = 2
    MIXED = 3
    IDLE = 4
    SPLIT_PREFILL = 8


class _Withable:
    """A value for the length of a with block."""

    def __init__(self):
        self.value = None

    @contextlib.contextmanager
    def with_value(self, value):
        self.value, before = value, self.value
        try:
            yield
        finally:
            self.value = before


def load_recorder(wheel, mode, folder):
    """SGLang's module, with what it asks of the rest of SGLang answered for one CPU."""
    settings = SimpleNamespace(
        moe=SimpleNamespace(
            expert_distribution_recorder_mode=mode,
            moe_a2a_backend="none",
            deepep_mode="auto",
            expert_distribution_recorder_buffer_size=-1,
            eplb_min_rebalancing_utilization_threshold=1.0,
            elastic_ep_backend=None,
        ),
        overlap=SimpleNamespace(enable_two_batch_overlap=False),
    )
    names = {
        "einops": {},
        "sglang": {},
        "sglang.srt": {},
        "sglang.srt.environ": {
            "envs": SimpleNamespace(SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR=SimpleNamespace(get=lambda: str(folder)))
        },
        "sglang.srt.model_executor": {},
        "sglang.srt.model_executor.forward_batch_info": {"ForwardBatch": object, "ForwardMode": _ForwardMode},
        "sglang.srt.observability": {},
        "sglang.srt.observability.metrics_collector": {
            "STAT_LOGGER_ROLE_EXPERT_DISPATCH": "",
            "ExpertDispatchCollector": object,
            "resolve_collector_class": None,
        },
        "sglang.srt.runtime_context": {
            "get_device": lambda: SimpleNamespace(device="cpu"),
            "get_exec": lambda: settings,
            "get_platform": lambda: SimpleNamespace(is_hip=False),
            "get_schedule": lambda: SimpleNamespace(chunked_prefill_size=8),
            "logs_expert_balancedness_to_server_log": lambda: False,
            "reports_expert_balancedness": lambda: False,
        },
        "sglang.srt.utils": {
            "Withable": _Withable,
            "get_device": lambda: "cpu",
            "get_int_env_var": lambda _, default: default,
        },
        "sglang.srt.layers": {},
        "sglang.srt.layers.moe": {"get_moe_a2a_backend": None},
    }
    for name, values in names.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(values)
    path = Path(wheel) / "sglang" / "srt" / "eplb" / "expert_distribution.py"
    spec = importlib.util.spec_from_file_location("sglang_recorder", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["sglang_recorder"] = module
    spec.loader.exec_module(module)
    return module


def record(wheel, mode, rank, folder):
    """Drive a rank's recorder through the passes, and dump."""
    import torch

    module = load_recorder(wheel, mode, folder)
    location = SimpleNamespace(
        num_layers=HIDDEN_LAYERS,
        num_physical_experts=PHYSICAL,
        num_local_physical_experts=PHYSICAL // RANKS,
        num_logical_experts=EXPERTS,
        physical_to_logical_map=torch.from_numpy(physical_to_logical()),
        ep_size=RANKS,
    )
    recorder = module.ExpertDistributionRecorder.init_new(location, rank)
    recorder.start_record()
    for forward_pass, name, lengths in PASSES:
        tokens = sum(lengths)
        ids = torch.from_numpy(routing(rank, forward_pass, tokens).astype(np.int32))
        first = [np.arange(n) if name == "EXTEND" else np.array([forward_pass + 5]) for n in lengths]
        batch = SimpleNamespace(
            input_ids=torch.arange(tokens) + 100,
            positions=torch.from_numpy(np.concatenate([*first, np.zeros(0, np.int64)])),
            extend_seq_lens_cpu=list(lengths) if name == "EXTEND" else None,
            forward_mode=_ForwardMode[name],
        )
        with recorder.with_forward_pass(forward_pass, batch):
            for layer in range(DENSE, HIDDEN_LAYERS):
                with recorder.with_current_layer(layer):
                    recorder.on_select_experts(topk_ids=ids[:, layer - DENSE])
    recorder.stop_record()
    recorder.dump_record(output_mode="file")


def main():
    """Record every mode, and give the dumps lasting names."""
    import torch

    wheel, out = sys.argv[1:]
    torch.get_device_module = lambda *_: SimpleNamespace(  # type: ignore[assignment]
        empty_cache=lambda: None, is_current_stream_capturing=lambda: False
    )
    with tempfile.TemporaryDirectory() as scratch:
        torch.distributed.init_process_group("gloo", init_method=f"file://{scratch}/store", rank=0, world_size=1)
        for mode in MODES:
            for rank in range(RANKS if mode != "stat" else 1):
                folder = Path(tempfile.mkdtemp(dir=scratch))
                record(wheel, mode, rank, folder)
                (dump,) = folder.iterdir()
                Path(out).mkdir(exist_ok=True)
                shutil.copyfile(dump, Path(out) / f"expert_distribution_recorder_{mode}_{rank}.pt")
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
