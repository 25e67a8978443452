"""Which engines' files exist, and how a file is recognised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from moecast.errors import MoecastError
from moecast.files import parse_json, read_text, write_text
from moecast.placement.engines.eplb_tensors import EplbTensors
from moecast.placement.engines.exflow_csv import ExflowTable
from moecast.placement.engines.sglang import SGLang
from moecast.placement.engines.trtllm import TensorRTLLM
from moecast.placement.engines.vllm import VLLM
from moecast.placement.engines.vllm_ascend import VLLMAscend
from moecast.sim.plan import Plan

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import ReplicaRule

OWN_FIELD = "slots"  # of moecast's own plans
MAX_FILE_BYTES = 64 << 20  # 60 layers × 2304 slots are 1 MB


class EngineFormat(Protocol):
    """An engine's placement file.

    A file holds the experts' slots and nothing of the layout: ranks and dispatch are the engine's
    own, and so is how it picks among replicas.
    """

    @property
    def name(self) -> str:
        """What ``--export`` calls it."""

    @property
    def suffix(self) -> str:
        """What is put behind the plan's name."""

    @property
    def replica_rule(self) -> ReplicaRule:
        """How the engine picks among replicas, as far as a rule of moecast's says it."""

    @property
    def field(self) -> str:
        """The field that makes a file this engine's; empty where files are lists."""

    def recognises(self, value: Any) -> bool:
        """Whether a parsed file looks like this engine's."""

    def dump(self, plan: Plan, model: ModelShape) -> str:
        """The file's text; MoecastError where the engine cannot hold the plan."""

    def load(self, value: Any, model: ModelShape, ep: int, *, file: Path) -> Plan:
        """The plan of a parsed file for EP groups of `ep` ranks; MoecastError where it is none for this model."""

    def launch(self, file: str, plan: Plan) -> str:
        """The line that starts the engine with the file; MODEL stands for the checkpoint. None was run."""


ENGINES: tuple[EngineFormat, ...] = (
    SGLang(),
    TensorRTLLM(),
    VLLM(),
    VLLMAscend(),
    EplbTensors(),
    ExflowTable(),
)


def find_engine(name: str) -> EngineFormat:
    """Find an engine's format by name.

    Raises
    ------
    MoecastError
        There is none.
    """
    for engine in ENGINES:
        if engine.name == name:
            return engine
    rule = f"one of {', '.join(engine.name for engine in ENGINES)}"
    raise MoecastError(rule, field="--export", value=name)


def engine_path(plan: str | Path, engine: str) -> Path:
    """Where an engine's file lies beside a plan: ``plan.json`` gives ``plan.sglang.json``."""
    return Path(plan).with_suffix(find_engine(engine).suffix)


def write_engine_file(plan: Plan, path: str | Path, *, engine: str, model: ModelShape) -> None:
    """Write a plan in an engine's own format, whole or not at all.

    Raises
    ------
    MoecastError
        The engine cannot hold the plan: empty slots, EP groups that differ, or ranks with different
        numbers of slots.
    """
    write_text(path, find_engine(engine).dump(plan, model))


def read_any(path: str | Path, *, model: ModelShape, ep: int) -> Plan:
    """Read a plan in moecast's own format or in an engine's.

    Parameters
    ----------
    model
        Whose layers and experts an engine's file is of; moecast's own plans know theirs.
    ep
        Ranks that an engine's slots are spread over.

    Raises
    ------
    MoecastError
        The file is none of these or two of them at once, or not a legal plan.
    """
    path = Path(path)
    value = _parse(path)
    formats = {engine.field: engine.name for engine in ENGINES if engine.recognises(value)}
    if isinstance(value, Mapping) and OWN_FIELD in value:
        formats[OWN_FIELD] = "moecast"
    if len(formats) > 1:
        held = " and ".join(f"{field} ({name})" for field, name in formats.items())
        raise MoecastError(f"holds {held}, the placements of two formats: leave one", file=path)
    for engine in ENGINES:
        if engine.recognises(value):
            plan = engine.load(value, model, ep, file=path)
            plan.check_legal(file=path)
            return plan
    return Plan.from_json(value, file=path)


def _parse(path: Path) -> Any:
    import yaml

    from moecast.yaml_text import load_yaml

    text = read_text(path, limit_bytes=MAX_FILE_BYTES)
    if path.suffix == ".csv":
        header, *lines = text.splitlines() or [""]
        return {header.strip(): [line for line in lines if line.strip()]}
    try:
        value = load_yaml(text) if path.suffix in (".yaml", ".yml") else parse_json(text, file=path)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        rule = "neither JSON nor, by its name, YAML that can be read"
        raise MoecastError(rule, file=path) from error
    if not isinstance(value, Mapping | list):
        raise MoecastError("not a plan: one object is expected", file=path)
    return value
