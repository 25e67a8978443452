"""Text to run a model on: files by topic, cut into sequences of token ids, in an order that mixes topics."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from moecast.errors import MoecastError
from moecast.files import read_text

# Characters tokenised at a time, so that a long file costs no more than what is wanted of it.
_BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """One sequence to run: its topic, None where not known, and its token ids."""

    topic: str | None
    ids: tuple[int, ...]


def find_texts(paths: Sequence[Path]) -> dict[str | None, list[Path]]:
    """Files by topic: `<topic>/<file>` in a folder, at any depth.

    Files named alone or lying flat have none.

    Raises
    ------
    MoecastError
        A path is missing, or there is no file in it.
    """
    found: dict[str | None, list[Path]] = {}
    for path in paths:
        if path.is_file():
            found.setdefault(None, []).append(path)
            continue
        if not path.is_dir():
            raise MoecastError("no such file or folder", file=path, field="--text")
        files = [f for f in sorted(path.rglob("*")) if f.is_file() and not _hidden(f.relative_to(path))]
        if not files:
            rule = "holds no text; give a file, or a folder of <topic>/<file>"
            raise MoecastError(rule, file=path, field="--text")
        for file in files:
            inside = file.relative_to(path).parts
            found.setdefault(inside[0] if len(inside) > 1 else None, []).append(file)
    return found


def cut_texts(
    texts: dict[str | None, list[Path]], tokenizer: Any, *, max_tokens: int, sequence_length: int, seed: int
) -> list[Text]:
    """Sequences of at most `sequence_length` tokens, an equal share of `max_tokens` for every topic.

    A topic's files take turns, a sequence each, in an order drawn by `seed`: no file stands for its
    topic alone.

    Raises
    ------
    MoecastError
        No token comes out of the text, or a file cannot be read.
    """
    share = max(1, max_tokens // len(texts))
    rng = np.random.default_rng(seed)
    chosen: list[Text] = []
    for topic, files in texts.items():
        drawn = [files[i] for i in rng.permutation(len(files))]
        chosen += _topic(topic, drawn, tokenizer, share, sequence_length)
    if not chosen:
        raise MoecastError("no token comes out of it", field="--text")
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _topic(
    topic: str | None, files: Sequence[Path], tokenizer: Any, share: int, sequence_length: int
) -> Iterator[Text]:
    """A topic's sequences, up to its share of tokens, a file at a time by turns."""
    first = _first_ids(tokenizer)
    if sequence_length <= len(first):
        raise MoecastError("no room for text", field="--sequence-length", value=sequence_length)
    left, waiting = share, deque(_ids(file, tokenizer) for file in files)
    while waiting and left > 0:
        ids = waiting.popleft()
        text = tuple(islice(ids, min(sequence_length, left) - len(first)))
        if text:
            left -= len(first) + len(text)
            waiting.append(ids)
            yield Text(topic=topic, ids=first + text)


def _ids(file: Path, tokenizer: Any) -> Iterator[int]:
    """Token ids of a file, which is read when the first one is wanted."""
    text = read_text(file)
    for start in range(0, len(text), _BLOCK):
        yield from tokenizer(text[start : start + _BLOCK], add_special_tokens=False, verbose=False)["input_ids"]


def _first_ids(tokenizer: Any) -> tuple[int, ...]:
    """The opening token, where the tokenizer sets one before a text."""
    opening = tokenizer.bos_token_id
    return (opening,) if opening is not None and tokenizer("a")["input_ids"][:1] == [opening] else ()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
