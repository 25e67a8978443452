"""The content hash of a trace: the same for every shard layout, compression, batch size and order of topic names.

Gate weights are left out, so that a trace read with and without them has one hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.traces.meta import TraceMeta


class ContentHasher:
    """The content hash of a trace that comes in batches."""

    def __init__(self, meta: TraceMeta) -> None:
        self._meta = meta
        self._hashers: dict[str, Any] = {}
        # numbered by first appearance, which no batch size changes
        self._topics: dict[str, int] = {}

    def add(self, columns: Mapping[str, npt.NDArray[Any]], topics: tuple[str, ...]) -> None:
        """Take the next tokens: a trace's `columns()` and the names of its topics."""
        for name, array in columns.items():
            if name == "weights_TLK":
                continue
            column = self._renumber(array, topics) if name == "topic_T" else array
            little = np.ascontiguousarray(column, dtype=column.dtype.newbyteorder("<"))
            self._hashers.setdefault(name, hashlib.sha256()).update(little.data)

    def hexdigest(self) -> str:
        """Hash of the tokens so far."""
        whole = hashlib.sha256(repr((self._meta.shape_LEK, list(self._topics))).encode())
        for name in sorted(self._hashers):
            whole.update(name.encode() + self._hashers[name].digest())
        return whole.hexdigest()

    def _renumber(self, topic_T: npt.NDArray[np.int16], topics: tuple[str, ...]) -> npt.NDArray[np.int16]:
        used, first = np.unique(topic_T, return_index=True)
        new_of_old = np.full(len(topics) + 1, -1, np.int16)  # last entry: index -1
        for old in used[np.argsort(first)]:
            if old >= 0:
                new_of_old[old] = self._topics.setdefault(topics[old], len(self._topics))
        return new_of_old[topic_T]
