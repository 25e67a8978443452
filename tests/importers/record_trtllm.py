"""Makes the folders in `tensorrt-llm/` with TensorRT-LLM's own statistics module, on a CPU, for the tests to import.

    python -m tests.importers.record_trtllm counts=expert_statistic.py tests/importers/tensorrt-llm

TensorRT-LLM wants CUDA, and need not be installed: the module `tensorrt_llm/_torch/expert_statistic.py` of
NVIDIA/TensorRT-LLM stands alone but for a logger and the environment. It is loaded, and driven as the executor and the
MoE layers drive it: an iteration, its layers, the experts that tokens choose. `counts` is the module at commit 0fccc5b;
`tokens` and `raw` are variants in branches of others, which write the choices too. (The files here were made with
copies of their code, without functions that are not called.) The routing that it records is made up by `routing()`.
"""

import importlib.util
import os
import shutil
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np

EXPERTS, CHOICES, RANKS = 6, 2, 2
LAYERS = (1, 2)
START, STOP = 3, 5
TOKENS = (4, 1, 3, 2)
"""Of the iterations 2, 3, 4 and 5."""


def routing(rank, iteration, layer):
    """int32 [tokens, choices] of a rank in an iteration; no expert twice."""
    rng = np.random.default_rng([rank, iteration, layer])
    tokens = TOKENS[iteration - START + 1] + rank
    return np.argsort(rng.random((tokens, EXPERTS)), axis=1)[:, :CHOICES].astype(np.int32)


def record(source, rank):
    """Drive a rank's statistic from the iteration before the range to the one behind it."""
    import torch

    spec = importlib.util.spec_from_file_location("expert_statistic", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    statistic = module.ExpertStatistic
    statistic.create(rank)
    for iteration in range(START - 1, STOP + 2):
        statistic.set_iter(iteration)
        for layer in LAYERS:
            statistic.set_layer(layer)
            if iteration <= STOP:
                statistic.maybe_add_info(EXPERTS, torch.from_numpy(routing(rank, iteration, layer)))


def main():
    """Record every variant named, all ranks into a folder of its name."""
    import safetensors.torch  # noqa: F401  the module uses it and imports its parent only

    *variants, out = sys.argv[1:]
    logger = SimpleNamespace(info=lambda _: None)
    names = {
        "tensorrt_llm": {"envs": SimpleNamespace(get_env=os.environ.get)},
        "tensorrt_llm.logger": {"logger": logger},
    }
    for name, values in names.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(values)
    os.environ["EXPERT_STATISTIC_ITER_RANGE"] = f"{START}-{STOP}"
    for variant in variants:
        name, source = variant.split("=")
        folder = Path(out) / name
        shutil.rmtree(folder, ignore_errors=True)
        os.environ["EXPERT_STATISTIC_PATH"] = str(folder)
        for rank in range(RANKS):
            record(source, rank)


if __name__ == "__main__":
    main()
