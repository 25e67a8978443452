"""The command line: options of all commands that train no model, with values that no one should give, and files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import typer
from hypothesis import strategies as st

from moecast.cli import app, main
from moecast.errors import MoecastError
from moecast.sim import Plan, write_plan
from moecast.traces import LoadTable, write_load_table, write_trace
from tests.cli.conftest import CONFIG, small_trace
from tests.fuzz.mutations import mutate, often_mutated, to_json
from tests.fuzz.runner import Target
from tests.fuzz.targets.traces import write_damaged

_ASKED = ["--cluster", "dgx-h200", "--trace", "t.parquet", "--tokens-per-rank", "8", "--steps", "1"]
# A good line of each command, of its quick kind.
_LINES: dict[str, list[list[str]]] = {
    "simulate": [
        [*_ASKED, "--network", "bound"],
        [*_ASKED, "--plan", "plan.json", "--phase", "decode", "--network", "bound"],
        [
            "--cluster",
            "dgx-h200",
            "--model",
            "config.json",
            "--routing",
            "zipf:1.1",
            "--steps",
            "1",
            "--network",
            "bound",
        ],
    ],
    "place": [
        [*_ASKED, "--solver", "eplb", "--out", "p.json"],
        ["--load", "load.json", "--ep", "2", "--out", "p.json"],
    ],
    "topology show": [["dgx-h200"], ["c.yaml", "--yaml", "again.yaml"]],
    "topology list": [[]],
    "model show": [["config.json"]],
    "model list": [[]],
    "collective": [["--cluster", "dgx-h200", "--bytes", "64KiB", "--network", "bound"]],
    "trace info": [["t.parquet"]],
    "trace stats": [["t.parquet", "--ranks", "4"]],
    "trace synth": [["--like", "t.parquet", "--tokens", "64", "--out", "made.parquet"]],
    "trace export": [["t.parquet", "--lists", "--out", "lists.parquet"]],
    "trace import": [["routes.npz", "--out", "imported.parquet"]],
}
# None that asks for honest work of hours: `trace synth --tokens 1000000000` is one.
_NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "3",
    "4",
    "7",
    str(10**10),
    str(10**12),
    str(2**63),
    "9" * 6000,
    "nan",
    "inf",
    "1e999",
    "0.5",
    "x",
)
_VALUES = (
    "-inf", "1e-9", "1.5", "", " ", "[/bold]", "[bold", "x" * 300, "\x1b[31m", "é", "\udcff", "a\nb", "none", "true",
    "shipped", "t.parquet", "c.yaml", "config.json", "plan.json", ".", "missing/x.json", "1 us", "64KiB", "law=nan,x=1",
    "=", ",", "a=b=c", "zipf:nan", "zipf:-1", "power-law:1e308", "leaf-spine:0", "leaf-spine:nan", "rail:1e300",
    "1x1x1",
    "99999999x99999999x9", "uniform", "trace", "fp4", "int4", "bound", "fluid", "prefill", "decode", "low", "eplb",
    "round_robin", "nccl", "1", "planning", "out.json",
)  # fmt: skip


def _commands() -> dict[str, Any]:
    """The commands of the application by their words."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*words, name))
        if not hasattr(command, "commands"):
            yield " ".join(words), command

    return dict(walk(typer.main.get_command(app), ()))


def _documents() -> st.SearchStrategy[list[str]]:
    known = _commands()
    return st.sampled_from(sorted(_LINES)).flatmap(
        lambda name: st.builds(
            lambda line, more: [*name.split(), *line, *(word for pair in more for word in pair)],
            st.sampled_from(_LINES[name]),
            st.lists(st.sampled_from(_options_of(known[name])).flatmap(_given), max_size=2),
        )
    )


def _options_of(command: Any) -> list[tuple[str, bool]]:
    """Each option of a command, and whether it takes a value."""
    return sorted(
        (option, not getattr(one, "is_flag", False))
        for one in command.params
        for option in one.opts
        if option.startswith("--")
    )


def _given(option: tuple[str, bool]) -> st.SearchStrategy[tuple[str, ...]]:
    name, takes_value = option
    if not takes_value:
        return st.just((name,))
    return (st.sampled_from(_NUMBERS) | st.sampled_from(_VALUES)).map(lambda value: (name, value))


