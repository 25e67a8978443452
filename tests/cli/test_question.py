"""Question files, `--set`, sweeps: a question in a file is the question that the options ask."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from moecast.cli import app
from moecast.cli.asked import Asked
from moecast.cli.own_sections import own_names
from moecast.cli.question_file import (
    SECTIONS,
    dotted,
    field_names,
    find_field,
    read_question_file,
    read_value,
    write_question_file,
)
from moecast.errors import MoecastError
from moecast.sim import kernels_on, simulate, simulate_question
from tests.cli.conftest import CONFIG
from tests.validate.cases import question as small_question

ROOT = Path(__file__).resolve().parents[2]
ASKED = ("--cluster", "dgx-h200", "--routing", "uniform", "--phase", "decode", "--steps", 1, "--network", "bound",
         "--no-gains", "--tokens-per-rank", 8)  # fmt: skip


def invoke(*arguments: object) -> str:
    """What a command prints; its errors are raised."""
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user works: a small model, and a question about it."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    return tmp_path


values = st.fixed_dictionaries(
    {},
    optional={
        "cluster": st.sampled_from(("dgx-h200", "c.yaml")),
        "nodes": st.integers(1, 64),
        "trace": st.sampled_from((Path("t.parquet"), Path("shipped"), Path("/data/t"))),
        "topics": st.sampled_from(("law,code", "law=3,code=1")),
        "tp": st.integers(1, 8),
        "plan": st.just(Path("p.json")),
        "dispatch": st.sampled_from(("nccl", "per_rank")),
        "tokens_per_rank": st.integers(1, 4096),
        "memory_fraction": st.floats(0.01, 1.0),
        "reuse": st.booleans(),
        "seed": st.integers(0, 2**40),
    },
)


@settings(max_examples=40, deadline=None)
@given(values)
def test_a_written_question_is_read_back(tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]) -> None:
    asked = Asked(**fields)
    file = tmp_path_factory.mktemp("q") / "q.yaml"
    write_question_file(asked, file)
    read, varied = read_question_file(file)
    assert Asked(**read) == asked
    assert varied == {}


def test_every_field_has_an_option_of_its_name() -> None:
    """The last part of a field's name is its option, but for the file of the plan, which is `--plan`."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    for command in ("simulate", "sweep"):
        known = {option for parameter in group.commands[command].params for option in parameter.opts}
        assert {f"--{name.replace('_', '-')}" for name in field_names()} <= known
    assert find_field("workload.steps") == find_field("steps") == "steps"
    assert dotted("plan") == "plan.file"
    assert {name for names in SECTIONS.values() for name in names} <= set(field_names())


def test_the_page_lists_every_field() -> None:
    page = (ROOT / "docs" / "question.md").read_text(encoding="utf-8")
    names = (*field_names(), *own_names())
    assert [name for name in names if f"`{dotted(name)}`" not in page] == []


def test_a_saved_question_answers_with_the_same_bytes(folder: Path) -> None:
    by_options = invoke("simulate", *ASKED, "--model", "config.json", "--tp", 2, "--json", "--save-question", "q.yaml")
    assert yaml.safe_load((folder / "q.yaml").read_text())["plan"] == {"tp": 2}
    assert invoke("simulate", "q.yaml", "--json") == by_options
    assert invoke("simulate", "q.yaml", "--json", "--out", "again.json") == by_options
    assert json.loads((folder / "again.json").read_text()) == json.loads(by_options)


