"""Makes `sglang-0.5.23/generate.jsonl` and `completions.jsonl` with SGLang's own modules, on a CPU, for the tests.

    pip download --no-deps sglang==0.5.23 && unzip -q sglang-*.whl -d sglang-wheel && pip install pybase64
    python -m tests.importers.record_sglang_returned sglang-wheel tests/importers/sglang-0.5.23

Real, loaded from the wheel as they are: the capturer of routed experts (`state_capturer`), what collects a request's
rows (`batch_result_processor`), what encodes them (`detokenizer_manager`) and the OpenAI server's response
(`entrypoints/openai/protocol`). All that they import from the rest of SGLang is replaced by placeholders, and the
routing is made up by `routing()`. A response of ``/generate`` is put together here, as `tokenizer_manager` does.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np

HIDDEN_LAYERS, DENSE, EXPERTS, CHOICES = 3, 1, 6, 2
REQUESTS = (("a", 4, 3, 0, 0), ("b", 2, 3, 0, 1), ("c", 5, 2, 3, 0))
"""(name, prompt, generated, of the prompt cached from the request before the last, `routed_experts_start_len`)."""


def routing(name, position):
    """The experts [MoE layers, choices] of a request's token; those of "c" that are cached are those of "a"."""
    _, _, _, cached, _ = next(request for request in REQUESTS if request[0] == name)
    rng = np.random.default_rng([ord("a" if position < cached else name), position])
    return np.stack([rng.permutation(EXPERTS)[:CHOICES] for _ in range(HIDDEN_LAYERS - DENSE)])


class _Placeholder(type):
    """The class of what stands for any name of SGLang: it can be called, indexed, decorated with and subclassed."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(name)

    def __call__(cls, *args, **_):
        return args[0] if len(args) == 1 and callable(args[0]) else _placeholder(cls.__name__)

    def __getitem__(cls, _):
        return cls

    def __or__(cls, _):
        return cls

    __ror__ = __or__

    def __bool__(cls):
        return False


def _placeholder(name):
    return _Placeholder(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of SGLang: the real ones in the wheel, placeholders for the others."""

    def __init__(self, wheel, real, names):
        self._wheel, self._real, self._names = Path(wheel), real, names

    def find_spec(self, name, path=None, target=None):  # noqa: ARG002
        if name.partition(".")[0] != "sglang":
            return None
        if name in self._real:
            return importlib.util.spec_from_file_location(name, self._wheel / (name.replace(".", "/") + ".py"))
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []
        vars(module).update(self._names.get(spec.name, {}))
        module.__getattr__ = _placeholder
        return module

    def exec_module(self, module):
        pass


def load(wheel):
    """SGLang's modules, by their last names."""
    import torch

    resources = SimpleNamespace(experts_capturer=None)
    no = SimpleNamespace(is_deepep=lambda: False, is_deepep_v2=lambda: False)
    names = {
        "sglang.srt.layers.dp_attention": {"is_dp_attention_enabled": lambda: False},
        "sglang.srt.layers.moe": {"get_moe_a2a_backend": lambda: no},
        "sglang.srt.runtime_context": {
            "get_exec": lambda: SimpleNamespace(features=SimpleNamespace(enable_return_routed_experts=True)),
            "get_parallel": lambda: SimpleNamespace(num_dp_ranks=1),
            "get_schedule": lambda: SimpleNamespace(chunked_prefill_size=16),
            "get_resources": lambda: resources,
        },
        "sglang.srt.mem_cache.pool_host.common": {
            "ALLOC_MEMORY_FUNCS": {"cpu": lambda shape, dtype, **_: torch.empty(shape, dtype=dtype)}
        },
        "sglang.srt.utils": {"is_cuda": lambda: False, "is_hip": lambda: False},
    }
    real = {
        "state_capturer.base",
        "state_capturer.routed_experts",
        "managers.detokenizer_manager",
        "managers.scheduler_components.batch_result_processor",
        "entrypoints.openai.protocol",
    }
    sys.meta_path.insert(0, _Finder(wheel, {f"sglang.srt.{name}" for name in real}, names))
    return {name.rpartition(".")[2]: importlib.import_module(f"sglang.srt.{name}") for name in sorted(real)}