def _write(words: list[str], rng: Random, folder: Path) -> Path:
    path = folder / "words.json"
    path.write_text(json.dumps({"words": words, "encoding": rng.choice(("utf-8", "ascii"))}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "c.yaml").write_text("preset: dgx-h200\nnodes: 2\nname: '[/bold]'\n")
    trace = small_trace(sequences=40, length=8)
    write_trace(trace, folder / "t.parquet")
    write_load_table(LoadTable.count(trace), folder / "load.json")
    np.savez(folder / "routes.npz", low=trace.experts_TLK[:8], high=trace.experts_TLK[8:16])
    write_plan(Plan.contiguous(layers=3, experts=16, choices=4, ep=8), folder / "plan.json")
    return path


def _read(path: Path) -> object:
    """Runs the command as `moecast` does: it ends with 0, or with 2 and one line (typer's own may be more)."""
    asked = json.loads(path.read_text())
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=asked["encoding"], errors="strict") for _ in range(2)]
    with (
        contextlib.chdir(path.parent),
        mock.patch.object(sys, "argv", ["moecast", *asked["words"]]),
        mock.patch.object(sys, "stdout", streams[0]),
        mock.patch.object(sys, "stderr", streams[1]),
        mock.patch.dict(os.environ, {"COLUMNS": "100"}),
        mock.patch.object(signal, "signal"),  # the command's own handlers would outlive it here
    ):
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code
    for stream in streams:
        stream.flush()
    said = streams[1].buffer.getvalue().decode(asked["encoding"])
    assert code in (0, None, 2), said[-500:]
    if code == 2:
        ours = [line for line in said.splitlines() if line.startswith("moecast: ")]
        assert len(said.splitlines()) == 1 if ours else "Usage:" in said, said[-500:]
        raise MoecastError(said.strip().splitlines()[-1][:300], file=path)
    return code


# Commands by the file that they read: that file is damaged, and whatever is still read goes through all of the command.
_READING: dict[str, list[str]] = {
    "plan.json": [
        "simulate --cluster dgx-h200 --trace t.parquet --tokens-per-rank 8 --steps 1 --plan plan.json --network bound",
        "trace stats t.parquet --plan plan.json",
    ],
    "config.json": [
        "model show config.json",
        "model show config.json --json",
        "simulate --cluster dgx-h200 --model config.json --routing uniform --steps 1 --network bound",
        "simulate --cluster dgx-h200 --model config.json --trace t.parquet --phase decode --steps 1 --network bound",
    ],
    "c.yaml": [
        "topology show c.yaml",
        "simulate --cluster c.yaml --trace t.parquet --tokens-per-rank 8 --steps 1 --network bound",
        "collective --cluster c.yaml --bytes 1MiB --network bound",
    ],
    "load.json": [
        "place --load load.json --ep 2 --out p.json",
        "place --load load.json --ep 4 --solver eplb --out p.json --json",
        "simulate --cluster dgx-h200 --model config.json --load load.json --steps 1 --network bound",
    ],
    "t.parquet": [
        "trace info t.parquet",
        "trace stats t.parquet --ranks 4",
        "trace export t.parquet --lists --out l.parquet",
        "place --cluster dgx-h200 --trace t.parquet --tokens-per-rank 8 --steps 1 --solver eplb --out p.json",
    ],
}


def _write_files(line: tuple[str, str], rng: Random, folder: Path) -> Path:
    name, words = line
    path = _write(words.split(), rng, folder)
    file = folder / name
    if name == "t.parquet":
        write_damaged(small_trace(sequences=40, length=8), rng, file)
    elif name == "c.yaml":
        value = {
            "preset": "dgx-h200",
            "nodes": 1,
            "domain": {"nic_bandwidth": "50 GB/s"},
            "hardware": {"memory": "9 GiB"},
        }
        file.write_bytes(to_json(often_mutated(value, rng, mutate, part=0.8), rng, nan=".nan"))
    else:
        file.write_bytes(to_json(often_mutated(json.loads(file.read_bytes()), rng, mutate, part=0.8), rng))
    return path


_FIRST = tuple([*name.split(), *line] for name, lines in _LINES.items() for line in lines)
_FILES = tuple((name, line) for name, lines in _READING.items() for line in lines)

TARGETS = (
    Target(name="command-line", documents=_documents, write=_write, read=_read, share=0.1, first=_FIRST),
    Target(
        name="command-files",
        documents=lambda: st.sampled_from(_FILES),
        write=_write_files,
        read=_read,
        share=0.15,
        first=_FILES,
    ),
)
