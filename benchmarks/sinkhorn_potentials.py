"""What a router that learned under transport plans lacks at inference: its plans' potentials.

Takes the checkpoint that `moecast capture train --size policies --policy sinkhorn` leaves in the cache, and routes the
held-out prefill of the shipped traces four times: untrained, by the scores alone (as shipped), with potentials kept
from training batches added to the scores as a constant per expert, and by a plan of its own for each forward pass.

    python benchmarks/sinkhorn_potentials.py [--cache FOLDER] [--batches 8]
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from policies import write_rows
from torch import Tensor

from moecast.traces import TraceMeta, contiguous_ranks_LE, trace_stats
from moecast.traces.capture.own.model import LanguageModel
from moecast.traces.capture.own.options import sized
from moecast.traces.capture.own.policies.base import Pass, Routed, normalised
from moecast.traces.capture.own.policies.together import Sinkhorn, potential_E
from moecast.traces.capture.own.record import cut, prefill
from moecast.traces.capture.own.run import Material, Size, read_material
from moecast.traces.capture.own.score import score

RANKS = 8
SIZE = sized("policies", policy="sinkhorn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept(Sinkhorn):
    """Potentials at inference too: those that `kept` has of a layer, or else those of the pass's own plan."""

    name: ClassVar[str] = "sinkhorn"

    keep: bool = False
    kept: dict[int, Tensor] = dataclasses.field(default_factory=dict)

    def route(self, logits_TO: Tensor, bias_E: Tensor, *, choices: int, layer: int, view: Pass) -> Routed:
        """Take the best of the plan, or of what the kept potentials make of the scores."""
        del bias_E
        score_TE = logits_TO / self.regularisation
        seen_TE = score_TE if view.valid_T is None else score_TE[view.valid_T]
        potential = self.kept[layer] if layer in self.kept else potential_E(seen_TE, self.iterations)
        if self.keep:
            self.kept[layer] = potential
        weight_TK, expert_TK = (score_TE + potential).softmax(-1).topk(choices, dim=-1)
        return Routed(normalised(weight_TK), expert_TK)


def main() -> None:
    """Print a row for each way to route."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/moecast/capture"))
    parser.add_argument("--batches", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cache = arguments.cache.expanduser()
    material = read_material(size=SIZE, cache=cache)
    weights = torch.load(cache / "checkpoint-policies-sinkhorn.pt", weights_only=True)["model"]
    keeping = Kept(keep=True)
    last = SIZE.train.steps - 1
    rows = np.concatenate([SIZE.train.batch(material.tokens, last + turn) for turn in range(arguments.batches)])
    with torch.no_grad():
        model_of(keeping, weights)(torch.from_numpy(rows[:, :-1]).long())
    models = {
        "untrained": model_of(Sinkhorn(), None),
        "scores alone": model_of(Sinkhorn(), weights),
        "kept potentials": model_of(Kept(kept=keeping.kept), weights),
        "a plan for each pass": model_of(Kept(), weights),
    }
    write_rows(["routing", "loss", "Gini", "balance"], ([way, *row_of(m, material, SIZE)] for way, m in models.items()))


def model_of(policy: Sinkhorn, weights: dict[str, Tensor] | None) -> LanguageModel:
    """The model under another policy, for inference."""
    model = LanguageModel(dataclasses.replace(SIZE.train.model, policy=policy), seed=SIZE.train.seed).eval()
    if weights is not None:
        model.load_state_dict(weights)
    return model


def row_of(model: LanguageModel, material: Material, size: Size) -> list[str]:
    """Held-out loss, and how even the loads are."""
    config, tokens = model.config, material.tokens
    meta = TraceMeta(model="sinkhorn", layers=config.layers, experts=config.experts, choices=config.choices)
    _, texts = cut(tokens, size.capture)
    trace = prefill(model, texts, pass_tokens=size.capture.pass_tokens, meta=meta, topics=tokens.topics)
    stats = trace_stats(trace, rank_of_expert_LE=contiguous_ranks_LE(meta, RANKS))
    some = next(iter(tokens.training.values()))[:1000]
    found = score(model, tokens, read=some, row_tokens=size.train.row_tokens)
    return [f"{found.model:.2f}", f"{stats.gini:.3f}", f"{stats.balance_pooled:.3f}"]


if __name__ == "__main__":
    main()
