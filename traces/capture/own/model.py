"""A small decoder-only MoE language model: RMSNorm, rotary attention, a dense first layer, then MoE layers.

The shape is that of DeepSeek-V2-Lite at toy width (one dense layer, 64 experts of which 6 are
chosen, two always-on shared ones) with plain multi-head attention. Axes: B sequence of the batch, Q
position fed in, S position attended to, A attention head, D head dimension, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from moecast.traces.capture.own.moe import MoeLayer, Router, SwiGlu
from moecast.traces.capture.own.policies import AuxGlobal, Pass, Policy

KvCache = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Widths and counts of the language model.

    `layers` counts MoE layers, one dense layer comes before them.

    `policy` decides how routers choose, `choices` how many experts it is meant to choose per token.

    Raises
    ------
    ValueError
        More choices than experts, or a head dimension that is not an even whole number.
    """

    vocabulary: int = 4096
    hidden: int = 192
    layers: int = 8
    heads: int = 3
    experts: int = 64
    choices: int = 6
    expert_width: int = 64
    shared_experts: int = 2
    dense_width: int = 512
    max_positions: int = 1024
    policy: Policy = field(default_factory=AuxGlobal)

    def __post_init__(self) -> None:
        if not 0 < self.choices <= self.experts:
            raise ValueError(f"choices = {self.choices}: between 1 and experts = {self.experts}")
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            raise ValueError(f"hidden = {self.hidden}: an even multiple of heads = {self.heads}")

    def hugging_face(self) -> dict[str, object]:
        """The shape as a `config.json` with the field names DeepSeek-V2 uses."""
        return {
            "model_type": "moecast-capture",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.dense_width,
            "moe_intermediate_size": self.expert_width,
            "num_hidden_layers": self.layers + 1,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "n_routed_experts": self.experts,
            "n_shared_experts": self.shared_experts,
            "num_experts_per_tok": self.choices,
            "router_policy": self.policy.name,
            **self.policy.config(),
            "routed_scaling_factor": 1.0,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        }


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions, over the batch itself or over a KV cache."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)

    def forward(
        self, x_BQH: Tensor, rotation: tuple[Tensor, Tensor], position_BQ: Tensor, cache: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Return [B, Q, H]; keys and values are written into `cache` at `position_BQ` where one is given."""
        batch, queries, hidden = x_BQH.shape
        qkv = self.qkv(x_BQH).view(batch, queries, 3, self.heads, hidden // self.heads)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        query, key = _rotate(query, rotation), _rotate(key, rotation)
        if cache is None:
            y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            rows_BQ = torch.arange(batch, device=x_BQH.device)[:, None].expand_as(position_BQ)
            cache[0][rows_BQ, :, position_BQ] = key.transpose(1, 2)
            cache[1][rows_BQ, :, position_BQ] = value.transpose(1, 2)
            seen_BQS = torch.arange(cache[0].shape[2], device=x_BQH.device) <= position_BQ[:, :, None]
            y = functional.scaled_dot_product_attention(query, *cache, attn_mask=seen_BQS[:, None])
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, queries, hidden))
        return out


class Block(nn.Module):
    """Attention and a feed-forward layer (dense or MoE), each on the normalised residual stream."""

    def __init__(self, config: ModelConfig, *, index: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.attention = Attention(config.hidden, config.heads)
        self.feed_norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.feed: SwiGlu | MoeLayer = (
            SwiGlu(config.hidden, config.dense_width)
            if index == 0
            else MoeLayer(
                hidden=config.hidden,
                experts=config.experts,
                choices=config.choices,
                width=config.expert_width,
                shared_width=config.shared_experts * config.expert_width,
                policy=config.policy,
                layer=index - 1,
            )
        )

    def forward(
        self,
        x_BQH: Tensor,
        rotation: tuple[Tensor, Tensor],
        position_BQ: Tensor,
        cache: tuple[Tensor, Tensor] | None,
        view: Pass,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the residual stream [B, Q, H] and the router's penalty, if there is one."""
        x_BQH = x_BQH + self.attention(self.attention_norm(x_BQH), rotation, position_BQ, cache)
        x_TH = self.feed_norm(x_BQH).flatten(0, 1)
        y_TH, penalty = self.feed(x_TH, view) if isinstance(self.feed, MoeLayer) else (self.feed(x_TH), None)
        return x_BQH + y_TH.view_as(x_BQH), penalty


class LanguageModel(nn.Module):
    """The whole model; `seed` decides every initial weight."""

    rotation: Tensor

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.blocks = nn.ModuleList(Block(config, index=index) for index in range(config.layers + 1))
        self.norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.register_buffer("rotation", _rotation(config), persistent=False)
        _initialise(self, seed)

    def forward(
        self,
        token_BQ: Tensor,
        position_BQ: Tensor | None = None,
        cache: KvCache | None = None,
        *,
        valid_BQ: Tensor | None = None,
        seed: tuple[int, ...] = (0,),
    ) -> tuple[Tensor, Tensor]:
        """Return the final hidden states [B, Q, H] and the mean penalty of the MoE layers' routers.

        `position_BQ` defaults to 0, 1, …; with a `cache` (see `new_cache`) each row attends to all
        positions of its row in the cache up to its own. `valid_BQ` is False for padding, which some
        routers must not count; `seed` decides what routers draw.
        """
        if position_BQ is None:
            position_BQ = torch.arange(token_BQ.shape[1], device=token_BQ.device).expand_as(token_BQ)
        valid_T = None if valid_BQ is None else valid_BQ.flatten()
        view = Pass(rows=len(token_BQ), training=self.training, valid_T=valid_T, seed=seed)
        cosine, sine = self.rotation[:, position_BQ].unsqueeze(2)
        # Embedding and head share a matrix: scaled here, a token enters as strong as what the
        # layers add to it.
        x_BQH, penalties = self.embedding(token_BQ) * self.config.hidden**0.5, []
        for index, block in enumerate(self.blocks):
            x_BQH, penalty = block(x_BQH, (cosine, sine), position_BQ, cache[index] if cache else None, view)
            penalties += [] if penalty is None else [penalty]
        return self.norm(x_BQH), torch.stack(penalties).mean() if penalties else x_BQH.new_zeros(())

    def logits(self, x_BQH: Tensor) -> Tensor:
        """Return next-token scores [B, Q, V] from hidden states."""
        return functional.linear(x_BQH, self.embedding.weight)

    def loss(self, token_BQ: Tensor, *, seed: tuple[int, ...] = (0,)) -> tuple[Tensor, Tensor]:
        """Return the mean next-token loss in nats and the routers' penalty over rows of Q + 1 tokens."""
        loss, penalty, _ = self.scored(token_BQ, seed=seed)
        return loss, penalty

    def scored(self, token_BQ: Tensor, *, seed: tuple[int, ...] = (0,)) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `loss` does, and the next-token scores [B, Q, V]."""
        x_BQH, penalty = self(token_BQ[:, :-1], seed=seed)
        logits_BQV = self.logits(x_BQH)
        return functional.cross_entropy(logits_BQV.flatten(0, 1), token_BQ[:, 1:].flatten()), penalty, logits_BQV

    def routers(self) -> list[Router]:
        """The routers, first layer first."""
        return [module for module in self.modules() if isinstance(module, Router)]

    def unevenness(self) -> float:
        """Experts · Σ (fraction of choices)² of the last pass, mean of layers; 1 is perfectly even."""
        load_LE = torch.stack([router.load_E for router in self.routers()]).double()
        share_LE = load_LE / load_LE.sum(1, keepdim=True)
        return float(share_LE.square().sum(1).mean() * share_LE.shape[1])

    def new_cache(self, batch: int, positions: int) -> KvCache:
        """Make an empty KV cache for `batch` sequences of at most `positions` tokens."""
        shape = (batch, self.config.heads, positions, self.config.hidden // self.config.heads)
        weight = self.embedding.weight
        return [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.blocks]


def _rotation(config: ModelConfig) -> Tensor:
    """Cosines and sines [2, position, D/2] of the rotary embedding, base 10,000."""
    half = config.hidden // config.heads // 2
    frequency_D = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(config.max_positions, dtype=torch.float64)[:, None] * frequency_D
    return torch.stack([angle.cos(), angle.sin()]).float()


def _rotate(x_BAQD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = rotation
    left, right = x_BAQD.chunk(2, dim=-1)
    return torch.cat([left * cosine - right * sine, left * sine + right * cosine], dim=-1)


@torch.no_grad()
def _initialise(model: LanguageModel, seed: int) -> None:
    """Normal weights of variance 1/fan-in, outputs damped by depth; routers start near indifference."""
    generator = torch.Generator().manual_seed(seed)
    damping = (2 * len(model.blocks)) ** -0.5
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        fan_in = weight.shape[-2] if name.endswith(("_EHI", "_EIH")) else weight.shape[-1]
        scale = fan_in**-0.5
        scale *= damping if name.endswith(("out.weight", "down.weight", "down_EIH")) else 1.0
        scale *= 0.5 if name.startswith("embedding") or "router" in name else 1.0
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
