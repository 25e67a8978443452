import json
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from moecast.cli import render
from moecast.cli.trace import app
from moecast.errors import MoecastError
from moecast.traces import TraceWriter, read_meta, read_trace, write_trace
from tests.traces.small import small


@pytest.fixture
def run():
    def invoke(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke


def archive(path, layers=26, experts=64, choices=6, tokens=50):
    rng = np.random.default_rng(0)
    ids = rng.permuted(np.tile(np.arange(experts, dtype=np.uint8), (tokens, layers, 1)), axis=2)[:, :, :choices]
    np.savez_compressed(path, law=ids, law_seqlen=np.array([tokens - 10, 10]), code=ids[::-1])
    return path


def test_import_with_a_preset_keeps_what_the_model_says(run, tmp_path):
    out = tmp_path / "t.parquet"
    npz = archive(tmp_path / "x.npz")
    value = json.loads(
        run("import", npz, "--out", out, "--model", "deepseek-v2-lite", "--note", "from a test", "--json")
    )
    assert value["tokens"] == 100
    assert value["sequences"] == 3
    assert [part["topic"] for part in value["parts"]] == ["law", "code"]
    assert value["content_hash"] == read_trace(out).content_hash()
    meta = read_meta(out)
    assert meta.layer_ids == tuple(range(1, 27))
    assert meta.config["n_routed_experts"] == 64
    assert meta.source["config"] == "moecast preset deepseek-v2-lite"
    assert "from a test" in meta.notes


def test_import_with_a_config_file(run, tmp_path):
    from moecast.sim.models import PRESETS

    config, out = tmp_path / "config.json", tmp_path / "shards"
    config.write_text(json.dumps(dict(PRESETS["deepseek-v2-lite"].config)))
    text = run(
        "import", archive(tmp_path / "x.npz"), "--out", out, "--config", config, "--model", "ours", "--phase", "decode"
    )
    assert "ours" in text
    assert read_meta(out).source["config"] == "config.json"
    assert read_trace(out, phase="decode").n_tokens == 100
    assert read_meta(out).layer_ids == tuple(range(1, 27))


def test_import_of_an_unknown_model_says_where_e_comes_from(run, tmp_path):
    text = run("import", archive(tmp_path / "x.npz", layers=2, experts=9, choices=2), "--out", tmp_path / "t.parquet")
    assert "E = 9 is taken from the highest expert id" in text
    told = run("import", tmp_path / "x.npz", "--out", tmp_path / "t.parquet", "--experts", 12, "--json")
    assert json.loads(told)["experts"] == 12


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--model", "mixtral-8x7b"], "experts|layers|expert = "),
        (["--phase", "warmup"], "--phase = 'warmup': one of train, prefill, decode"),
        (["--experts", "5"], "expert = 63: outside 0…4"),
        (["--config", "none.json"], "cannot be read"),
    ],
)
def test_bad_imports_fail_and_write_nothing(tmp_path, arguments, rule):
    npz = archive(tmp_path / "x.npz")
    with pytest.raises(MoecastError, match=rule):
        CliRunner().invoke(
            app, ["import", str(npz), "--out", str(tmp_path / "t.parquet"), *arguments], catch_exceptions=False
        )
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_info_prints_provenance_without_obeying_it(run, tmp_path):
    meta = small().meta
    trace = small(topics=("[bold]law\x1b[31m",), topic_T=np.zeros(4, np.int16))
    with TraceWriter(
        tmp_path / "shards",
        type(meta)(
            model="tiny",
            layers=2,
            experts=4,
            choices=2,
            layer_ids=(1, 3),
            source={"hardware": "CPU", "cores": 2},
        ),
        shard_tokens=2,
    ) as writer:
        writer.append(trace)
    text = run("info", tmp_path / "shards", "--hash")
    for fact in ("tiny", "2 · 4 · 2", "1, 3", "4 in 4 sequences", "CPU", "2 files", "[bold]law [31m"):
        assert fact in text
    assert trace.content_hash() in text.replace("\n", "")
    value = json.loads(run("info", tmp_path / "shards", "--json", "--hash"))
    assert value["content_hash"] == trace.content_hash()
    assert value["source"] == {"hardware": "CPU", "cores": 2}
    assert value["steps"] is None


