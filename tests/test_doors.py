"""Whoever hands arrays to a compiled loop has been asked what it does with arrays that do not fit."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

from tests.test_architecture import FOLDERS, ROOT, sources

DECORATORS = {"njit", "entry", "inner", "_inner"}

NETWORK = ("sim/test_hostile_arrays.py::test_flows", "sim/test_hostile_arrays.py::test_programs")
STATISTICS = ("statistics/test_hostile_arrays.py::test_samples", "statistics/test_hostile_arrays.py::test_traces")
SYNTHESIS = ("statistics/test_hostile_arrays.py::test_models", "statistics/test_hostile_arrays.py::test_donors")
PLACEMENT = ("placement/test_invariants.py::test_an_expert_chosen_twice_is_no_problem_to_search",)
CERTIFICATES = ("placement/test_fan_out_bound.py::test_choices_that_are_no_experts_are_refused",)

# Every file with compiled loops, and the tests that hand hostile arrays to the public functions and types before them.
DOORS: dict[str, tuple[str, ...]] = {
    "placement/anneal.py": PLACEMENT,
    "placement/holders.py": PLACEMENT,
    "placement/priced_layer.py": PLACEMENT,
    "placement/replica_moves.py": PLACEMENT,
    "placement/standing.py": PLACEMENT,
    "placement/certificates/columns.py": CERTIFICATES,
    "placement/certificates/pricing.py": CERTIFICATES,
    "placement/certificates/tokens.py": CERTIFICATES,
    "placement/layouts/training/pipeline_floor.py": ("layouts/test_pipeline_floor.py::test_tables_that_do_not_fit",),
    "placement/layouts/pooled_loads.py": ("layouts/test_serving.py::test_a_trace_of_another_model_is_refused",),
    "placement/swaps.py": PLACEMENT,
    "placement/windows.py": PLACEMENT,
    "sim/busy.py": NETWORK,
    "sim/collectives/template_loops.py": ("sim/test_hostile_arrays.py::test_counts_of_another_layout_are_not_taken",),
    "sim/context/keys.py": ("sim/test_context_parallel.py::test_keys_of_arrays_that_do_not_fit",),
    "sim/cost/slot_loop.py": ("cost/test_grouped.py::test_loads_that_are_no_whole_numbers_are_refused",),
    "sim/cost/tile_loop.py": ("cost/test_gemm.py::test_sizes_that_are_none_are_refused",),
    "sim/drawing.py": ("statistics/test_hostile_arrays.py::test_traces",),
    "sim/exposed.py": (*NETWORK, "sim/test_hostile_arrays.py::test_graphs"),
    "sim/filling.py": ("statistics/test_hostile_arrays.py::test_traces",),
    # Its arrays are a plan's and a step's, which traffic has checked.
    "sim/lplb.py": ("sim/test_hostile_arrays.py::test_traffic", "sim/test_hostile_arrays.py::test_steps"),
    "sim/made_routing.py": ("statistics/test_hostile_arrays.py::test_load_tables",),
    "sim/network/capped.py": (*NETWORK, "sim/test_hostile_arrays.py::test_an_open_network"),
    "sim/network/crowds.py": NETWORK,
    "sim/network/served.py": NETWORK,
    "sim/network/slots.py": NETWORK,
    "sim/network/events.py": (*NETWORK, "sim/test_hostile_arrays.py::test_an_open_network"),
    "sim/network/flows.py": (*NETWORK, "sim/test_hostile_arrays.py::test_deliveries"),
    "sim/network/links.py": NETWORK,
    "sim/network/maxmin.py": (*NETWORK, "sim/test_hostile_arrays.py::test_rates"),
    "sim/network/exchange_bounds.py": NETWORK,
    "sim/replica_rule.py": PLACEMENT,
    "sim/network/parts.py": (*NETWORK, "sim/test_hostile_arrays.py::test_an_open_network"),
    "sim/network/state.py": (*NETWORK, "sim/test_hostile_arrays.py::test_an_open_network"),
    "sim/network/windows.py": (*NETWORK, "sim/test_hostile_arrays.py::test_an_open_network"),
    "sim/replicas.py": (
        "sim/test_hostile_arrays.py::test_replica_tables",
        "sim/test_hostile_arrays.py::test_replica_tables_with_places_that_are_not_there",
    ),
    "sim/traffic_pass.py": (
        "sim/test_hostile_arrays.py::test_traffic",
        "sim/test_hostile_arrays.py::test_steps",
        "sim/test_hostile_arrays.py::test_serving_ranks",
    ),
    "sim/waiting.py": (*NETWORK, "sim/test_hostile_arrays.py::test_graphs"),
    "traces/checks.py": ("statistics/test_hostile_arrays.py::test_choices_of_another_type_are_not_looked_at",),
    "traces/statistics/_cache.py": STATISTICS,
    "traces/statistics/counting.py": (*STATISTICS, "statistics/test_hostile_arrays.py::test_ranks_of_experts"),
    "traces/statistics/_dependence.py": STATISTICS,
    "traces/statistics/_locality.py": STATISTICS,
    "traces/statistics/_parts.py": (*STATISTICS, "statistics/test_hostile_arrays.py::test_packing"),
    "traces/statistics/_rows.py": STATISTICS,
    "traces/synthesis/finer.py": SYNTHESIS,
    "traces/synthesis/recombine.py": SYNTHESIS,
    "traces/synthesis/sketch.py": SYNTHESIS,
}


def compiled_in(path: Path) -> list[str]:
    """Names of the functions of a file that numba compiles."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            made_by = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
            found += [node.name for d in made_by if isinstance(d, ast.Name) and d.id in DECORATORS]
    return found


def test_every_file_with_compiled_loops_has_its_doors_tested() -> None:
    files = {
        path.relative_to(ROOT).as_posix(): names
        for folder in FOLDERS
        for path in sources(folder)
        if (names := compiled_in(path))
    }
    assert files.keys() == DOORS.keys()


def test_the_tests_of_doors_exist() -> None:
    for place in {place for places in DOORS.values() for place in places}:
        file, name = place.split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), place


@pytest.mark.parametrize("package", ["topology", "traces", "sim", "sim.network", "placement"])
def test_no_package_exports_a_compiled_loop(package: str) -> None:
    """What a package exports is a door, never the loop behind it."""
    module = import_module(f"moecast.{package}")
    assert not [name for name in module.__all__ if isinstance(getattr(module, name), Dispatcher)]