def test_files_are_looked_for_beside_the_question(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke("simulate", *ASKED, "--model", "config.json", "--json", "--save-question", "q.yaml")
    monkeypatch.chdir(folder.parent)
    assert json.loads(invoke("simulate", folder / "q.yaml", "--json"))["step_time_s"] > 0


@pytest.mark.usefixtures("folder")
def test_set_and_options_change_the_file_and_the_result_says_so() -> None:
    invoke("simulate", *ASKED, "--model", "config.json", "--json", "--save-question", "q.yaml")
    changed = json.loads(invoke("simulate", "q.yaml", "--set", "workload.tokens_per_rank=16", "--seed", 3, "--json"))
    by_options = json.loads(invoke("simulate", *ASKED[:-1], 16, "--model", "config.json", "--seed", 3, "--json"))
    assert changed["step_time_s"] == by_options["step_time_s"]
    assert "override: workload.tokens_per_rank = 16, in q.yaml 8" in changed["warnings"]
    assert "override: seed = 3, in q.yaml 0" in changed["warnings"]
    # an option goes before a --set of the same field
    both = json.loads(invoke("simulate", "q.yaml", "--set", "seed=7", "--seed", 3, "--json"))
    assert both["seed"] == 3
    once = json.loads(invoke("simulate", "q.yaml", "--dispatch", "per_choice", "--json"))
    said = [line for line in once["warnings"] if line.startswith("override")]
    assert said == ["override: plan.dispatch = per_choice, in q.yaml not given"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "workload: {token_per_rank: 4}",
            r"q.yaml: workload.token_per_rank = 4: .* is workload.tokens_per_rank",
        ),
        ("cluser: dgx-h200", r"q.yaml: cluser = 'dgx-h200': a question has no such field; the nearest is cluster"),
        ("workload: {tokens_per_rank: four}", r"q.yaml: workload.tokens_per_rank = 'four': must be a whole number"),
        ("workload: {tokens_per_rank: -1}", r"q.yaml: workload.tokens_per_rank = -1: must be at least 0"),
        ("workload: {reuse: 1}", r"q.yaml: workload.reuse = 1: must be true or false"),
        ("memory_fraction: 1.5", r"q.yaml: memory_fraction = 1.5: must be at most 1"),
        ("nodes: true", r"q.yaml: nodes = True: must be a whole number"),
        ("workload: 7", r"q.yaml: workload = 7: is a section"),
        ("[1, 2]", r"q.yaml: a question file is a mapping of fields"),
        ("a: [", r"q.yaml: line 2: is not YAML"),
        ("vary: {plan.tp: 2}", r"q.yaml: vary.plan.tp = 2: lists its values"),
    ],
)
def test_a_file_that_is_no_question_is_refused_in_one_line(folder: Path, text: str, line: str) -> None:
    (folder / "q.yaml").write_text(f"{text}\n")
    with pytest.raises(MoecastError, match=line):
        read_question_file(Path("q.yaml"))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("command", "sets", "line"),
    [
        ("simulate", "steps", "--set = 'steps': takes field=value"),
        ("simulate", "workload.steps=two", "--set workload.steps = 'two': must be a whole number"),
        ("simulate", "workload.stepz=2", "nearest is workload.steps"),
        ("validate", "network=bound", "--set network = 'bound': this command does not use it"),
    ],
)
def test_a_set_that_cannot_be_is_refused(command: str, sets: str, line: str) -> None:
    with pytest.raises(MoecastError, match=line):
        invoke(command, "--set", sets)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(field_names()), st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none()))
def test_any_value_is_read_or_refused(name: str, value: object) -> None:
    try:
        read = read_value(name, value)
    except MoecastError:
        return
    assert read == value or str(read) == str(value) or name == "topics"


def test_a_sweep_answers_every_point_and_says_why_one_has_none(folder: Path) -> None:
    invoke("simulate", *ASKED, "--model", "config.json", "--json", "--save-question", "q.yaml")
    vary = ("--vary", "workload.tokens_per_rank=4,8", "--vary", "plan.tp=1,3")
    text = invoke("sweep", "q.yaml", *vary, "--json", "--csv", "t.csv", "--out", "t.json")
    assert text == invoke("sweep", "q.yaml", *vary, "--json")
    found = json.loads(text)
    assert found == json.loads((folder / "t.json").read_text())
    assert found["varied"] == {"workload.tokens_per_rank": [4, 8], "plan.tp": [1, 3]}
    assert [point["refused"] is None for point in found["points"]] == [True, False, True, False]
    alone = json.loads(invoke("simulate", "q.yaml", "--json", "--tp", 1))
    assert found["points"][2]["prediction"]["step_time_s"] == alone["step_time_s"]
    rows = list(csv.DictReader((folder / "t.csv").read_text().splitlines()))
    assert [row["plan.tp"] for row in rows] == ["1", "3", "1", "3"]
    assert float(rows[2]["step_time_s"]) == alone["step_time_s"]
    assert rows[1]["refused"] == "--tp = 3: does not divide the plan's 8 ranks"
    with pytest.raises(MoecastError, match="--vary: names what varies"):
        invoke("sweep", "q.yaml")


@pytest.mark.usefixtures("folder")
def test_a_sweep_says_what_it_is_of_and_that_its_routing_is_made() -> None:
    vary = ("--vary", "tp=1,3", "--vary", "speculate=0,2", "--csv", "t.csv")
    text = " ".join(invoke("sweep", *ASKED, "--model", "config.json", *vary).split())
    label = "uniform routing, 3×16×4: made, not recorded; layers and tokens independent"
    assert text.startswith(f"{label} model, decode, dgx-h200, bound")
    assert "tokens/s and latency are without it (1 of 2 points)" in text
    assert "override" not in text  # the columns say what varies
    rows = csv.DictReader(Path("t.csv").read_text(encoding="utf-8").splitlines())
    assert [row["labels"] for row in rows] == [label, label, "", ""]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--vary", "tp=1", "--vary", "plan.tp=2"), "--vary plan.tp: stands twice"),
        (("--vary", "tp=1,2", "--tp", 4), "--vary plan.tp: varies, and an option or --set gives it one value"),
        (("--vary", "tp=1,2", "--set", "tp=4"), "--vary plan.tp: varies, and an option or --set"),
        (("--vary", "training.batch=1,2"), r"--vary training.batch = \[1, 2\]: this command does not use it"),
    ],
)
def test_a_field_that_varies_has_no_other_value(more: tuple[object, ...], line: str) -> None:
    with pytest.raises(MoecastError, match=line):
        invoke("sweep", *ASKED, "--model", "config.json", *more)


