"""Run by test_replay.py under torchrun: a replay that is sound, then one in which a rank damages what it receives."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from moecast.errors import MoecastError
from moecast.validate import write_measurement
from moecast.validate.job import join_job
from moecast.validate.replay import Effort, exchange_rows, replay
from tests.validate.cases import question


def main(folder: Path) -> None:
    asked = question(ranks=4, groups=2)
    with join_job(4) as job:
        measured = replay(job, *asked.arguments, effort=Effort(repeats=2, warmup=1, experts=True))
        calls = 0

        def damage(received: torch.Tensor, *rest: object) -> None:
            nonlocal calls
            exchange_rows(received, *rest)  # type: ignore[arg-type]
            calls += 1
            if calls == 3 and len(received):  # dispatch and combine of layer 0, then the dispatch of layer 1
                received[-1, -1] += 1

        found = ""
        try:
            replay(job, *asked.arguments, effort=Effort(repeats=1, warmup=0), exchange=damage)
        except MoecastError as error:
            found = str(error)
        everyone = [""] * 4
        dist.all_gather_object(everyone, found)
        if job.rank == 0:
            write_measurement(measured, folder / "measurement.json")
            (folder / "damaged.json").write_text(json.dumps(everyone))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
