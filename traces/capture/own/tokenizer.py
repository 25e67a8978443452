"""Text to token ids: byte-pair encoding trained on the training texts, or plain bytes for tiny models.

Id 0 opens every document. A vocabulary of 257 is the bytes themselves and needs no library; a
larger one is byte-level BPE made by Hugging Face's `tokenizers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from moecast.errors import MoecastError

START = 0
BYTES = 257


class Tokenizer(Protocol):
    """Turns texts into lists of token ids, without the document's opening token."""

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids per text."""


class ByteTokenizer:
    """Each UTF-8 byte is a token: its value plus one."""

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids per text."""
        return [[byte + 1 for byte in text.encode()] for text in texts]


class BpeTokenizer:
    """Byte-pair encoding read from the `tokenizers` library's JSON file."""

    def __init__(self, file: Path) -> None:
        self.tokenizer = _library().Tokenizer.from_file(str(file))

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids per text."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]


def train_tokenizer(texts: Iterable[str], *, vocabulary: int, file: Path) -> Tokenizer:
    """Learn a vocabulary of at most `vocabulary` ids from `texts` and keep it in `file`.

    Bytes need no learning.

    Raises
    ------
    MoecastError
        The vocabulary is smaller than the bytes, or the library is not installed.
    """
    if vocabulary < BYTES:
        rule = f"at least {BYTES}: the bytes and the document opener"
        raise MoecastError(rule, field="vocabulary", value=vocabulary)
    if vocabulary == BYTES:
        return ByteTokenizer()
    if not file.exists():
        library = _library()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<start>"],
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=24,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.save(str(file))
    return BpeTokenizer(file)


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise MoecastError("a vocabulary beyond bytes needs the tokenizers package; pip install tokenizers") from error
    return tokenizers
