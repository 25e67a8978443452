"""Models that are wrapped or sharded for several processes; one process is enough to see that they are heard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from moecast.traces import read_trace
from moecast.traces.capture.hf import capture_routing
from tests.hf.families import FAMILIES, Family

IDS_BQ = torch.randint(3, 64, (2, 6), generator=torch.Generator().manual_seed(5))
KINDS = [family for family in FAMILIES if family.name in ("mixtral", "llama-4")]  # heard at the experts, at the router


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def _ddp(model: transformers.PreTrainedModel) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def _fsdp(model: transformers.PreTrainedModel) -> nn.Module:
    """Every module whose class capture looks at is a unit of its own."""
    mesh = init_device_mesh("cpu", (1,))
    for module in reversed(list(model.modules())):
        if type(module).__name__.endswith(("Experts", "Router", "DecoderLayer")):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@pytest.mark.parametrize("family", KINDS, ids=lambda family: family.name)
@pytest.mark.parametrize("wrap", [_ddp, _fsdp])
def test_wrapped_models_route_as_they_do_alone(wrap: Callable[..., nn.Module], family: Family, tmp_path: Path) -> None:
    alone = family.build()
    with capture_routing(alone, tmp_path / "plain"), torch.no_grad():
        alone(IDS_BQ)
    model = wrap(family.build())
    with capture_routing(model, tmp_path / "t", source_rank=0), torch.no_grad():
        model(IDS_BQ)
    trace = read_trace(tmp_path / "t")
    assert np.array_equal(trace.experts_TLK, read_trace(tmp_path / "plain").experts_TLK)
    assert trace.meta.layer_ids == family.layer_ids
