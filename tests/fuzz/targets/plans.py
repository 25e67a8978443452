"""Plans: moecast's own, and the placement files of every engine."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.placement.engines import ENGINES, find_engine, read_any
from moecast.sim import REPLICA_RULES, Plan, read_plan, simulate
from tests.fuzz.mutations import mutate, mutate_bytes, often_mutated, to_json, write_json
from tests.fuzz.runner import Target
from tests.placement.test_engines import small_model
from tests.sim.plan_cases import plans as plans_of
from tests.validate.cases import question

_ASKED = question(ranks=4)
_MODEL = small_model(2, 6, 1)


@st.composite
def _own(draw: st.DrawFn) -> dict[str, Any]:
    """A plan of the asked trace, on up to 8 GPUs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    plan = draw(plans_of(_ASKED.trace, n_gpus=8, rng=rng, rules=REPLICA_RULES))
    return plan.to_json()


def _write_plan(value: Any, rng: Random, folder: Path) -> Path:
    path = folder / "plan.json"
    path.write_bytes(write_json(value, rng))
    return path


def _use(path: Path) -> object:
    """What is read goes through the compiled loops: of the whole simulator, or it is refused before."""
    plan = read_plan(path)
    assert Plan.from_json(plan.to_json(), file=path).to_json() == plan.to_json()
    plan.check_legal(file=path)
    if plan.ranks <= 8 and plan.experts == _ASKED.model.experts:
        with contextlib.suppress(MoecastError):
            simulate(_ASKED.cluster, _ASKED.model, plan, _ASKED.trace, _ASKED.workload, network="bound")
    return plan


@st.composite
def _engines(draw: st.DrawFn, engine: str) -> Any:
    """An engine's file of a plan of 2 layers x 6 experts on 2 ranks, as its value."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    spare = 0 if engine == "exflow" else 2  # its table has each expert once
    slots = rng.permuted(np.tile(np.r_[np.arange(6), rng.integers(0, 6, spare)], (2, 1)), axis=1).astype(np.int32)
    plan = Plan(
        experts=6, choices=1, layer_ids=_MODEL.moe_layer_ids, slots_DLGP=slots.reshape(1, 2, 2, -1), gpu_of_rank=(0, 1)
    )
    text = find_engine(engine).dump(plan, _MODEL)
    return text.splitlines() if engine == "exflow" else yaml.load(text, yaml.CSafeLoader)


def _write_engine(engine: str, value: Any, rng: Random, folder: Path) -> Path:
    path = folder / f"plan{find_engine(engine).suffix}"
    if path.suffix == ".json":
        path.write_bytes(write_json(value, rng))
        return path
    changed = often_mutated(value, rng, mutate)
    if path.suffix == ".csv":
        lines = changed if isinstance(changed, list) else [changed]
        path.write_bytes(often_mutated("\n".join(map(str, lines)).encode(), rng, mutate_bytes, part=0.2))
        return path
    text = to_json(changed, rng, nan=".nan") if rng.random() < 0.7 else _yaml(value)
    path.write_bytes(often_mutated(text, rng, mutate_bytes, part=0.2))
    return path


def _yaml(value: Any) -> bytes:
    return str(yaml.safe_dump(value)).encode()


def _read_engine(path: Path) -> object:
    return json.dumps(read_any(path, model=_MODEL, ep=2).to_json())


TARGETS = (
    Target(name="plan", documents=_own, write=_write_plan, read=_use),
    *(
        Target(
            name=f"plan-{engine.name}",
            documents=lambda name=engine.name: _engines(name),
            write=lambda value, rng, folder, name=engine.name: _write_engine(name, value, rng, folder),
            read=_read_engine,
            share=0.6,
        )
        for engine in ENGINES
    ),
)
