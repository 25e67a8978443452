"""The commands as a user types them: what they print for machines, and what they leave behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moecast.traces import LoadTable, RoutingTrace, TraceMeta, read_trace, write_load_table, write_trace
from moecast.units import format_bytes

from .conftest import Run

CLUSTER = ("--cluster", "dgx-h200")
WORK = ("--tokens-per-rank", 16, "--steps", 2)

PREDICTION_KEYS = {
    "step_time_s", "breakdown_s", "tokens_per_s", "tokens_per_s_per_gpu", "latency_s", "memory_bytes", "fits",
    "balance", "balance_pooled", "fan_out", "fan_out_domains", "dispatch_bytes", "bottleneck", "network",
}  # fmt: skip
PLACEMENT_KEYS = {
    "objective_s", "bound_s", "gap", "solver", "seconds", "balance_pooled", "fan_out", "legal", "wasted_slots",
}  # fmt: skip


def replace_meta(trace: RoutingTrace, **changes: object) -> RoutingTrace:
    return replace(trace, meta=replace(trace.meta, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "command",
    [
        ("simulate",), ("serve",), ("train",), ("place",), ("validate",), ("report",), ("demo",), ("collective",),
        ("model", "list"), ("model", "show"),
        ("topology", "list"), ("topology", "show"), ("topology", "import"),
        ("trace", "info"), ("trace", "import"), ("trace", "stats"), ("trace", "export"), ("capture", "train"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_command_has_an_example_json_and_a_seed(run: Run, command: tuple[str, ...]) -> None:
    text = run(*command, "--help", check=True).stdout
    assert "Example: moecast " + " ".join(command) in " ".join(text.split())
    assert "--json" in text
    assert "--seed" in text


@pytest.mark.parametrize(("phase", "network"), [("prefill", "bound"), ("decode", "fluid")])
def test_simulate_for_machines(run: Run, small: Path, tmp_path: Path, phase: str, network: str) -> None:
    trace = ("--trace", small / "t.parquet")
    done = run(
        "simulate",
        *CLUSTER,
        *trace,
        "--phase",
        phase,
        "--network",
        network,
        "--tokens-per-rank",
        4,
        "--steps",
        2,
        "--json",
        "--out",
        "p.json",
        "--timeline",
        "t.json",
        check=True,
    )
    value = json.loads(done.stdout)
    assert value.keys() >= PREDICTION_KEYS
    assert value["network"] == network
    assert sum(value["breakdown_s"].values()) == pytest.approx(value["step_time_s"])
    assert json.loads((tmp_path / "p.json").read_text()) == value
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]


def test_model_show_adds_up(run: Run) -> None:
    value = json.loads(run("model", "show", "deepseek-v3", "--json", check=True).stdout)
    assert sum(part["parameters"] for part in value["parts"]) == value["total_parameters"]
    assert (value["layers"], value["experts"], value["choices"], value["expert_groups"]) == (58, 256, 8, 8)
    assert value["kv_bytes_per_token"] == 61 * 2 * 576
    text = run("model", "show", "gpt-oss-120b", "--kv-type", "fp8", check=True).stdout
    assert "18 × gqa, window 128, 18 × gqa" in text
    assert "116.79 B" in text
    listed = json.loads(run("model", "list", "--json", check=True).stdout)
    assert "mixtral-8x7b" in [model["name"] for model in listed]
    wrong = run("model", "show", "deepseek-v3", "--weight-type", "fp5")
    assert wrong.returncode == 2
    assert "--weight-type = 'fp5': one of bf16" in wrong.stderr


def test_types_and_memory_fraction_are_said(run: Run, small: Path) -> None:
    asked = (*CLUSTER, "--trace", small / "t.parquet", "--phase", "decode", "--network", "bound", "--steps", 1,
             "--tokens-per-rank", 4, "--json")  # fmt: skip
    whole = json.loads(run("simulate", *asked, check=True).stdout)
    cut = json.loads(
        run(
            "simulate", *asked, "--weight-type", "nvfp4", "--kv-type", "fp8", "--memory-fraction", 0.5, check=True
        ).stdout
    )
    assert cut["memory_bytes"]["slots"] == pytest.approx(whole["memory_bytes"]["slots"] * 4.5 / 16)
    assert cut["memory_bytes"]["kv"] == whole["memory_bytes"]["kv"] // 2
    assert whole["memory_bytes"]["usable"] == int(0.9 * whole["memory_bytes"]["capacity"])
    assert cut["memory_bytes"]["usable"] == cut["memory_bytes"]["capacity"] // 2
    assert "override: --weight-type nvfp4" in cut["warnings"]
    shown = run("simulate", *asked[:-1], "--memory-fraction", 0.85, check=True).stdout
    capacity = format_bytes(whole["memory_bytes"]["capacity"])
    assert re.search(rf"fits +│ +yes, within 85 % of {capacity} │", shown)


def test_dims_need_no_config(run: Run, small: Path, tmp_path: Path) -> None:
    """L, E and K are in the trace; so are the ids where it has some of the layers only."""
    write_trace(replace_meta(read_trace(small / "t.parquet"), config=None, layer_ids=None), tmp_path / "bare.parquet")
    asked = (*CLUSTER, "--phase", "decode", "--network", "bound", "--steps", 1, "--tokens-per-rank", 4, "--json")
    value = json.loads(run("simulate", *asked, "--trace", "bare.parquet", "--dims", "olmoe-1b-7b", check=True).stdout)
    assert value["model"] == "routing of small at the dimensions of olmoe-1b-7b"
    without = run("simulate", *asked, "--trace", "bare.parquet")
    assert without.returncode == 2
    assert "--dims" in without.stderr


def test_layers_that_a_trace_leaves_out_are_not_dense(run: Run, small: Path, tmp_path: Path) -> None:
    """Under --dims the layers between those of the trace are not known: nothing is priced for them."""
    trace = read_trace(small / "t.parquet")
    asked = (*CLUSTER, "--phase", "decode", "--network", "bound", "--steps", 1, "--tokens-per-rank", 4, "--json")
    found = []
    for ids in (range(trace.meta.layers), range(0, 20 * trace.meta.layers, 20)):
        write_trace(replace_meta(trace, config=None, layer_ids=tuple(ids)), tmp_path / "some.parquet")
        found.append(run("simulate", *asked, "--trace", "some.parquet", "--dims", "olmoe-1b-7b", check=True).stdout)
    together, apart = map(json.loads, found)
    assert apart["breakdown_s"] == together["breakdown_s"]
    assert apart["gains"] == together["gains"]


def test_layers_of_a_trace_that_the_model_does_not_have_are_named(run: Run, small: Path, tmp_path: Path) -> None:
    trace = read_trace(small / "t.parquet")
    config = {**trace.meta.config, "num_hidden_layers": 3 + trace.meta.layers}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for ids, line in (
        (None, "the trace does not say which of them it has"),
        (tuple(range(90, 90 + trace.meta.layers)), "layer 90 is no MoE layer of"),
    ):
        write_trace(replace_meta(trace, layer_ids=ids), tmp_path / "some.parquet")
        done = run("simulate", *CLUSTER, "--trace", "some.parquet", "--model", "config.json")
        assert done.returncode == 2
        assert line in " ".join(done.stderr.split())


@pytest.mark.parametrize("command", ["simulate", "place"])
def test_defaults_run_and_say_what_they_take(run: Run, command: str) -> None:
    more = (
        ("--network", "bound", "--no-gains") if command == "simulate" else ("--solver", "contiguous", "--out", "p.json")
    )
    asked = ("--cluster", "dgx-h200", "--nodes", 4, "--dims", "deepseek-v2-lite", "--trace", "shipped", *more)
    text = " ".join(run(command, *asked, check=True).stdout.split())
    assert "the most that the trace fills on 32 ranks" in text
    assert "routing of 8×64×6 (MoE layers × experts × choices), the model has 26×64×6" in text


def test_a_model_of_another_shape_is_told_what_to_do(run: Run) -> None:
    done = run("simulate", "--cluster", "dgx-h200", "--model", "deepseek-v3", "--trace", "shipped")
    assert done.returncode == 2
    for words in ("layers = 8", "has 58", "--routing trace", "--routing uniform", "--dims"):
        assert words in done.stderr


def test_routing_of_the_models_own_shape(run: Run, tmp_path: Path) -> None:
    asked = ("--cluster", "dgx-h200", "--nodes", 2, "--model", "deepseek-v2-lite", "--phase", "decode", "--steps", 2,
             "--network", "bound", "--tokens-per-rank", 8, "--json")  # fmt: skip
    balances = {}
    for law in ("uniform", "zipf:1"):
        value = json.loads(run("simulate", *asked, "--routing", law, check=True).stdout)
        assert value["routing_shape"] == value["model_shape"] == [26, 64, 6]
        assert value["step_time_s"] > 0
        assert f"{law} routing, 26×64×6: made, not recorded; layers and tokens independent" in value["labels"]
        assert len(value["traffic_SD"]) == 16
        assert "decoded tokens attend to 2,048 keys each, by their positions (--context)" in value["warnings"]
        balances[law] = value["balance"]
    assert balances["zipf:1"] < balances["uniform"]
    fixed = json.loads(run("simulate", *asked, "--routing", "zipf:1", "--context", 100, check=True).stdout)
    assert not any("keys each" in warning for warning in fixed["warnings"])
    table = LoadTable(
        load_LE=np.arange(1, 26 * 64 + 1).reshape(26, 64),
        meta=TraceMeta(model="server", layers=26, experts=64, choices=6),
    )
    write_load_table(table, tmp_path / "load.json")
    value = json.loads(run("simulate", *asked, "--load", "load.json", check=True).stdout)
    assert value["labels"] == ["the load of server, 26×64×6: made, not recorded; layers and tokens independent"]


def test_recorded_steps_on_the_command_line(run: Run, tmp_path: Path) -> None:
    """All 8 tokens of a step on one of 4 ranks, then two on each: (0.25 + 1) / 2, and (4 + 1) / 2 turned over."""
    experts = np.concatenate([np.zeros(32), np.repeat(np.arange(0, 8, 2), 8)]).astype(np.uint16)
    config = {
        "model_type": "mixtral", "num_hidden_layers": 1, "hidden_size": 1024, "intermediate_size": 1024,
        "num_local_experts": 8, "num_experts_per_tok": 1, "num_attention_heads": 8, "vocab_size": 1000,
    }  # fmt: skip
    trace = RoutingTrace(
        meta=TraceMeta(model="m", layers=1, experts=8, choices=1, config=config),
        experts_TLK=experts[:, None, None],
        sequence_T=np.arange(64, dtype=np.uint32),
        position_T=np.zeros(64, np.uint32),
        phase_T=np.full(64, 2, np.uint8),
        topic_T=np.full(64, -1, np.int16),
        step_T=np.repeat([0, 1], 32).astype(np.uint32),
        source_rank_T=np.tile(np.repeat(np.arange(4), 8), 2).astype(np.uint16),
    )
    write_trace(trace, tmp_path / "t.parquet")
    (tmp_path / "four.yaml").write_text(
        "name: four\npreset: dgx-h100\nnodes: 1\ndomain: {gpus_per_host: 4, nics_per_host: 4}\n"
    )
    asked = ("--cluster", "four.yaml", "--trace", "t.parquet", "--phase", "decode", "--steps", 2, "--network", "bound")
    value = json.loads(run("simulate", *asked, "--recorded-steps", "--json", check=True).stdout)
    assert value["balance"] == pytest.approx(0.625)
    assert value["overload"] == pytest.approx(2.5)
    assert "recorded steps" in run("simulate", *asked, "--tokens-per-rank", 40).stderr


def test_attention_by_tp_on_the_command_line(run: Run, small: Path) -> None:
    """A token is dispatched once: half as many tokens per GPU with TP 2 as with DP attention, of the same batch."""
    asked = (*CLUSTER, "--trace", small / "t.parquet", "--phase", "decode", "--network", "bound", "--steps", 2)
    by_dp = json.loads(run("simulate", *asked, "--tokens-per-rank", 4, "--json", check=True).stdout)
    by_tp = json.loads(run("simulate", *asked, "--tokens-per-rank", 8, "--tp", 2, "--json", check=True).stdout)
    assert by_tp["plan"]["tp"] == 2
    assert by_tp["plan"]["dp"] == 4
    assert "override: --tp 2" in by_tp["warnings"]
    assert sum(by_tp["rank_load"]) == sum(by_dp["rank_load"])
    wrong = run("simulate", *asked, "--tp", 3)
    assert wrong.returncode == 2
    assert "--tp = 3: does not divide the plan's 8 ranks" in wrong.stderr
    for degree, line in (
        (("--etp", 3), "--etp = 3: does not divide the 8 ranks of a pipeline stage"),
        (("--pp", 3), "--pp = 3: does not divide the 8 ranks"),
        (("--cp", 3), "--cp = 3: does not divide the plan's 8 ranks"),
    ):
        assert line in run("simulate", *asked, *degree).stderr
    cut = json.loads(run("simulate", *asked, "--tokens-per-rank", 8, "--etp", 2, "--json", check=True).stdout)
    assert "override: --etp 2" in cut["warnings"]
    whole = (*asked, "--tokens-per-rank", 8, "--tp", 2)
    kept = json.loads(run("simulate", *whole, "--no-sequence-parallel", "--json", check=True).stdout)
    assert kept["plan"]["sequence_parallel"] is False
    assert "override: --no-sequence-parallel" in kept["warnings"]
    assert kept["rank_load"] == by_tp["rank_load"]


def test_place_with_tp_makes_a_plan_that_says_so(run: Run, small: Path, tmp_path: Path) -> None:
    asked = (*CLUSTER, "--trace", small / "t.parquet", *WORK, "--tp", 4, "--solver", "eplb", "--out", "plan.json")
    run("place", *asked, "--no-sequence-parallel", check=True)
    made = json.loads((tmp_path / "plan.json").read_text())
    assert (made["tp"], made["sequence_parallel"]) == (4, False)


def test_place_then_simulate_then_report(run: Run, small: Path, tmp_path: Path) -> None:
    """The main job on a user's own input, in the plan's own format and in the engine's."""
    inputs = (*CLUSTER, "--trace", small / "t.parquet", *WORK)
    placed = run(
        "place",
        *inputs,
        "--solver",
        "local-search",
        "--slots-per-rank",
        3,
        "--work-limit",
        5000,
        "--out",
        "plan.json",
        "--export",
        "sglang",
        "--json",
        check=True,
    )
    value = json.loads(placed.stdout)
    assert value.keys() >= PLACEMENT_KEYS
    assert 0 < value["bound_s"] <= value["objective_s"]
    assert value["legal"]
    assert value["wasted_slots"] == 0
    times = {}
    for name in ("plan.json", "plan.sglang.json"):
        seen = run(
            "simulate",
            *inputs,
            "--plan",
            name,
            "--part",
            "measuring",
            "--network",
            "bound",
            "--json",
            "--out",
            f"seen-{name}",
            check=True,
        )
        times[name] = json.loads(seen.stdout)["step_time_s"]
    assert times["plan.json"] == times["plan.sglang.json"]
    run("report", "seen-plan.json", "seen-plan.sglang.json", "--out", "r.html", check=True)
    assert "What is not modelled" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_same_seed_same_bytes(run: Run, small: Path) -> None:
    arguments = (
        "simulate",
        *CLUSTER,
        "--trace",
        small / "t.parquet",
        *WORK,
        "--network",
        "bound",
        "--json",
        "--seed",
        3,
    )
    # a fork of the same process would have the order of its sets, too
    assert run(*arguments, check=True).stdout == run(*arguments, check=True, env={"PYTHONHASHSEED": "5"}).stdout