def run(modules):
    """Drive the capturer through the requests, one after the other, and give each one's encoded rows."""
    import torch

    config = SimpleNamespace(
        hf_text_config=SimpleNamespace(num_experts_per_tok=CHOICES, num_hidden_layers=HIDDEN_LAYERS)
    )
    model = SimpleNamespace(shared_experts_config=SimpleNamespace(num_fused_shared_experts=1))
    capturer = modules["routed_experts"].RoutedExpertsCapturer.create(
        model=model, model_config=config, num_tokens=64, max_running_requests=4, device="cpu"
    )
    modules["routed_experts"].set_global_experts_capturer(capturer)
    slots = torch.from_numpy(np.random.default_rng(3).permutation(64).reshape(4, 16))
    processor = SimpleNamespace(req_to_token_pool=SimpleNamespace(req_to_token=slots))
    collected = []
    for row, (name, prompt, generated, cached, start) in enumerate(REQUESTS):
        slots[row, :cached] = slots[0, :cached]
        for first, end in [(cached, prompt), *((p, p + 1) for p in range(prompt, prompt + generated - 1))]:
            chosen = np.stack([routing(name, position) for position in range(first, end)]).astype(np.int32)
            for layer in range(DENSE, HIDDEN_LAYERS):
                shared = np.full((end - first, 1), EXPERTS, np.int32)
                capturer.capture(layer, torch.from_numpy(np.hstack([chosen[:, layer - DENSE], shared])))
            batch = SimpleNamespace(out_cache_loc=slots[row, first:end], out_cache_loc_virtual=None)
            output = capturer.on_forward_end(batch, False, None, no_copy_to_cpu=True)
            output.map_device_tensors(lambda tensor: tensor.cpu())
            output.finalize()
        request = SimpleNamespace(
            return_routed_experts=True,
            routed_experts_start_len=start,
            origin_input_ids=list(range(prompt)),
            output_ids_through_stop=list(range(generated)),
            kv=SimpleNamespace(req_pool_idx=row),
            rid=name,
        )
        kind = modules["batch_result_processor"].SchedulerBatchResultProcessor
        kind._maybe_collect_routed_experts(processor, request)
        collected.append(request.routed_experts)
    return modules["detokenizer_manager"].DetokenizerManager._b64_encode_per_request(collected)


def main():
    """Write the responses of both servers."""
    wheel, out = sys.argv[1:]
    modules = load(wheel)
    protocol = modules["protocol"]
    generate, completions = [], []
    for (name, prompt, generated, cached, _), encoded in zip(REQUESTS, run(modules), strict=True):
        told = {"prompt_tokens": prompt, "completion_tokens": generated, "cached_tokens": cached}
        generate.append({"text": name, "meta_info": {"id": name, **told, "routed_experts": encoded}})
        usage = protocol.UsageInfo(
            prompt_tokens=prompt,
            completion_tokens=generated,
            total_tokens=prompt + generated,
            prompt_tokens_details=protocol.PromptTokensDetails(cached_tokens=cached),
        )
        choice = protocol.CompletionResponseChoice(index=0, text=name, finish_reason="length")
        response = protocol.CompletionResponse(
            id=name,
            model="tiny",
            created=0,
            choices=[choice],
            usage=usage,
            sglext=protocol.SglExt(routed_experts=encoded, input_ids=list(range(prompt))),
        )
        completions.append(response.model_dump(mode="json"))
    for stem, records in (("generate", generate), ("completions", completions)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (Path(out) / f"{stem}.jsonl").write_text(lines)


if __name__ == "__main__":
    main()
