"""What `nvidia-smi topo -m` prints, as users paste it.

Columns and rows are GPUs, then NICs (`NIC0` with a legend, or `mlx5_0`), then affinities. Terminal
codes, prompts, quotes and what stands before and after the table are passed over.
"""

from __future__ import annotations

import re
from pathlib import Path

from moecast.errors import MoecastError
from moecast.topology.host import LEVELS, MOST_GPUS, MOST_NICS, HostTopology

MOST_LINKS = 18
"""NVLinks of a GPU (Hopper, Blackwell): pairs that add up to more share theirs through NVSwitches."""

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[|>`\x00-\x08\x0b-\x1f]")
_GPU = re.compile(r"GPU[0-9]{1,3}")
_LEGEND = re.compile(r"(NIC[0-9]{1,3}):\s*([A-Za-z0-9_.-]{1,40})")
_OLD = {"SOC": "SYS"}  # as drivers before 2018 called it


def parse_topo_matrix(text: str, file: Path) -> HostTopology:
    """Read the table.

    Raises
    ------
    MoecastError
        There is no table, or a row is cut, stands twice or holds what is no connection; GPUs of the
        host that do not reach each other over NVLink, or over different numbers of them.
    """
    lines = [_CODES.sub(" ", line).split() for line in text.splitlines()]
    columns = next((_columns(words) for words in lines if _is_header(words)), [])
    gpus = [name for name in columns if _GPU.fullmatch(name)]
    nics = [name for name in columns if not _GPU.fullmatch(name)]
    if not gpus:
        raise MoecastError("no table of `nvidia-smi topo -m`: a line of columns starts with GPU0", file=file)
    if len(gpus) > MOST_GPUS or len(nics) > MOST_NICS or len(set(columns)) < len(columns):
        rule = f"a host has at most {MOST_GPUS} GPUs and {MOST_NICS} NICs, each with a column of its own"
        raise MoecastError(rule, file=file)
    rows, numa = _rows(lines, columns, gpus, file)
    switch, pair = _nvlinks(rows, gpus, file)
    legend = dict(_LEGEND.findall(_CODES.sub(" ", text)))
    return HostTopology(
        gpus=tuple(gpus),
        nics=tuple(legend.get(name, name) for name in nics),
        level_GN=tuple(tuple(_level(rows, gpu, nic, file) for nic in nics) for gpu in gpus),
        switch_links=switch,
        pair_links=pair,
        numa_G=tuple(numa[gpu] for gpu in gpus),
    )


def _is_header(words: list[str]) -> bool:
    """A line of names: its second word is no connection."""
    return bool(words) and bool(_GPU.fullmatch(words[0])) and (len(words) == 1 or not _is_connection(words[1]))


def _is_connection(word: str) -> bool:
    return word in (*LEVELS, *_OLD, "X", "N/A") or bool(re.fullmatch(r"NV[0-9]{1,2}", word))


def _columns(words: list[str]) -> list[str]:
    end = next((index for index, word in enumerate(words) if word.upper() in ("CPU", "NUMA")), len(words))
    return words[:end]


def _rows(
    lines: list[list[str]], columns: list[str], gpus: list[str], file: Path
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The connections of each GPU by column, and its NUMA node; the rows of NICs say nothing more."""
    rows: dict[str, dict[str, str]] = {}
    numa = dict.fromkeys(gpus, "")
    for words in lines:
        if not words or words[0] not in gpus or _is_header(words):
            continue
        name, cells = words[0], words[1 : 1 + len(columns)]
        if name in rows:
            raise MoecastError("stands twice: one host's table is read", file=file, field=name)
        wrong = next((cell for cell in cells if not _is_connection(cell)), None)
        if wrong is not None or len(cells) < len(columns):
            rule = f"a row has {len(columns)} connections, such as NV18, PIX, PXB, PHB, NODE or SYS"
            raise MoecastError(rule, file=file, field=name, value=wrong)
        rows[name] = dict(zip(columns, cells, strict=True))
        rest = words[1 + len(columns) :]
        numa[name] = rest[1] if len(rest) > 1 and rest[1].isdigit() else ""
    missing = [name for name in gpus if name not in rows]
    if missing:
        raise MoecastError("has a column and no row", file=file, field=missing[0])
    return rows, numa


def _nvlinks(rows: dict[str, dict[str, str]], gpus: list[str], file: Path) -> tuple[int, int]:
    """NVLinks of a GPU to NVSwitches, and of each directly cabled pair."""
    counts = set()
    for gpu in gpus:
        for peer in gpus:
            cell = rows[gpu][peer]
            if (cell == "X") != (gpu == peer) or cell != rows[peer][gpu]:
                rule = f"{cell} to {peer}, and {rows[peer][gpu]} back: X stands for itself, and both ways are the same"
                raise MoecastError(rule, file=file, field=gpu)
            if gpu != peer and not cell.startswith("NV"):
                rule = f"no NVLink to {peer} ({cell}): GPUs of a domain need one each way; list the links in YAML"
                raise MoecastError(rule, file=file, field=gpu)
            if gpu != peer:
                counts.add(int(cell[2:]))
    if not counts:
        return 0, 0
    if len(counts) > 1 or 0 in counts:
        said = " and ".join(f"NV{count}" for count in sorted(counts))
        raise MoecastError(f"{said} between GPUs: list links that are not alike in a YAML file", file=file)
    (count,) = counts
    return (count, 0) if count * (len(gpus) - 1) > MOST_LINKS else (0, count)


def _level(rows: dict[str, dict[str, str]], gpu: str, nic: str, file: Path) -> str:
    level = _OLD.get(rows[gpu][nic], rows[gpu][nic])
    if level not in LEVELS:
        rule = f"a NIC is at one of {', '.join(LEVELS)}"
        raise MoecastError(rule, file=file, field=f"{gpu} to {nic}", value=level)
    return level
