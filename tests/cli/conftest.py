import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moecast.traces import PHASES, RoutingTrace, TraceMeta, write_trace
from tests.command_line import fresh, run_command

Run = Callable[..., subprocess.CompletedProcess[str]]

CONFIG = {
    "architectures": ["OlmoeForCausalLM"],
    "model_type": "olmoe",
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the command line as a user does, in a folder of its own."""

    def run_(
        *arguments: object, check: bool = False, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = run_command(*arguments, cwd=tmp_path) if env is None else fresh(*arguments, cwd=tmp_path, env=env)
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run_


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model's config.json and a trace of its routing: 3 layers, 16 experts, top-4, two topics."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_trace(small_trace(), folder / "t.parquet")
    return folder


def small_trace(sequences: int = 160, length: int = 48) -> RoutingTrace:
    """Skewed routing in both phases: topic 0 likes low experts, topic 1 high ones."""
    rng = np.random.default_rng(7)
    tokens = sequences * length
    sequence_T = np.repeat(np.arange(sequences, dtype=np.uint32), length)
    topic_T = (sequence_T % 2).astype(np.int16)
    popularity_TE = np.where(topic_T[:, None] == 0, -np.arange(16) / 6, np.arange(16) / 6 - 2.5)
    score = popularity_TE[:, None, :] + rng.gumbel(size=(tokens, 3, 16))
    return RoutingTrace(
        meta=TraceMeta(model="small", layers=3, experts=16, choices=4, config=CONFIG, layer_ids=(0, 1, 2)),
        experts_TLK=np.argsort(-score, axis=2)[:, :, :4].astype(np.uint16),
        sequence_T=sequence_T,
        position_T=np.tile(np.arange(length, dtype=np.uint32), sequences),
        phase_T=np.where(sequence_T % 4 < 2, PHASES.index("prefill"), PHASES.index("decode")).astype(np.uint8),
        topics=("low", "high"),
        topic_T=topic_T,
        step_T=None,
        source_rank_T=None,
        token_id_T=None,
        weights_TLK=None,
    )
