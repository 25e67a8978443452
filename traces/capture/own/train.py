"""Training from scratch: AdamW, a constant learning rate with a linear end, checkpoints that resume bit for bit.

The learning rate does not depend on the number of steps until the end begins, so a run can be
shortened while it is still in its constant part and is then the same run as one that was short from
the start.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from moecast.errors import MoecastError
from moecast.files import atomic_path
from moecast.traces.capture.own.model import LanguageModel, ModelConfig
from moecast.traces.capture.own.tokens import Ids, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long and how the model learns. Each step reads `rows_per_topic` rows of `row_tokens` tokens per topic.

    `minutes` ends the run early: `steps` is then cut so that the linear end (the last `ending` of
    all steps) fits.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    seed: int = 0
    steps: int = 2000
    minutes: float | None = None
    row_tokens: int = 256
    rows_per_topic: int = 1
    learning_rate: float = 2e-3
    warm_up: int = 40
    ending: float = 0.3
    weight_decay: float = 0.1
    clip: float = 1.0
    checkpoint_every: int = 50

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, constant, linear down to nothing."""
        left = (self.steps - step) / max(1.0, self.ending * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up, left)

    def batch(self, tokens: Tokens, step: int) -> Ids:
        """The rows of a step."""
        return tokens.batch(step, row_tokens=self.row_tokens, rows_per_topic=self.rows_per_topic, seed=self.seed)

    def read(self, tokens: Tokens, steps: int) -> Ids:
        """All that the first `steps` steps read, row after row."""
        return np.concatenate([self.batch(tokens, step).ravel() for step in range(steps)])

    def fingerprint(self, tokens: Tokens) -> str:
        """All that decides the weights at a step of the constant part, as text."""
        decides = {k: v for k, v in asdict(self).items() if k not in ("steps", "minutes", "checkpoint_every")}
        return repr((self.model.policy.name, decides, tokens.sha256))


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A trained model, the steps and tokens it took, and of each step the loss in nats and the loads' unevenness."""

    model: LanguageModel
    steps: int
    tokens: int
    losses: tuple[float, ...]
    uneven: tuple[float, ...]


def train(
    config: TrainConfig,
    tokens: Tokens,
    *,
    folder: Path,
    name: str = "checkpoint",
    device: str = "cpu",
    log_every: int = 20,
) -> Trained:
    """Train, or go on from the checkpoint `name` in `folder`.

    On a CPU the same input gives the same weights, bit for bit, also after a kill.

    Raises
    ------
    MoecastError
        The checkpoint is of another configuration, or already past the point where this run's end
        begins.
    """
    torch.use_deterministic_algorithms(device == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    model = LanguageModel(config.model, seed=config.seed).to(device)
    optimizer = torch.optim.AdamW(_groups(model, config.weight_decay), betas=(0.9, 0.95), fused=True)
    file, steps = folder / f"{name}.pt", config.steps
    history = _resume(file, config, tokens, model, optimizer)
    clock = _Clock(config.minutes)
    while len(history) < steps:
        step = len(history)
        steps = clock.steps(step, steps, config.ending)
        schedule = replace(config, steps=steps)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        history.append(_step(schedule, tokens, model, optimizer, step, device))
        clock.tick()
        if len(history) % config.checkpoint_every == 0 or len(history) == steps:
            _save(file, schedule, tokens, model, optimizer, history)
        if log_every and len(history) % log_every == 0:
            loss, uneven = (sum(values) / log_every for values in zip(*history[-log_every:], strict=True))
            _log(f"step {len(history)}/{steps}  loss {loss:.3f}  uneven {uneven:.3f}  {clock.seconds_per_step:.2f} s")
    losses, unevens = zip(*history, strict=True)
    per_step = len(tokens.topics) * config.rows_per_topic * config.row_tokens
    return Trained(model=model.eval(), steps=steps, tokens=steps * per_step, losses=losses, uneven=unevens)


def _step(
    config: TrainConfig,
    tokens: Tokens,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    step: int,
    device: str,
) -> tuple[float, float]:
    rows = torch.from_numpy(config.batch(tokens, step)).long().to(device)
    loss, objective = _objective(model, rows, seed=(config.seed, 0, step))
    optimizer.zero_grad(set_to_none=True)
    objective.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    for router in model.routers():
        router.after_step()
    return loss.item(), model.unevenness()


def _objective(model: LanguageModel, rows: torch.Tensor, *, seed: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The next-token loss, mean of the policy's passes, and that loss with all that the policy adds to it."""
    policy = model.config.policy
    # The first pass draws what it would draw alone.
    passes = [model.scored(rows, seed=(*seed, turn) if turn else seed) for turn in range(policy.passes)]
    losses, penalties, logits = zip(*passes, strict=True)
    loss = torch.stack(losses).mean()
    objective = loss + policy.penalty_weight * torch.stack(penalties).mean()
    agreement = policy.agreement_loss(logits)
    return loss, objective if agreement is None else objective + agreement


def _groups(model: LanguageModel, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; norms and embeddings do not."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim > 1 and not name.startswith("embedding")]
    others = [p for name, p in named if p.ndim < 2 or name.startswith("embedding")]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


class _Clock:
    """Cuts a run so that it ends within its minutes."""

    def __init__(self, minutes: float | None) -> None:
        self.end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self.last = time.monotonic()
        self.seconds_per_step = 0.0

    def tick(self) -> None:
        now = time.monotonic()
        self.seconds_per_step = 0.95 * (self.seconds_per_step or now - self.last) + 0.05 * (now - self.last)
        self.last = now

    def steps(self, step: int, steps: int, ending: float) -> int:
        """`steps`, or fewer when the linear end has to begin now."""
        shortest = math.ceil(step / (1 - ending)) + 1
        begins = time.monotonic() + (shortest - step) * self.seconds_per_step >= self.end
        return shortest if begins and shortest < steps and self.seconds_per_step else steps


def _save(
    file: Path,
    config: TrainConfig,
    tokens: Tokens,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    history: list[tuple[float, float]],
) -> None:
    state = {
        "fingerprint": config.fingerprint(tokens),
        "steps": config.steps,
        "history": torch.tensor(history, dtype=torch.float64),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with atomic_path(file) as part:
        torch.save(state, part)


def _resume(
    file: Path, config: TrainConfig, tokens: Tokens, model: LanguageModel, optimizer: torch.optim.Optimizer
) -> list[tuple[float, float]]:
    """Load the checkpoint where there is one; return the losses so far."""
    if not file.exists():
        return []
    damaged = MoecastError("no checkpoint, or a damaged one; remove it to start again", file=file)
    try:
        state = torch.load(file, weights_only=True)
        theirs = state.get("fingerprint")
        history = [(float(loss), float(uneven)) for loss, uneven in state["history"]] if theirs else []
        planned = int(state["steps"]) if theirs else 0
    except Exception as error:  # damaged files end torch in many ways, IndexError among them
        raise damaged from error
    if theirs != config.fingerprint(tokens):
        raise MoecastError("is of another configuration, seed or text; give another --cache folder", file=file)
    done = len(history)
    if config.steps != planned and done > (1 - config.ending) * min(config.steps, planned):
        rule = f"the checkpoint has ended its constant part; only steps = {planned} can go on from it"
        raise MoecastError(rule, file=file, field="steps", value=config.steps)
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:  # of other shapes, or no tensors at all
        raise damaged from error
    return history


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
