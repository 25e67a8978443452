"""`moecast capture hf` as a user runs it, on a tiny model and tokenizer saved to a folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, models
from typer.testing import CliRunner

from moecast.cli import app
from moecast.errors import MoecastError
from moecast.traces import PHASES, describe_trace, read_trace
from tests.hf.families import FAMILIES

WORDS = "the quick brown fox jumps over the lazy dog 0123456789 "
LETTERS = ["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz 0123456789"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a tokenizer of single characters."""
    folder = tmp_path_factory.mktemp("models") / "tiny-mixtral"
    model = FAMILIES[0].build()
    model.generation_config = transformers.GenerationConfig(eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    bpe = models.BPE(vocab={letter: id_ for id_, letter in enumerate(LETTERS)}, merges=[], unk_token="<pad>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(bpe), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for topic in ("code", "law"):
        (folder / topic / "deeper").mkdir(parents=True)
        (folder / topic / "deeper" / "a.txt").write_text(WORDS * 3)
        (folder / topic / "b.txt").write_text(f"{topic} " * 40)
    (folder / ".hidden").write_text("not this")
    return folder


def invoke(*arguments: str | Path) -> dict[str, object]:
    """Run the command in this process; its JSON."""
    result = CliRunner().invoke(app, ["capture", "hf", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_prefill_and_decode_in_a_process_of_its_own(model_folder: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "t"
    command = [sys.executable, "-m", "moecast", "capture", "hf", model_folder, "--text", texts, "--out", out]
    options = ["--max-tokens", "200", "--sequence-length", "24", "--generate", "3", "--temperature", "0", "--json"]
    done = subprocess.run(
        [*map(str, command), *options],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    said, trace = json.loads(done.stdout), read_trace(out)
    assert said["tokens"] == trace.n_tokens
    assert said["content_hash"] == trace.content_hash()
    assert said["model"] == trace.meta.model == "tiny-mixtral"
    prefill = trace.select(trace.phase_T == PHASES.index("prefill"))
    assert prefill.n_tokens == 200
    assert sorted(trace.topics) == ["code", "law"]
    assert [int((prefill.topic_T == topic).sum()) for topic in range(2)] == [100, 100]
    assert prefill.token_id_T is not None
    text = "".join(LETTERS[i] for i in prefill.token_id_T[prefill.sequence_T == prefill.sequence_T[0]])
    assert any(text in file.read_text() for file in texts.rglob("*.txt"))
    assert 0 < trace.n_tokens - 200 <= 3 * said["sequences"]
    assert trace.meta.config is not None
    assert str(model_folder) not in json.dumps(dict(trace.meta.config)) + json.dumps(dict(trace.meta.source))


def test_the_same_seed_gives_the_same_trace(model_folder: Path, texts: Path, tmp_path: Path) -> None:
    options = [model_folder, "--text", texts, "--max-tokens", "90", "--sequence-length", "20", "--generate", "2"]
    a, b, c = (
        invoke(*options, "--seed", seed, "--out", tmp_path / name)["content_hash"]
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert a == b != c


def test_a_file_has_no_topic_and_weights_are_kept_on_request(model_folder: Path, texts: Path, tmp_path: Path) -> None:
    file = texts / "law" / "b.txt"
    said = invoke(
        model_folder,
        "--text",
        file,
        "--out",
        tmp_path / "t.parquet",
        "--weights",
        "--batch-size",
        "2",
        "--sequence-length",
        "30",
    )
    assert said["columns"] == ["step", "token_id", "weights"]
    assert said["tokens"] == len(file.read_text())
    trace = read_trace(tmp_path / "t.parquet", weights=True)
    assert (trace.topic_T == -1).all()


def test_random_weights_are_named_as_such(model_folder: Path, texts: Path, tmp_path: Path) -> None:
    only_config = tmp_path / "shape"
    shutil.copytree(model_folder, only_config, ignore=shutil.ignore_patterns("*.safetensors"))
    options = [only_config, "--text", texts, "--max-tokens", "40", "--sequence-length", "20", "--out", tmp_path / "t"]
    with pytest.raises(MoecastError, match="--random-weights"):
        invoke(*options)
    said = invoke(*options, "--random-weights")
    assert str(said["model"]).endswith("(random weights)")
    assert "RANDOM WEIGHTS" in str(said["notes"])


def test_a_short_run_too_is_cut_in_shards_and_an_interrupt_keeps_what_there_is(
    model_folder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["capture", "hf", model_folder, "--text", texts, "--max-tokens", "180", "--sequence-length", "30"]
    options += ["--batch-size", "1", "--generate", "30"]
    whole = CliRunner().invoke(app, [*map(str, options), "--out", str(tmp_path / "whole"), "--temperature", "0"])
    assert whole.exit_code == 0
    assert describe_trace(tmp_path / "whole").shards == 1  # under a thousand tokens: no smaller ones
    generate, calls = transformers.GenerationMixin.generate, []

    def interrupted(self: transformers.PreTrainedModel, **arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(self, **arguments)

    monkeypatch.setattr(transformers.GenerationMixin, "generate", interrupted)
    for out, kept in [("t", "t holds the "), ("t.parquet", "nothing is kept")]:
        calls.clear()
        result = CliRunner().invoke(app, [*map(str, options), "--out", str(tmp_path / out), "--temperature", "0"])
        assert result.exit_code == 130
        assert "moecast: interrupted; " in result.stderr
        assert kept in result.stderr
    first, trace = read_trace(tmp_path / "t"), read_trace(tmp_path / "whole")
    assert 0 < first.n_tokens < trace.n_tokens
    assert np.array_equal(first.experts_TLK, trace.experts_TLK[: first.n_tokens])
    with pytest.raises(MoecastError, match="name a new one"):
        invoke(*options[2:], "--out", tmp_path / "t")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"MODEL": "./nowhere"}, "MODEL = './nowhere': no such folder"),
        ({"MODEL": "nobody/nothing"}, "cannot be loaded"),
        ({"MODEL": "dense"}, "has no MoE layers"),
        ({"MODEL": "empty"}, "the tokenizer cannot be loaded"),
        ({"--text": "nowhere"}, "no such file or folder"),
        ({"--text": "empty"}, "holds no text"),
        ({"--text": "blank"}, "no token comes out of it"),
        ({"--text": "binary.txt"}, "not UTF-8 text"),
        ({"--out": "full"}, "holds something already"),
        ({"--out": "none/t"}, "does not exist"),
        ({"--dtype": "int3"}, "--dtype = 'int3'"),
        ({"--device": "abacus"}, "--device = 'abacus'"),
        ({"--sequence-length": "100"}, "64 positions"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_line(
    change: dict[str, str],
    said: str,
    model_folder: Path,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "blank", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "blank" / "a.txt").write_text("")
    (tmp_path / "full" / "mine").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    if change.get("MODEL") == "dense":
        small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        config = transformers.LlamaConfig(**small, num_attention_heads=2)
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
        for file in model_folder.glob("tokenizer*"):
            shutil.copy(file, tmp_path / "dense")
    options = {"--text": str(texts), "--out": "t", "--max-tokens": "300"} | change
    model = options.pop("MODEL", str(model_folder))
    with pytest.raises(MoecastError) as error:
        invoke(model, *(part for pair in options.items() for part in pair))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "t").exists()


def test_without_transformers_one_line_says_what_to_install(
    model_folder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("moecast.traces.capture.hf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MoecastError, match=r'capture hf needs transformers; pip install "moecast\[hf\]"'):
        invoke(model_folder, "--text", texts, "--out", tmp_path / "t")


def test_files_of_a_topic_take_turns(model_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text" / "code"
    text.mkdir(parents=True)
    for number, letter in enumerate("abcd"):
        (text / f"{number}.txt").write_text(letter * 1000)
    options = ["--max-tokens", "88", "--sequence-length", "11", "--out", tmp_path / "t"]
    invoke(model_folder, "--text", tmp_path / "text", *options)
    ids_T = read_trace(tmp_path / "t").token_id_T
    assert ids_T is not None
    letters, counts = np.unique(ids_T[ids_T != LETTERS.index("<s>")], return_counts=True)
    assert [LETTERS[i] for i in letters] == list("abcd")
    assert counts.tolist() == [len(ids_T[ids_T != LETTERS.index("<s>")]) // 4] * 4
