"""The whole way from text to trace: corpus, tokenizer, training, scores, capture, and the file's own account."""

from __future__ import annotations

import dataclasses
import datetime as dt
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from moecast.errors import MoecastError
from moecast.traces import RoutingTrace, TraceMeta, check_target, write_trace
from moecast.traces.capture.own.corpus import Corpus, folder_corpus, packaged_corpus
from moecast.traces.capture.own.evidence import Evidence, evidence
from moecast.traces.capture.own.model import LanguageModel, ModelConfig
from moecast.traces.capture.own.record import CaptureConfig, capture
from moecast.traces.capture.own.score import Score, score
from moecast.traces.capture.own.tokens import Tokens, tokenize
from moecast.traces.capture.own.train import TrainConfig, Trained, train

_COMPRESSION_LEVEL = 22


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A model, how long it learns and how much of it is recorded."""

    name: str
    train: TrainConfig = field(default_factory=TrainConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)


SIZES: Mapping[str, Size] = {
    # What the shipped trace was made with; the steps are those that its time limit allowed on a
    # busy machine.
    "cpu": Size(name="cpu", train=TrainConfig(steps=841)),
    # The same shape, wider and longer, for one data-centre GPU.
    "gpu": Size(
        name="gpu",
        train=TrainConfig(
            model=ModelConfig(
                vocabulary=8192, hidden=768, layers=12, heads=12, expert_width=256, dense_width=2048, max_positions=2048
            ),
            steps=6000,
            row_tokens=1024,
            rows_per_topic=4,
            learning_rate=1e-3,
            warm_up=200,
        ),
    ),
    # What the traces of the router policies were made with: minutes per policy on one core.
    "policies": Size(
        name="policies",
        train=TrainConfig(
            model=ModelConfig(
                hidden=128,
                layers=4,
                heads=2,
                experts=32,
                choices=4,
                shared_experts=1,
                dense_width=384,
                max_positions=512,
            ),
            steps=480,
            learning_rate=3e-3,
        ),
        capture=CaptureConfig(prefill_tokens=42_000, decode_sequences=576, decode_batch=192),
    ),
    # Seconds, on a handful of small files: to see that everything works.
    "tiny": Size(
        name="tiny",
        train=TrainConfig(
            model=ModelConfig(
                vocabulary=257, hidden=16, layers=2, heads=2, experts=8, choices=2, expert_width=8, dense_width=32
            ),
            steps=30,
            row_tokens=32,
            warm_up=5,
            learning_rate=1e-2,
            checkpoint_every=10,
        ),
        capture=CaptureConfig(
            prefill_tokens=400,
            prefill_length=(8, 16, 32),
            pass_tokens=128,
            decode_sequences=8,
            decode_tokens=4,
            decode_batch=4,
            prompt_length=(4, 8, 16),
        ),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run made and found out; `untrained` is the evidence for the same text before any training."""

    trace: RoutingTrace
    trained: Trained
    score: Score
    prefill: tuple[Evidence, ...] = ()
    decode: tuple[Evidence, ...] = ()
    untrained: tuple[Evidence, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What models read: the documents, and the documents as token ids."""

    corpus: Corpus
    tokens: Tokens


def read_material(*, size: Size, cache: Path, text: Path | None = None) -> Material:
    """Read packaged text (or the folder `text`) and encode it.

    `cache` keeps packages and tokenizer.

    Raises
    ------
    MoecastError
        The text cannot be had or is too little.
    """
    _make(cache)
    corpus = folder_corpus(text) if text else packaged_corpus(cache)
    return Material(corpus=corpus, tokens=tokenize(corpus, vocabulary=size.train.model.vocabulary, folder=cache))


def run(
    out: Path,
    *,
    size: Size,
    cache: Path,
    text: Path | None = None,
    material: Material | None = None,
    device: str = "cpu",
    threads: int | None = None,
    draws: int = 20,
) -> Outcome:
    """Train a model on packaged text (or the folder `text`), record its routing on held-out text, write it to `out`.

    `cache` keeps packages, tokenizer and checkpoint; a run that was killed goes on from there.
    `material` spares several runs to read the same text again; `draws` of shuffled routers judge
    the routing, 0 leaves that out.

    Raises
    ------
    MoecastError
        `out` cannot be written, the device is not there, or the text cannot be had or is too
        little.
    """
    check_target(out)
    _check_device(device)
    if threads:
        torch.set_num_threads(threads)
    commit = _commit()  # of the code that trains: a checkout may move on meanwhile
    material = material or read_material(size=size, cache=cache, text=text)
    corpus, tokens = material.corpus, material.tokens
    name = f"checkpoint-{size.name}-{size.train.model.policy.name}"
    trained = train(size.train, tokens, folder=cache, name=name, device=device)
    scored = score(trained.model, tokens, read=size.train.read(tokens, trained.steps), row_tokens=size.train.row_tokens)
    meta = describe(size, corpus, tokens, trained, scored, device=device, commit=commit)
    trace = capture(trained.model, tokens, size.capture, meta)
    write_trace(trace, out, compression_level=_COMPRESSION_LEVEL)
    if not draws:
        return Outcome(trace=trace, trained=trained, score=scored)
    fresh = LanguageModel(size.train.model, seed=size.train.seed).to(device).eval()
    before = capture(fresh, tokens, dataclasses.replace(size.capture, decode_sequences=0), meta)
    return Outcome(
        trace=trace,
        trained=trained,
        score=scored,
        prefill=evidence(trace.select(trace.phase_T == 1), draws=draws),
        decode=evidence(trace.select(trace.phase_T == 2), draws=draws),
        untrained=evidence(before, draws=draws),
    )


def describe(
    size: Size, corpus: Corpus, tokens: Tokens, trained: Trained, scored: Score, *, device: str, commit: str | None
) -> TraceMeta:
    """All that made the trace, as its metadata."""
    model = size.train.model
    policy = model.policy
    source = {
        "hardware": _hardware(device),
        "software": {name: version(name) for name in ("torch", "numpy", "moecast")}
        | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "commit": commit,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "corpus_sha256": {topic: corpus.sha256(topic) for topic in corpus.topics},
        "tokens_sha256": tokens.sha256,
        "policy": {
            "name": policy.name,
            **dataclasses.asdict(policy),  # type: ignore[call-overload]
            "summary": policy.summary,
            "source": policy.source,
        },
        "training": {k: v for k, v in dataclasses.asdict(size.train).items() if k not in ("model", "minutes")}
        | {"steps": trained.steps, "tokens": trained.tokens},
        "capture": dataclasses.asdict(size.capture),
        "loss_nats_per_token": {
            "held_out": round(scored.model, 4),
            "held_out_by_topic": {topic: round(loss, 4) for topic, loss in scored.model_by_topic.items()},
            "unigram": round(scored.unigram, 4),
            "bigram": round(scored.bigram, 4),
            "bigram_of_all_training_text": round(scored.bigram_of_all, 4),
            "training_last_50_steps": round(sum(trained.losses[-50:]) / len(trained.losses[-50:]), 4),
        },
        "unevenness_last_50_steps": round(sum(trained.uneven[-50:]) / len(trained.uneven[-50:]), 4),
    }
    return TraceMeta(
        model=f"moecast-capture-{model.experts}e-{policy.name} (trained here, not a published model)",
        layers=model.layers,
        experts=model.experts,
        choices=policy.most_choices(model.experts, model.choices),
        config=model.hugging_face(),
        layer_ids=tuple(range(1, model.layers + 1)),
        source=source,
        notes=f"{policy.note(model.experts, model.choices)} Held-out text, never trained on. "
        "Choices stand best first. Decode rows were generated by the model from held-out prompts, "
        "which are not in the file, and go sequence by sequence; `step` tells which ran together.",
    )


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MoecastError("torch has no such device here", field="device", value=device) from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoecastError(f"the folder cannot be made ({error.strerror})", file=folder) from error


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line for line in lines if line.startswith("model name")]
    return f"{len(models)} cores of {models[0].split(':')[1].strip()}" if models else platform.machine()


def _commit() -> str | None:
    """The checkout's commit, with a plus where this package differs from it; None outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        head, changed = (
            subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True, text=True).stdout  # noqa: S607
            for arguments in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "."])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changed else "")
