"""`moecast trace import` as a user calls it, and how formats are told apart."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from moecast.cli import app
from moecast.errors import MoecastError
from moecast.traces import ImportOptions, LoadTable, import_trace, read_load_table, read_meta, read_trace
from moecast.traces.importers import find_importer
from tests.importers.layouts import (
    draw_choices,
    event_table,
    megatron_lines,
    route_lines,
    routes_document,
    sglang_dump,
    sglang_pass,
    sglang_response,
    torch_save,
    trtllm_folder,
    vllm_split,
    vllm_whole,
    with_dense,
    write_lines,
)

ROOT = Path(__file__).resolve().parent.parent.parent

CONFIG = {
    "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "hidden_size": 64, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "num_experts": 6,
    "num_experts_per_tok": 2, "vocab_size": 100, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """One file or folder of each kind, by format and kind."""
    rng = np.random.default_rng(0)
    prompt, generated = draw_choices(rng, 5, 2, 6, 2), draw_choices(rng, 3, 2, 6, 2)
    folder = tmp_path / "in"
    folder.mkdir()
    np.savez(folder / "topics.npz", law=prompt)
    np.savez(folder / "request.npz", routed_experts=prompt)
    np.save(folder / "request.npy", prompt)
    (folder / "one.json").write_text(json.dumps(vllm_split(prompt, generated), indent=1))
    (folder / "list.json").write_text(json.dumps([sglang_response(prompt, generated)] * 2))
    megatron = folder / "megatron"
    megatron.mkdir()
    for rank in (0, 10, 9):
        write_lines(
            megatron / f"router_trace_rank{rank}.jsonl", megatron_lines(4, rank, np.roll(prompt, rank, 0), [0, 1])
        )
    recorder = folder / "recorder"
    recorder.mkdir()
    for rank in range(2):
        record = sglang_pass(3, rank, np.roll(prompt, rank, 0))
        sglang_dump(recorder / f"expert_distribution_recorder_9.5_{rank}.pt", [record], [[*range(6)]] * 2)
    (folder / "routes.json").write_text(json.dumps(routes_document(prompt, generated, [0, 1], experts=6)))
    np.savez(folder / "events.npz", **event_table(prompt, np.zeros(5, int), np.arange(3, 8), np.zeros(5, int)))
    log = [route_lines(prompt[:, layer], layer=layer, request="r1") for layer in (0, 1)]
    counts = {rank: {"5_0": [1, 2, 3, 4, 5, rank], "5_1": [6, 5, 4, 3, 2, 1]} for rank in range(2)}
    return {
        "npz": folder / "topics.npz",
        "vllm npz": folder / "request.npz",
        "vllm npy": folder / "request.npy",
        "vllm json": folder / "one.json",
        "vllm split": write_lines(folder / "split.jsonl", [vllm_split(prompt, generated)] * 3),
        "vllm whole": write_lines(folder / "whole.jsonl", [vllm_whole(prompt, generated)] * 3),
        "sglang json": folder / "list.json",
        "sglang responses": write_lines(folder / "sglang.jsonl", [sglang_response(prompt, generated)] * 3),
        "sglang tokens": recorder,
        "sglang stat": torch_save({"rank": 0, "logical_count": np.ones((3, 2, 6), np.int32)}, folder / "stat.pt"),
        "megatron": megatron,
        "vllm-routes": write_lines(folder / "moe_routes.jsonl", log[0] + log[1]),
        "routes-json": folder / "routes.json",
        "table npz": folder / "events.npz",
        "trtllm": trtllm_folder(folder / "statistic", counts, experts=6, choices=2),
        "trtllm meta": folder / "statistic" / "meta_info.json",
        "trtllm rank": folder / "statistic" / "rank1.safetensors",
    }


def test_every_kind_is_told_apart_by_its_content(files, tmp_path):
    for kind, path in files.items():
        assert find_importer([path]).name == kind.split()[0], kind
        if path.is_file() and path.name != "meta_info.json":
            renamed = tmp_path / "no-suffix"
            renamed.write_bytes(path.read_bytes())
            assert find_importer([renamed]).name == kind.split()[0], kind


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "config.json"


def invoke(*arguments):
    result = CliRunner().invoke(app, ["trace", "import", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


COUNTS = ("sglang stat", "trtllm", "trtllm meta", "trtllm rank")


def test_every_kind_through_the_command(files, config, tmp_path):
    for number, (kind, path) in enumerate(files.items()):
        out = tmp_path / (f"{number}.json" if kind in COUNTS else f"{number}.parquet")
        value = json.loads(invoke(path, "--out", out, "--config", config, "--model", "tiny", "--json"))
        assert value["model"] == "tiny", kind
        assert (value["layers"], value["experts"], value["choices"]) == (2, 6, 2), kind
        if kind in COUNTS:
            table = read_load_table(out)
            assert value["kind"] == "load table"
            assert value["counted"] == table.load_LE.sum() > 0
            assert "Counts only: no co-activation" in table.meta.notes
        else:
            trace = read_trace(out)
            assert value["content_hash"] == trace.content_hash()
            assert trace.n_tokens == value["tokens"] > 0
            assert read_meta(out).layer_ids == (0, 1)
        assert value["source"]["importer"] == kind.split()[0]


def test_tables_say_what_was_imported(files, tmp_path):
    text = invoke(files["sglang tokens"], "--out", tmp_path / "shards")
    for fact in ("10 in 2 sequences", "expert distribution recorder, per_token", "source ranks", "prefill", "2 files"):
        assert fact in " ".join(text.split()), fact
    assert (tmp_path / "shards" / "part-00000.parquet").exists()
    text = invoke(files["trtllm"], "--out", tmp_path / "load.json")
    assert "load table: counts only" in text
    assert "Summed over 2 ranks" in " ".join(text.replace("│", " ").split())


def test_dense_layers_are_named(tmp_path):
    prompt = draw_choices(np.random.default_rng(0), 4, 2, 6, 2)
    path = write_lines(tmp_path / "r.jsonl", [vllm_whole(with_dense(prompt, [0], 0), with_dense(prompt, [0], 0))])
    text = invoke(path, "--out", tmp_path / "t.parquet")
    assert "dense_layers_dropped" in text
    assert read_meta(tmp_path / "t.parquet").layer_ids == (1, 2)


def test_megatron_ranks_stand_in_their_order(files):
    trace = import_trace(files["megatron"])
    assert list(dict.fromkeys(trace.source_rank_T.tolist())) == [0, 9, 10]
    assert "of phase train" in trace.meta.notes
    decoding = import_trace(files["megatron"], ImportOptions(phase="decode"))
    assert "of phase decode" in decoding.meta.notes


def test_multi_token_prediction_layers_are_left_out(tmp_path):
    choices = draw_choices(np.random.default_rng(0), 4, 2, 6, 2)
    lines = megatron_lines(0, 0, choices, [0, 1])
    lines += [line | {"block": "mtp", "mtp_idx": 0} for line in megatron_lines(0, 0, choices, [0, 1])]
    trace = import_trace(write_lines(tmp_path / "x.jsonl", lines))
    assert trace.n_tokens == 4
    assert "Multi-token prediction layers are left out of: x.jsonl" in trace.meta.notes


def test_files_of_different_formats_are_not_joined(files):
    with pytest.raises(MoecastError, match=r"looks like vllm, topics\.npz like npz: import them apart"):
        find_importer([files["npz"], files["vllm json"]])


def test_what_two_importers_recognise_must_be_named(tmp_path):
    prompt = draw_choices(np.random.default_rng(0), 4, 2, 6, 2)
    path = write_lines(tmp_path / "x.jsonl", [vllm_split(prompt, prompt) | {"meta_info": {}}])
    with pytest.raises(MoecastError, match="looks like vllm or sglang: say which with --format"):
        import_trace(path)
    assert import_trace(path, importer="vllm").n_tokens == 8


def bad(files, name):
    """(arguments, what the line says) of a command that must fail."""
    return {
        "a trace as .json": ([files["vllm json"], "--out", "o.json"], "make a trace: name a .parquet file"),
        "counts as .parquet": ([files["trtllm"], "--out", "o.parquet"], "make a load table: name a .json file"),
        "counts as a folder": ([files["trtllm"], "--out", "shards"], "make a load table: name a .json file"),
        "an unknown format": ([files["npz"], "--out", "o.parquet", "--format", "csv"], "--format = 'csv': one of auto"),
        "another format": ([files["npz"], "--out", "o.parquet", "--format", "trtllm"], "meta_info.json"),
        "no such file": (["none.npz", "--out", "o.parquet"], "none.npz: no such file"),
        "counts without k": ([files["sglang stat"], "--out", "o.json"], "--config, --model .a preset. or --choices"),
        "ids without sizes": ([files["sglang json"], "--out", "o.parquet"], "give --config or --model"),
        "another k": ([files["npz"], "--out", "o.parquet", "--choices", "3"], "--choices = 3: the files have 2"),
        "too few experts": ([files["npz"], "--out", "o.parquet", "--experts", "2"], "expert = 5: outside 0…1"),
        "another e": ([files["trtllm"], "--out", "o.json", "--experts", "7"], "the model has 7 experts"),
        "another model": ([files["npz"], "--out", "o.parquet", "--model", "mixtral-8x7b"], "32 MoE layers"),
    }[name]


BAD = ("a trace as .json", "counts as .parquet", "counts as a folder", "an unknown format", "another format",
       "no such file", "counts without k", "ids without sizes", "another k", "too few experts", "another e",
       "another model")  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_imports_fail_in_one_line_and_write_nothing(files, tmp_path, monkeypatch, name):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    arguments, words = bad(files, name)
    with pytest.raises(MoecastError, match=words) as failure:
        CliRunner().invoke(app, ["trace", "import", *map(str, arguments)], catch_exceptions=False)
    assert "\n" not in str(failure.value)
    assert not list(work.iterdir())


def test_a_bad_file_among_good_ones_writes_nothing(tmp_path):
    good = draw_choices(np.random.default_rng(0), 4, 2, 6, 2)
    np.save(tmp_path / "0.npy", good)
    good[3, 1] = 5
    np.save(tmp_path / "1.npy", good)
    with pytest.raises(MoecastError, match=r"1\.npy: token 3, layer 1: expert 5 is chosen twice"):
        invoke(tmp_path / "0.npy", tmp_path / "1.npy", "--out", tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


BROKEN = {
    "another stage": (lambda c: megatron_lines(0, 0, c, [0, 1]) + megatron_lines(0, 1, c, [2, 3]), "pipeline stage"),
    "a layer cut off": (lambda c: megatron_lines(0, 0, c, [0, 1]) + megatron_lines(1, 0, c, [0, 1])[:1], "cut off"),
    "micro-batches": (lambda c: megatron_lines(0, 0, c, [0, 1]) + megatron_lines(0, 0, c, [0, 1])[:1], "more micro"),
    "tokens": (lambda c: megatron_lines(0, 0, c, [0]) + megatron_lines(0, 0, c[:2], [1]), "differ in tokens"),
    "topk": (lambda c: megatron_lines(0, 0, c, [0], topk=3), "topk is not"),
    "num_tokens": (lambda c: megatron_lines(0, 0, c, [0], num_tokens=3), "num_tokens is not"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_megatron_traces(tmp_path, name):
    lines, words = BROKEN[name]
    path = write_lines(tmp_path / "x.jsonl", lines(draw_choices(np.random.default_rng(0), 4, 2, 6, 2)))
    with pytest.raises(MoecastError, match=words):
        import_trace(path)


def test_ranks_that_recorded_the_same_tokens_are_refused(tmp_path):
    choices = draw_choices(np.random.default_rng(0), 4, 2, 6, 2)
    files = [
        sglang_dump(tmp_path / f"{rank}.pt", [sglang_pass(0, rank, choices)], [[*range(6)]] * 2) for rank in (0, 1)
    ]
    with pytest.raises(MoecastError, match=r"ranks 0 and 1 recorded the same tokens .*import one rank's file"):
        import_trace(files)
    assert import_trace(files[0]).n_tokens == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"forward_mode": 3}, "neither prefill .1. nor decode"),
        ({"extend_seq_lens": [9]}, "extend_seq_lens do not fit"),
        ({"positions": [0]}, "1 positions for 4 tokens"),
        ({"positions": [0, 1, 2, -3]}, "a position outside"),
        ({"rank": -1}, "rank must be a whole number"),
        ({"rank": 70000}, "a source_rank outside"),
        ({"topk_ids_of_layer": np.full((2, 4, 8), 9, np.int32)}, "disable-shared-experts-fusion"),
        ({"topk_ids_of_layer": np.zeros((3, 4, 8), np.int32)}, "of 2 layers and 4 tokens"),
        ({"topk_ids_of_layer": np.zeros((2, 4, 8), np.float32)}, "must be a tensor of whole numbers"),
    ],
)
def test_broken_recorder_dumps(tmp_path, changes, words):
    record = sglang_pass(0, 0, draw_choices(np.random.default_rng(0), 4, 2, 6, 2)) | changes
    with pytest.raises(MoecastError, match=words):
        import_trace(sglang_dump(tmp_path / "x.pt", [record], [[*range(6)]] * 2))


def test_the_tests_that_the_docs_name_exist():
    page = (ROOT / "docs" / "traces.md").read_text(encoding="utf-8")
    rows = page[page.index("### Engines") : page.index("### Model classes")].splitlines()
    named = {name for row in rows if row.startswith("|") for name in re.findall(r"`(test_\w+)`", row)}
    assert len(named) >= 10
    files = (
        Path(__file__).parent / name for name in ("test_round_trips.py", "test_sglang_recorded.py", "test_tables.py")
    )
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    assert not [name for name in named if f"def {name}(" not in text]


def test_a_load_table_places_experts(files, tmp_path):
    out = tmp_path / "load.json"
    invoke(files["trtllm"], "--out", out)
    placed = CliRunner().invoke(
        app,
        ["place", "--load", str(out), "--ep", "2", "--out", str(tmp_path / "p.json"), "--json"],
        catch_exceptions=False,
    )
    assert json.loads(placed.stdout)["legal"]
    assert isinstance(import_trace(files["trtllm"]), LoadTable)
