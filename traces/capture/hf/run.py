"""Running a loaded model over text with its routing captured: whole sequences, or prompts and what it generates."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from moecast.errors import MoecastError
from moecast.traces import check_target
from moecast.traces.capture.hf.batch import forward_signature
from moecast.traces.capture.hf.layers import find_layers
from moecast.traces.capture.hf.load import ModelSource
from moecast.traces.capture.hf.routing import SHARD_TOKENS, capture_routing
from moecast.traces.capture.hf.text import Text, cut_texts, find_texts

Advance = Callable[[int, int], None]  # tokens recorded, of


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How much text is run, in what batches, and how many tokens are generated after each sequence.

    Temperature 0 takes the likeliest token; otherwise tokens are drawn from the whole vocabulary.
    Without `shard_tokens`, a shard is a sixteenth of the run, so that a kill costs little of a
    short run too.
    """

    max_tokens: int = 65_536
    sequence_length: int = 1024
    batch_size: int = 4
    generate: int = 0
    temperature: float = 1.0
    weights: bool = False
    shard_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "sequence_length", "batch_size", "shard_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise MoecastError("at least 1", field=name, value=getattr(self, name))
        if self.generate < 0 or not self.temperature >= 0:
            rule = "not negative"
            raise MoecastError(rule, field="generate" if self.generate < 0 else "temperature")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run did: forward passes, tokens recorded, and the seconds they took without loading."""

    steps: int
    tokens: int
    seconds: float
    topics: tuple[str, ...] = field(default=())


def run(
    source: ModelSource, texts: Sequence[Path], out: Path, config: RunConfig, *, advance: Advance | None = None
) -> Outcome:
    """Load a model, run it on text, write its routing to `out`.

    Raises
    ------
    MoecastError
        `out` cannot be written, there is no text, the model cannot be loaded or has no MoE layers
        that can be heard.
    """
    check_target(out)
    files = find_texts(texts)
    source.check()
    tokenizer = source.load_tokenizer()
    sequences = cut_texts(
        files,
        tokenizer,
        max_tokens=config.max_tokens,
        sequence_length=config.sequence_length,
        seed=config.seed,
    )
    model = source.load_model()
    find_layers(model)
    _check_fits(model, sequences, config.generate)
    ends = _end_ids(model, tokenizer)
    padding = ends[0] if ends else 0  # any id will do where the mask hides it
    most = sum(len(text.ids) + config.generate for text in sequences)
    if config.shard_tokens is None:
        config = replace(config, shard_tokens=min(SHARD_TOKENS, max(1024, most // 16)))
    torch.manual_seed(config.seed)
    start = time.perf_counter()
    capture = capture_routing(
        model,
        out,
        weights=config.weights,
        shard_tokens=config.shard_tokens or SHARD_TOKENS,
        end_ids=ends,
        name=f"{source.name} (random weights)" if source.random_weights else None,
        source={"run": asdict(config)},
        notes=_notes(source, config),
    )
    with torch.inference_mode(), capture as routing, _told(model, lambda: routing.n_tokens, most, advance):
        for batch in _batches(sequences, config.batch_size):
            routing.topic = [text.topic for text in batch]
            try:
                _forward(model, batch, config, padding)
            except torch.OutOfMemoryError as error:
                rule = "does not fit the memory; make --batch-size or --sequence-length smaller"
                raise MoecastError(rule, field="--batch-size", value=config.batch_size) from error
    topics = tuple(sorted(topic for topic in files if topic is not None))
    return Outcome(steps=routing.steps, tokens=routing.n_tokens, seconds=time.perf_counter() - start, topics=topics)


def _forward(model: Any, batch: Sequence[Text], config: RunConfig, padding: int) -> None:
    """One batch: a forward pass padded on the right, or `generate`, which wants padding on the left."""
    longest = max(len(text.ids) for text in batch)
    ids_BQ = torch.full((len(batch), longest), padding)
    mask_BQ = torch.zeros_like(ids_BQ)
    for row, text in enumerate(batch):
        at = slice(longest - len(text.ids), None) if config.generate else slice(0, len(text.ids))
        ids_BQ[row, at] = torch.tensor(text.ids)
        mask_BQ[row, at] = 1
    if model.device.type != "meta":  # where all of it is offloaded, accelerate moves what comes in
        ids_BQ, mask_BQ = ids_BQ.to(model.device), mask_BQ.to(model.device)
    if not config.generate:
        # The logits of a long batch over a large vocabulary take more memory than all else, and
        # nobody reads them.
        last = {"logits_to_keep": 1} if "logits_to_keep" in forward_signature(model).parameters else {}
        model(input_ids=ids_BQ, attention_mask=mask_BQ, use_cache=False, **last)
        return
    sampling = {"do_sample": True, "temperature": config.temperature, "top_k": 0, "top_p": 1.0}
    model.generate(
        input_ids=ids_BQ,
        attention_mask=mask_BQ,
        max_new_tokens=config.generate + 1,  # the last one is sampled and not run
        pad_token_id=padding,
        **(sampling if config.temperature else {"do_sample": False}),
    )


@contextlib.contextmanager
def _told(model: Any, count: Callable[[], int], most: int, advance: Advance | None) -> Iterator[None]:
    """Tell after each forward pass how many tokens are recorded; rows that end early leave fewer than `most`."""
    hook = model.register_forward_hook(lambda *_: advance(count(), most)) if advance is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def _batches(sequences: Sequence[Text], size: int) -> Iterator[Sequence[Text]]:
    for start in range(0, len(sequences), size):
        yield sequences[start : start + size]


def _check_fits(model: Any, sequences: Sequence[Text], generate: int) -> None:
    """Fail where the model has no such token, or no such position."""
    vocabulary = model.get_input_embeddings().num_embeddings
    if (highest := max(max(text.ids) for text in sequences)) >= vocabulary:
        rule = f"the tokenizer makes ids that the model's vocabulary of {vocabulary} has not; is it the model's?"
        raise MoecastError(rule, field="--tokenizer", value=highest)
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and (longest := max(len(text.ids) for text in sequences) + generate) > most:
        rule = f"with what is generated longer than the {most} positions that the model knows"
        raise MoecastError(rule, field="--sequence-length", value=longest)


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that `generate` feeds to rows that have ended, the one it is told to pad with first."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return list(dict.fromkeys(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, *listed) if i is not None))


def _notes(source: ModelSource, config: RunConfig) -> str:
    what = "Sequences of the text named on the command line, topics mixed."
    if config.generate:
        what += f" Each is the prompt of {config.generate} decode tokens, fewer where the model ended the text."
    if source.random_weights:
        what = f"RANDOM WEIGHTS: only the model's shape is real, nothing here was learned. {what}"
    return what
