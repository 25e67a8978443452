"""An answer in few numbers, and the file of them.

    python -m tests.answers.answer

writes the file anew. Do that only for a change that is meant, and say in CHANGES.md what changed and why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moecast.sim import Prediction, simulate
from tests.answers.questions import N_QUESTIONS, Question, question

FILE = Path(__file__).parent / "answers.json"
NUMBERS = (
    "step_time_s", "layer_time_s", "overlapped_s", "balance", "balance_p5", "overload", "balance_pooled", "fan_out",
    "remote_fan_out", "fan_out_domains", "crossings", "dispatch_bytes",
)  # fmt: skip


def answer(asked: Question) -> dict[str, float]:
    """Ask `simulate`, and take the numbers of its answer; of arrays their sum, and one in which every place counts."""
    found = simulate(
        asked.cluster, asked.model, asked.plan, asked.trace, asked.workload, network=asked.network, gains=False
    )
    return numbers(found)


def numbers(found: Prediction) -> dict[str, float]:
    """The numbers of a Prediction, by name."""
    values = {name: float(getattr(found, name)) for name in NUMBERS}
    values |= {f"breakdown_s.{part}": seconds for part, seconds in found.breakdown_s.items()}
    assert found.memory_bytes is not None
    assert found.step_times_s is not None
    values["memory_bytes"] = found.memory_bytes["total"]
    for name in ("step_times_s", "traffic_SD", "rank_load_LG"):
        array = np.asarray(getattr(found, name), np.float64).ravel()
        values[f"{name}.sum"] = array.sum()
        values[f"{name}.by_place"] = (array * np.arange(1, len(array) + 1)).sum() / len(array)
    bytes_by_kind: dict[str, float] = {}
    for link in found.link_utilisation:
        bytes_by_kind[link["kind"]] = max(bytes_by_kind.get(link["kind"], 0.0), link["utilisation"])
    return values | {f"utilisation.{kind}": value for kind, value in bytes_by_kind.items()}


def read_answers() -> dict[int, dict[str, float]]:
    """The answers that were written down, by the number of the question."""
    held: Mapping[str, Any] = json.loads(FILE.read_text())
    names = held["names"]
    return {
        int(number): {names[i]: value for i, value in zip(which, values, strict=True)}
        for number, (which, values) in held["answers"].items()
    }


def write_answers(answers: Mapping[int, Mapping[str, float]]) -> None:
    """Write them down: the names once, each number with 12 digits."""
    names = sorted({name for found in answers.values() for name in found})
    place = {name: i for i, name in enumerate(names)}
    rows = []
    for number, found in sorted(answers.items()):
        which = [place[name] for name in sorted(found)]
        values = [float(f"{found[name]:.12g}") for name in sorted(found)]
        rows.append(f'"{number}": {json.dumps([which, values], separators=(",", ":"))}')
    FILE.write_text('{"names": ' + json.dumps(names) + ',\n"answers": {\n' + ",\n".join(rows) + "\n}}\n")


if __name__ == "__main__":
    write_answers({number: answer(question(number)) for number in range(N_QUESTIONS)})
