"""The Plan: what it takes, what it refuses, and that no file or caller gets past its checks."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import Plan, Workload, load_model, read_plan, simulate, simulate_step, step_program, write_plan
from moecast.topology import Cluster, load_cluster
from tests.sim.plan_cases import Question, contiguous, questions, random_step, small_trace, tiny_model

FULL = Plan.contiguous(layers=3, experts=16, choices=2, ep=8, groups=2).to_json()
TRACE = small_trace(tokens=200)


def read(tmp_path: Path, value: Any) -> Plan:
    path = tmp_path / "plan.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return read_plan(path)


@settings(deadline=None)
@given(question=questions())
def test_there_and_back(question: Question) -> None:
    plan = question.plan
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))).to_json() == plan.to_json()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"experts": 16.0}, "experts = 16.0: input should be a valid integer"),
        ({"experts": True}, "experts = True: input should be a valid integer"),
        ({"experts": 10**30}, "experts = 1000"),
        ({"choices": 17}, "choices = 17: must be a whole number of 1 to 16"),
        ({"choices": 0}, "choices = 0: input should be greater than or equal to 1"),
        ({"layers": 4}, "layers = 4: slots has 3"),
        ({"groups": 3}, "groups = 3: slots has 2"),
        ({"ep": 4}, "ep = 4: slots has 8"),
        ({"layer_ids": [0, 1]}, "layer_ids = 2 layers: slots has 3"),
        ({"layer_ids": [0, 2, 1]}, "layer_ids = (0, 2, 1): must rise"),
        ({"layer_ids": [0, 1, -2]}, "layer_ids[2] = -2: input should be greater"),
        ({"tp": 3}, "tp = 3: does not divide the plan's 16 ranks"),
        ({"dp": 5}, "dp = 5: tp x cp x pp x dp is 5, the ranks 16"),
        ({"pp": 2}, "gpu_of_rank = 16 entries: the layout has 32 ranks"),
        ({"etp": 2, "dp": 32}, "gpu_of_rank = 16 entries: the layout has 32 ranks"),
        ({"gpu_of_rank": [0] * 15}, "gpu_of_rank = 15 entries"),
        ({"gpu_of_rank": [*range(15), -1]}, "gpu_of_rank[15] = -1"),
        ({"gpu_of_rank": [*range(15), "0"]}, "gpu_of_rank[15] = '0': input should be a valid integer"),
        ({"slots_per_rank": [2] * 7}, "slots_per_rank = (2, 2, 2, 2, 2, 2, 2): 8 numbers of at most 2"),
        ({"slots_per_rank": [2] * 7 + [3]}, "8 numbers of at most 2"),
        ({"slots_per_rank": [2] * 7 + [1]}, "rank 7 holds more experts than its 1 slots"),
        ({"stage_of_layer": [0, 1]}, "stage_of_layer = (0, 1): for each hidden layer a stage of 0 to 0"),
        ({"pp": 2, "groups": 1, "stage_of_layer": [1, 0]}, "groups = 1: slots has 2"),
        ({"replica_rule": "luck"}, "replica_rule = 'luck': one of"),
        ({"replica_rule": "weights"}, "rule weights needs them"),
        ({"dispatch": "by pigeon"}, "dispatch = 'by pigeon': one of"),
        ({"dispatch_type": "fp3"}, "dispatch_type = 'fp3': one of"),
        ({"schedule": 1}, "schedule = 1: input should be a valid string"),
        ({"microbatches": 0}, "microbatches = 0"),
        ({"colour": "red"}, "colour: unknown field"),
        ({"made_by": {"solver": "x", "tool": 1}}, "made_by[tool]: unknown field"),
        ({"made_by": {"solver": "x", "bound_s": -1.0}}, "made_by[bound_s] = -1.0"),
        ({"slots": [[[[0, 1]]]]}, "groups = 2: slots has 1"),
        ({"slots": []}, "groups = 2: slots has 0"),
        ({"slots": 3}, "slots = 3: input should be a valid list"),
        ({"schema": 3}, "schema = 3: this moecast reads plan schemas 1 and 2"),
        ({"schema": True}, "schema = True"),
    ],
)
def test_a_wrong_field_is_one_line(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    with pytest.raises(MoecastError) as error:
        read(tmp_path, FULL | change)
    assert line in str(error.value)
    assert "plan.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("expert", [16, -2, 2**31, -(2**40), 65535, 1.5, "1", None, True, [1]])
def test_a_wrong_expert_is_named_before_any_cast(tmp_path: Path, expert: Any) -> None:
    value = copy.deepcopy(FULL)
    value["slots"][1][2][7][1] = expert
    with pytest.raises(MoecastError, match=r"slots\[(group )?1\]\[(layer )?2\]\[(rank )?7\]\[(slot )?1\]"):
        read(tmp_path, value)


@pytest.mark.parametrize(
    ("weights", "line"),
    [
        (0.5, "expert 0 at layer 0 of EP group 0 must sum to 1"),
        (1.5, "replica_weights[0][0][0][0] = 1.5: input should be less than or equal to 1"),
        ("many", "input should be a valid number"),
    ],
)
def test_weights_sum_to_one(tmp_path: Path, weights: Any, line: str) -> None:
    value = FULL | {"replica_weights": [[[[weights] * 2] * 8] * 3] * 2, "replica_rule": "weights"}
    with pytest.raises(MoecastError) as error:
        read(tmp_path, value)
    assert line in str(error.value)
    even = FULL | {"replica_weights": [[[[0.0] * 2] * 8] * 3] * 2, "replica_rule": "weights"}
    assert read(tmp_path, even).replica_rule == "weights"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"schema": 1, "slots": NaN}', "NaN is no JSON number"),
        ('{"slots": 1, "slots": 2}', "the key 'slots' stands twice in one object"),
        ('{"slots": ' + "9" * 6000 + "}", "not JSON that can be read"),
        ("[" * 100_000, "not JSON"),
        ("{", "not JSON (line 1"),
        ("[1]", "not a moecast plan"),
        ("", "not JSON"),
    ],
)
def test_text_that_is_no_plan_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(MoecastError) as error:
        read(tmp_path, text)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@st.composite
def mutations(draw: st.DrawFn) -> Any:
    """A plan file with up to three values, anywhere in it, exchanged for others, removed or doubled."""
    value = copy.deepcopy(FULL)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = value
        while isinstance(place, (dict, list)) and place:
            key = (
                draw(st.sampled_from(sorted(place)))
                if isinstance(place, dict)
                else draw(st.integers(0, len(place) - 1))
            )
            if draw(st.booleans()) or not isinstance(place[key], (dict, list)):
                other = draw(ODD)
                if draw(st.integers(0, 4)) == 0:
                    del place[key]
                else:
                    place[key] = other
                break
            place = place[key]
    return value


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([2**15, 2**16, 2**31, 2**63, 2**64, -(2**31), 1e308, 0.5, "", "nearest", "weights", "[/bold]"]),
    st.lists(st.integers(-2, 20), max_size=20),
    st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=2),
)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return load_cluster("dgx-h200", nodes=2)


@settings(deadline=None)  # the first that runs loads the compiled loops
@given(value=mutations())
def test_a_changed_file_is_refused_or_runs(value: Any, cluster: Cluster) -> None:
    """Nothing but MoecastError comes out of the reader, and what it takes does not crash a loop."""
    try:
        plan = Plan.from_json(value, file="plan.json")
    except MoecastError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most files are refused, and how is the question
        return
    step = random_step(np.random.default_rng(0), TRACE, ranks=plan.dp, tokens=50, phase="decode")
    with contextlib.suppress(MoecastError):
        simulate_step(cluster, tiny_model(TRACE), plan, TRACE, step, network="bound")


@pytest.mark.parametrize("changes", [{"cp": 2, "pp": 2}, {"cp": 2}])
def test_ranks_that_are_more_than_those_of_the_data_are_no_danger(cluster: Cluster, changes: dict[str, int]) -> None:
    """These reached compiled loops, which wrote beyond their arrays."""
    ranks = 8 * changes.get("pp", 1)
    plan = Plan.contiguous(layers=3, experts=16, choices=2, ep=8).with_(gpu_of_rank=tuple(range(ranks)), **changes)
    model = tiny_model(TRACE)
    step = random_step(np.random.default_rng(0), TRACE, ranks=16, tokens=50, phase="decode")
    workload = Workload(phase="decode", tokens_per_rank=2, steps=1, reuse=True)
    assert simulate(cluster, model, plan, TRACE, workload, network="bound").fits
    doors = (
        lambda: simulate_step(cluster, model, plan, TRACE, step, network="bound"),
        lambda: step_program(cluster, model, plan, TRACE, step),
    )
    for door in doors:
        with pytest.raises(ValueError, match=r"source_T = 15: there are 4"):
            door()


def test_schedules_of_one_stage_are_not_passed_over(cluster: Cluster) -> None:
    step = random_step(np.random.default_rng(0), TRACE, ranks=16, tokens=50, phase="decode")
    plan = contiguous(microbatches=2, schedule="two-batch")
    with pytest.raises(MoecastError, match="schedule = 'two-batch': stages of a pipeline go through"):
        step_program(cluster, tiny_model(TRACE), plan, TRACE, step)


def test_a_step_of_other_tokens_or_ranks_is_refused(cluster: Cluster) -> None:
    step = random_step(np.random.default_rng(0), TRACE, ranks=32, tokens=100, phase="decode")
    with pytest.raises(ValueError, match=r"source_T = \d+: there are 16"):
        step_program(cluster, tiny_model(TRACE), contiguous(), TRACE, step)


def test_contiguous_of_a_model_on_a_cluster(cluster: Cluster) -> None:
    model = load_model("deepseek-v2-lite")
    plan = Plan.contiguous(model, cluster)
    assert (plan.layers, plan.experts, plan.choices, plan.ep, plan.groups) == (26, 64, 6, 16, 1)
    assert plan.layer_ids == model.moe_layer_ids
    halves = Plan.contiguous(model, cluster, ep=8, slots_per_rank=9)
    assert (halves.groups, halves.ep, halves.max_slots) == (2, 8, 9)
    for options, line in (({"ep": 5}, "ep = 5: does not divide"), ({"slots_per_rank": 10**9}, "slots in all")):
        with pytest.raises(ValueError, match=line):
            Plan.contiguous(model, cluster, **options)
    with pytest.raises(ValueError, match="give a model"):
        Plan.contiguous(layers=3, experts=4, choices=1)


@pytest.mark.parametrize(("experts", "ranks", "fuller"), [(384, 72, 24), (160, 48, 16), (128, 24, 8)])
def test_the_first_ranks_hold_one_more_where_experts_do_not_divide(experts: int, ranks: int, fuller: int) -> None:
    """As TensorRT-LLM and vLLM split 384 experts on 72 GPUs and 160 on 48."""
    held = (Plan.contiguous(layers=1, experts=experts, choices=8, ep=ranks).slots_DLGP[0, 0] >= 0).sum(1)
    assert held.tolist() == [experts // ranks + 1] * fuller + [experts // ranks] * (ranks - fuller)


def test_a_plan_of_the_file_is_the_one_that_was_written(tmp_path: Path) -> None:
    plan = contiguous(tp=2, dispatch="per_rank", dispatch_type="fp8")
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json").to_json() == plan.to_json()
    with pytest.raises(ValueError, match="read-only"):
        plan.slots_DLGP[0] = 0


@pytest.mark.parametrize("ranks", [9, 16])
def test_a_step_of_more_ranks_than_a_stage_has_is_refused(cluster: Cluster, ranks: int) -> None:
    plan = Plan.contiguous(layers=3, experts=16, choices=2, ep=8).with_(gpu_of_rank=tuple(range(16)), pp=2)
    step = random_step(np.random.default_rng(0), TRACE, ranks=ranks, tokens=200, phase="decode")
    with pytest.raises(ValueError, match="source_T"):
        step_program(cluster, tiny_model(TRACE), plan, TRACE, step)
