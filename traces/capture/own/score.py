"""Did the model learn? Its loss on held-out text beside what counting words would give.

A unigram, and a bigram backed off to it whose one parameter is chosen on the held-out text itself,
which favours it; both count the tokens that the model read, and the bigram also all training text,
most of which a short run never saw. Axes: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from moecast.traces.capture.own.model import LanguageModel
from moecast.traces.capture.own.tokenizer import START
from moecast.traces.capture.own.tokens import Ids, Tokens

_BACK_OFF = (3.0, 10.0, 30.0, 100.0, 300.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Mean held-out loss in nats per token, of the model and of the baselines.

    Topics weigh the same.

    `unigram` and `bigram` count what the model read, `bigram_of_all` all training text.
    """

    model: float
    unigram: float
    bigram: float
    bigram_of_all: float
    model_by_topic: dict[str, float]


def score(model: LanguageModel, tokens: Tokens, *, read: Ids, row_tokens: int, rows_per_topic: int = 16) -> Score:
    """Score the first rows of each topic's held-out stream; `read` is what the model was trained on, in order."""
    losses: dict[str, float] = {}
    baselines = []
    fitted = [_Counts(ids, model.config.vocabulary) for ids in (read, np.concatenate(list(tokens.training.values())))]
    for topic, stream in tokens.held_out.items():
        count = min(rows_per_topic, len(stream) // row_tokens) or 1
        rows = np.stack([stream[i * row_tokens : (i + 1) * row_tokens] for i in range(count)])
        rows = np.concatenate([np.full((count, 1), START, rows.dtype), rows], axis=1)
        losses[topic] = _loss(model, rows)
        baselines.append([counts.losses(rows) for counts in fitted])
    (unigram, *bigrams), (_, *bigrams_of_all) = np.mean(baselines, axis=0)
    return Score(
        model=float(np.mean(list(losses.values()))),
        unigram=float(unigram),
        bigram=float(min(bigrams)),
        bigram_of_all=float(min(bigrams_of_all)),
        model_by_topic=losses,
    )


@torch.no_grad()
def _loss(model: LanguageModel, rows: Ids) -> float:
    device = model.embedding.weight.device
    losses = [
        model.loss(torch.from_numpy(part).long().to(device), seed=(1, index))[0].item()
        for index, part in enumerate(np.array_split(rows, len(rows)))
    ]
    return float(np.mean(losses))


class _Counts:
    """How often each token, and each pair of tokens, stands in the training text."""

    def __init__(self, ids: Ids, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        single_V = np.bincount(ids, minlength=vocabulary)
        self.share_V = (single_V + 1) / (single_V + 1).sum()
        self.before_V = np.bincount(ids[:-1], minlength=vocabulary)
        self.pairs = np.bincount(ids[:-1].astype(np.int64) * vocabulary + ids[1:], minlength=vocabulary**2)

    def losses(self, rows: Ids) -> list[float]:
        """The unigram's loss, then the bigram's for each strength of backing off."""
        last, following = rows[:, :-1].astype(np.int64), rows[:, 1:]
        alone, pair = self.share_V[following], self.pairs[last * self.vocabulary + following]
        both = [(pair + weight * alone) / (self.before_V[last] + weight) for weight in _BACK_OFF]
        return [float(-np.log(share).mean()) for share in (alone, *both)]
