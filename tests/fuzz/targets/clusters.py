"""Clusters: YAML files, `nvidia-smi topo -m`, NCCL's XML."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import yaml
from hypothesis import strategies as st

from moecast.topology import Cluster, load_cluster, write_cluster
from moecast.topology.yaml_out import to_yaml
from tests.fuzz.mutations import mutate, mutate_bytes, often_mutated, to_json, write_text
from tests.fuzz.runner import Target
from tests.topology.clusters import clusters
from tests.topology.test_host import FOUR, near, nics_of, table, xml
from tests.topology.test_yaml import EXAMPLES, WHOLE

_SHORT = (
    "preset: dgx-h200\nnodes: 4\nfabric: leaf-spine:2\n",
    "preset: dgx-h200\nnodes: 2\ndomain: {nic_bandwidth: 400 Gb/s}\nhardware: {memory: 80 GiB}\n",
    "preset: gb200-nvl72\nfabric: {shape: rail, oversubscription: 1.5, nodes_per_leaf: 2, routing: ecmp}\nnodes: 2\n",
    "preset: hgx-h100-roce\nhardware: {efficiency: {gemm: 0.5}, peak: {bf16: 900 TFLOP/s}, sources: {sms: measured}}\n",
)


def _yaml_documents() -> st.SearchStrategy[str]:
    examples = [file.read_text() for file in sorted(EXAMPLES.glob("*.yaml"))]
    listed = [to_yaml(load_cluster("dgx-h200", nodes=1), listing=True, tables=True)]
    made = st.builds(to_yaml, clusters(max_domains=2), listing=st.booleans(), tables=st.booleans())
    return st.sampled_from([*_SHORT, *examples, WHOLE]) | st.sampled_from([*_SHORT, *listed]) | made


def _write_yaml(text: str, rng: Random, folder: Path) -> Path:
    path = folder / "cluster.yaml"
    if rng.random() < 0.6:
        value = often_mutated(yaml.load(text, yaml.CSafeLoader), rng, mutate, part=0.8)
        path.write_bytes(often_mutated(to_json(value, rng, nan=".nan"), rng, mutate_bytes, part=0.1))
    else:
        path.write_bytes(write_text(text, rng))
    return path


def _read(path: Path) -> object:
    """What is read can be written, and comes back."""
    cluster = load_cluster(path)
    _comes_back(cluster, path)
    return cluster


def _comes_back(cluster: Cluster, path: Path) -> None:
    again = path.parent / "again.yaml"
    write_cluster(cluster, again, tables=True)
    assert load_cluster(again) == cluster


def _write_host(text: str, rng: Random, folder: Path) -> Path:
    path = folder / "topo.txt"
    path.write_bytes(write_text(text, rng))
    return path


_EIGHT = table([near({gpu: "PIX"}, 8) for gpu in range(8)], nics_of(8))
_HOSTS: tuple[tuple[str, list[Any]], ...] = (
    ("topo-matrix", [FOUR, _EIGHT, table([near({gpu: "PHB"}, 4, "NODE") for gpu in range(4)], nics_of(4))]),
    ("nccl-xml", [xml(), xml(nics=4), xml(gpus=4, nics=2)]),
)

TARGETS = (
    Target(name="cluster-yaml", documents=_yaml_documents, write=_write_yaml, read=_read, share=0.6),
    *(
        Target(name=name, documents=lambda texts=texts: st.sampled_from(texts), write=_write_host, read=_read)
        for name, texts in _HOSTS
    ),
)
