"""Token streams: what training reads, in which order, and what is held out for the capture.

A row is the opening token and the next `row_tokens` tokens of one topic. Each step reads the same
number of rows of every topic, so that a batch always mixes topics; which rows, follows from the
step and the seed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.capture.own.corpus import Corpus
from moecast.traces.capture.own.tokenizer import START, Tokenizer, train_tokenizer

Ids = npt.NDArray[np.int32]

_BYTES_LEARNED_PER_TOPIC = 1_500_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """The corpus as ids: one training stream and one held-out stream per topic."""

    training: Mapping[str, Ids]
    held_out: Mapping[str, Ids]

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics, in the corpus's order."""
        return tuple(self.training)

    @property
    def sha256(self) -> str:
        """Hash of all ids."""
        hasher = hashlib.sha256()
        for topic in self.topics:
            hasher.update(topic.encode() + self.training[topic].tobytes() + self.held_out[topic].tobytes())
        return hasher.hexdigest()

    def batch(self, step: int, *, row_tokens: int, rows_per_topic: int, seed: int) -> Ids:
        """Rows [topics · rows_per_topic, row_tokens + 1] of one training step, opening token first.

        Every row of a topic is read once before any is read again, in an order drawn anew each time
        round.

        Raises
        ------
        MoecastError
            A topic is shorter than one row.
        """
        rows = []
        for index, (topic, stream) in enumerate(self.training.items()):
            count = len(stream) // row_tokens
            if not count:
                rule = f"fewer than {row_tokens} training tokens; give more text or shorter rows"
                raise MoecastError(rule, field="topic", value=topic)
            for turn in range(step * rows_per_topic, (step + 1) * rows_per_topic):
                order = np.random.default_rng([seed, index, turn // count]).permutation(count)
                start = order[turn % count] * row_tokens
                rows.append(np.concatenate([[START], stream[start : start + row_tokens]]))
        return np.stack(rows).astype(np.int32)


def tokenize(corpus: Corpus, *, vocabulary: int, folder: Path) -> Tokens:
    """Train the tokenizer on training texts only, and encode everything.

    Raises
    ------
    MoecastError
        A topic has no training or no held-out document.
    """
    sample = [text for topic in corpus.topics for text in _some(corpus.texts(topic, held_out=False))]
    tokenizer = train_tokenizer(sample, vocabulary=vocabulary, file=folder / f"tokenizer-{vocabulary}.json")
    streams = {
        held_out: {t: _stream(tokenizer, corpus.texts(t, held_out=held_out), topic=t) for t in corpus.topics}
        for held_out in (False, True)
    }
    return Tokens(training=streams[False], held_out=streams[True])


def _some(texts: list[str]) -> list[str]:
    sizes = np.cumsum([len(text.encode()) for text in texts])
    return [text for text, size in zip(texts, sizes, strict=True) if size <= _BYTES_LEARNED_PER_TOPIC] or texts[:1]


def _stream(tokenizer: Tokenizer, texts: list[str], *, topic: str) -> Ids:
    if not texts:
        rule = "has no training or no held-out document; give more documents"
        raise MoecastError(rule, field="topic", value=topic)
    return np.concatenate([np.array([START, *ids], np.int32) for ids in tokenizer.encode_all(texts)])
