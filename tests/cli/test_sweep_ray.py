"""A sweep on a Ray cluster of two machines, started by the test: the same answers, and a lost machine loses nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moecast import __version__
from moecast.cli.sweep_ray import difference, hash_of

POINTS = ("--over", "plan.tp=1,3", "--over", "workload.tokens_per_rank=1:4:+1")


def sweep(folder: Path, *more: str, wait: bool = True) -> Any:
    command = [
        sys.executable, "-m", "moecast", "sweep", "--cluster", "dgx-h100", "--model", "config.json", "--routing",
        "uniform", "--phase", "decode", "--steps", "1", "--network", "bound", "--json", *POINTS, *more,
    ]  # fmt: skip
    if wait:
        return subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False)
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    shutil.copy(small / "config.json", tmp_path / "config.json")
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_machines_answer_as_one_process_does(cluster: Any, folder: Path) -> None:
    alone, together = sweep(folder, "--jobs", "1"), sweep(folder, "--ray", cluster.address, "--csv", "t.csv")
    assert together.returncode == 0, together.stderr
    assert json.loads(together.stdout) == json.loads(alone.stdout)
    assert len((folder / "t.csv").read_text().splitlines()) == 9
    assert not (folder / "t.csv.points").exists()

    running = sweep(folder, "--ray", cluster.address, "--over", "plan.dispatch=per_rank,per_choice", wait=False)
    lost = cluster.add_node(num_cpus=1)
    cluster.remove_node(lost, allow_graceful=False)
    out, said = running.communicate(timeout=120)
    assert running.returncode == 0, said
    assert len(json.loads(out)["points"]) == 16


def test_a_cluster_that_is_not_there_is_one_line(folder: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    found = sweep(folder, "--ray", "nowhere")
    assert found.returncode == 2
    assert "--ray = 'nowhere': local, auto or HOST:PORT" in found.stderr
    assert "Traceback" not in found.stderr
    assert "give one of --jobs and --ray" in sweep(folder, "--ray", "local", "--jobs", "2").stderr


def test_a_machine_with_another_file_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    same = {Path("config.json"): hash_of(folder / "config.json")}
    assert difference(folder, same, __version__) == ""
    assert "has moecast" in difference(folder, same, "0.0.1")
    assert "has no folder" in difference(folder / "gone", same, __version__)
    (folder / "other.json").write_text("{}")
    assert "is another file" in difference(folder, {Path("other.json"): "0" * 64}, __version__)
    assert "put the same file there" in difference(folder, {Path("gone.json"): "0" * 64}, __version__)
    shards = folder / "shards"
    shards.mkdir()
    (shards / "1").write_text("a")
    one = hash_of(shards)
    (shards / "1").rename(shards / "2")
    assert hash_of(shards) != one