@pytest.mark.usefixtures("folder")
def test_a_saved_sweep_is_asked_again_with_the_same_bytes() -> None:
    vary = ("--vary", "workload.tokens_per_rank=4,8", "--vary", "plan.tp=1,3")
    asked = [*ASKED[:-2], "--model", "config.json"]
    text = invoke("sweep", *asked, *vary, "--json", "--save-question", "q.yaml")
    assert invoke("sweep", "q.yaml", "--json") == text
    with pytest.raises(MoecastError, match=r"vary.plan.tp: varies, and an option"):
        invoke("sweep", "q.yaml", "--tp", 2)


def test_no_output_replaces_a_question(folder: Path) -> None:
    invoke("simulate", *ASKED, "--model", "config.json", "--json", "--save-question", "q.yaml")
    before = (folder / "q.yaml").read_text()
    for wrong in (
        ("simulate", "q.yaml", "--out", "q.yaml"),
        ("simulate", "q.yaml", "--save-question", "q.yaml"),
        ("simulate", "q.yaml", "--timeline", "new.json", "--save-question", "new.json"),
        ("sweep", "q.yaml", "--vary", "tp=1", "--csv", "q.yaml"),
        ("place", "q.yaml", "--out", "q.yaml"),
        ("validate", "q.yaml", "--out", "q.yaml"),
    ):
        with pytest.raises(MoecastError, match="which it would replace: name another"):
            invoke(*wrong)
    assert (folder / "q.yaml").read_text() == before
    assert not (folder / "new.json").exists()


def test_a_question_without_an_answer_is_not_saved(folder: Path) -> None:
    with pytest.raises(MoecastError, match="--tp = 3"):
        invoke("simulate", *ASKED, "--model", "config.json", "--tp", 3, "--save-question", "q.yaml")
    assert not (folder / "q.yaml").exists()


@pytest.mark.usefixtures("folder")
def test_a_sweep_makes_routing_once_for_points_that_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from moecast.cli import inputs

    read: list[int] = []
    wrapped = inputs.read_inputs

    def counted(asked: Asked, *, quiet: bool = False) -> inputs.Inputs:
        read.append(1)
        return wrapped(asked, quiet=quiet)

    invoke("simulate", *ASKED, "--model", "config.json", "--json", "--save-question", "q.yaml")
    monkeypatch.setattr(inputs, "read_inputs", counted)
    vary = ("--vary", "plan.dispatch=per_choice,per_rank,per_domain", "--vary", "workload.tokens_per_rank=4,8")
    text = invoke("sweep", "q.yaml", *vary)
    assert len(read) == 2
    assert "limited by" not in text  # nobody asked for gains
    assert "tokens/s" in text


@pytest.mark.usefixtures("folder")
def test_a_sweep_without_an_answer_fails() -> None:
    done = CliRunner().invoke(app, ["sweep", *map(str, ASKED), "--model", "config.json", "--vary", "tp=3,5"])
    assert done.exit_code == 2
    assert "does not divide" in done.output


def test_the_examples_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "docs" / "examples")
    assert json.loads(invoke("simulate", "question.yaml", "--no-gains", "--json"))["step_time_s"] > 0
    found = json.loads(invoke("sweep", "sweep.yaml", "--json"))
    assert [point["refused"] is None for point in found["points"]] == [True, True, False] * 2
    with pytest.raises(MoecastError, match=r"sweep.yaml: vary: lists values of fields: `moecast sweep` answers it"):
        invoke("simulate", "sweep.yaml")


def test_a_question_is_answered_as_its_parts_are_and_has_a_hash() -> None:
    asked = small_question(ranks=4)
    whole = asked.whole
    assert simulate_question(whole).to_json() == simulate(*asked.arguments).to_json()
    assert whole.hash() == small_question(ranks=4).whole.hash()
    others = (
        replace(whole, seed=1),
        replace(whole, network="bound"),
        replace(whole, memory_fraction=0.5),
        replace(whole, workload=replace(whole.workload, steps=1)),
        replace(whole, plan=whole.plan.with_(dispatch="nccl")),
        replace(whole, trace=small_question(ranks=4, seed=1).trace),
        replace(whole, model=replace(whole.model, vocab=101)),
    )
    assert len({whole.hash(), *(other.hash() for other in others)}) == 1 + len(others)
    assert replace(whole, notes=("said",)).hash() == whole.hash()


@pytest.mark.parametrize("changes", [{"memory_fraction": 0.0}, {"max_fluid_steps": 0}])
def test_a_question_checks_its_values(changes: dict[str, Any]) -> None:
    whole = small_question(ranks=2).whole
    with pytest.raises(MoecastError, match=next(iter(changes))):
        replace(whole, **changes)


def test_a_question_knows_its_engine() -> None:
    whole = small_question(ranks=2).whole
    with pytest.raises(MoecastError, match="engine = 'other': one of neutral, trtllm"):
        kernels_on(whole.cluster, engine="other")
    unknown = whole.cluster.with_hardware(replace(whole.cluster.hardware, engine="other"))
    with pytest.raises(MoecastError, match="engine = 'other': one of neutral, trtllm"):
        replace(whole, cluster=unknown)