def test_dims_are_said_and_dispatch_is_recorded(run: Run, small: Path) -> None:
    done = run(
        "simulate",
        *CLUSTER,
        "--trace",
        small / "t.parquet",
        *WORK,
        "--dims",
        "mixtral-8x7b",
        "--dispatch",
        "per_rank",
        "--network",
        "bound",
        "--json",
        check=True,
    )
    value = json.loads(done.stdout)
    assert "at the dimensions of mixtral-8x7b" in value["model"]
    assert any("dimensions of mixtral-8x7b" in label for label in value["labels"])
    assert any("--dispatch per_rank" in warning for warning in value["warnings"])


def test_version(run: Run) -> None:
    assert run("--version", check=True).stdout.startswith("moecast 0.")


AT_ONCE = (
    "from moecast.cli import main, render\n"
    "render.FIRST_LINE_S = 0.0\n"  # otherwise six seconds, which no test of a small trace takes
    "main()\n"
)


@pytest.mark.parametrize("command", ["simulate", "place", "validate", "report", "stats", "import", "synth"])
def test_progress_goes_through_a_pipe_from_the_start(small: Path, tmp_path: Path, command: str) -> None:
    trace, work = ("--trace", small / "t.parquet"), ("--tokens-per-rank", 4, "--steps", 1)
    arguments: dict[str, tuple[object, ...]] = {
        "simulate": ("simulate", *CLUSTER, *trace, *work, "--network", "bound", "--out", "p.json"),
        "place": ("place", *CLUSTER, *trace, *work, "--solver", "contiguous", "--out", "plan.json"),
        "validate": ("validate", *CLUSTER, *trace, *work),
        "report": ("report", "p.json"),
        "stats": ("trace", "stats", small / "t.parquet", "--quick"),
        "import": ("trace", "import", "t.npz", "--out", "t.parquet"),
        "synth": ("trace", "synth", "--like", small / "t.parquet", "--tokens", 50, "--out", "s.parquet"),
    }
    said = {
        "simulate": ("reading", "simulating"), "place": ("reading", "placing by contiguous"),
        "validate": ("reading", "validating"), "report": ("drawing",), "stats": ("counting",),
        "import": ("importing", "reading what was written"), "synth": ("fitting", "synthesising"),
    }  # fmt: skip
    np.savez(tmp_path / "t.npz", law=np.tile(np.arange(2), (20, 1, 1)))

    def run(which: str) -> str:
        with (tmp_path / "stderr").open("w") as stderr:
            line = [sys.executable, "-c", AT_ONCE, *map(str, arguments[which])]
            subprocess.run(line, stdout=subprocess.DEVNULL, stderr=stderr, cwd=tmp_path, timeout=300, check=True)
        return (tmp_path / "stderr").read_text()

    if command == "report":
        run("simulate")
    told = run(command)
    for what in said[command]:
        assert re.search(rf"^{what}: (at work|\d+%) after \d+ s$", told, re.MULTILINE), told