def test_stats_as_json(run, tmp_path):
    write_trace(small(topics=("law",), topic_T=np.array([0, 0, -1, -1], np.int16)), tmp_path / "t.parquet")
    value = json.loads(run("stats", tmp_path / "t.parquet", "--ranks", 2, "--json"))
    assert {"tokens": 4, "layers": 2, "experts": 4, "choices": 2, "ranks": 2}.items() <= value.items()
    assert value["balance_pooled"] == 0.5
    assert value["fan_out"] == 1
    assert value["crossings"] == 0
    assert value["gini"] == 0.5
    assert [row["load"] for row in value["per_layer"]] == [[4, 4, 0, 0]] * 2
    assert value["per_layer"][1]["crossings"] is None
    part = json.loads(
        run("stats", tmp_path / "t.parquet", "--topics", "law", "--part", "planning", "--ranks", 2, "--json")
    )
    assert part["tokens"] == 1


def test_stats_as_a_table(run, tmp_path):
    write_trace(small(), tmp_path / "t.parquet")
    text = run("stats", tmp_path / "t.parquet", "--ranks", 4)
    assert "4 experts in order on 4 ranks" in text
    assert "2.000" in text  # two choices on two ranks


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--ranks", "5"], "--ranks = 5: the trace has 4 experts"),
        (["--part", "half"], "--part = 'half': one of all, planning, measuring"),
        (["--phase", "decode"], "the trace has prefill"),
        (["--topics", "law"], "the trace has no topics"),
    ],
)
def test_bad_questions_fail_in_one_line(tmp_path, arguments, rule):
    write_trace(small(), tmp_path / "t.parquet")
    with pytest.raises(MoecastError, match=rule):
        CliRunner().invoke(app, ["stats", str(tmp_path / "t.parquet"), *arguments], catch_exceptions=False)


def test_stats_of_a_published_trace(run, tmp_path, shared_traces):
    out = tmp_path / "t.parquet"
    run("import", shared_traces / "deepseek-v2-lite.npz", "--out", out, "--model", "deepseek-v2-lite")
    value = json.loads(run("stats", out, "--ranks", 8, "--part", "measuring", "--json"))
    assert value["tokens"] == 16641
    assert round(value["balance_pooled"], 3) == 0.795
    assert round(value["fan_out"], 3) == 4.552


def test_export(run, tmp_path):
    write_trace(small(), tmp_path / "t.parquet")
    assert (
        json.loads(run("export", tmp_path / "t.parquet", "--lists", "--out", tmp_path / "l.parquet", "--json"))[
            "tokens"
        ]
        == 4
    )
    assert "4 tokens" in run("export", tmp_path / "t.parquet", "--out", tmp_path / "l.parquet")


def test_names_that_promise_another_form_are_refused(tmp_path):
    write_trace(small(), tmp_path / "t.parquet")
    for command in ("export", "synth --tokens 10 --like"):
        arguments = [*command.split(), str(tmp_path / "t.parquet"), "--out", str(tmp_path / "t.csv")]
        with pytest.raises(MoecastError, match=r"csv"):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_where_stderr_is_no_terminal_progress_is_a_line_now_and_then(tmp_path, monkeypatch):
    write_trace(small(), tmp_path / "t.parquet")
    arguments = ["export", str(tmp_path / "t.parquet"), "--out", str(tmp_path / "l.parquet")]
    assert CliRunner().invoke(app, arguments).stderr == ""
    monkeypatch.setattr("moecast.cli.render.FIRST_LINE_S", 0.0)
    monkeypatch.setattr("moecast.cli.render.LINE_EVERY_S", 0.0)
    result = CliRunner().invoke(app, arguments)
    assert "exporting: 100% after 0 s" in result.stderr
    assert "exporting" not in result.stdout
    assert CliRunner().invoke(app, [*arguments, "--json"]).stderr == ""


def test_work_that_reports_nothing_still_prints_lines(monkeypatch, capsys):
    """As while loops are compiled: from the start, and now and then, but not after the end."""
    monkeypatch.setattr("moecast.cli.render.FIRST_LINE_S", 0.2)
    monkeypatch.setattr("moecast.cli.render.LINE_EVERY_S", 1.0)
    with render.progress("compiling", quiet=False):
        time.sleep(2.2)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 3
    assert all(line.startswith("compiling: at work after ") for line in lines)
    with render.progress("short", quiet=False) as advance:
        advance(1, 2)
    time.sleep(0.6)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["info", "import", "stats", "export"])
def test_help_has_an_example(run, command):
    assert f"Example: moecast trace {command}" in " ".join(run(command, "--help").split())
