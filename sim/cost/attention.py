"""What the attention core of a step costs, by the parameters of a GPU, an engine and a cache's element type.

Scores, softmax and weighted sum of one layer on one rank, for grouped-query attention and for
multi-head latent attention. Axes: G rank; arrays may have any axes in front.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.attention_decode import DecodeParameters, decode_seconds
from moecast.sim.cost.attention_kinds import kernel_class, type_names
from moecast.sim.cost.attention_prefill import PrefillParameters, cheapest_length, prefill_seconds
from moecast.sim.cost.entries import NEUTRAL, Entry, read_entries
from moecast.sim.cost.gpus import gpu_key, nearest
from moecast.sim.element_types import cache_bytes

if TYPE_CHECKING:
    from moecast.sim.cost.shapes import AttentionCore
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

LATENT = 512  # DeepSeek's latent vector, which MLA's decode reads as keys and as values
FAMILIES = ("attention", "mla")
"""Files of parameters: of multi-head and grouped-query attention, and of multi-head latent attention."""


def key_bytes(types: str) -> float:
    """Bytes of a cache's element, by the last of a kind's element types."""
    return 1.0 if types.split("/")[-1] == "fp8" else 2.0


@cache
def all_parameters(family: str) -> tuple[Entry[Any], ...]:
    """All fitted parameters of a family, older versions of an engine before newer ones."""
    return read_entries(
        family, lambda item: PrefillParameters if item["kind"].startswith("prefill") else DecodeParameters
    )


@cache
def _newest(family: str) -> dict[tuple[str, str, str], Entry[Any]]:
    return {(entry.gpu, entry.engine, entry.kind): entry for entry in all_parameters(family)}


@lru_cache(maxsize=1024)
def _find(family: str, gpu: str, engine: str, phase: str, cache_type: str, kernel: str, head_dim: int) -> Entry[Any]:
    entries = _newest(family)
    for name in dict.fromkeys((engine, NEUTRAL)):
        some = (*type_names(phase, cache_type), *type_names(phase, "bf16"))
        for types in dict.fromkeys(word.split("/")[-1] if family == "mla" else word for word in some):
            main, wanted = f"{phase} {types}", f"{phase} {types} {kernel}".strip()
            kinds = [kind for kind in (wanted, main) if any(key[1:] == (name, kind) for key in entries)]
            if not kinds:
                continue
            gpus = {key[0] for key in entries if key[1:] == (name, kinds[0])}
            owner = nearest(gpu, gpus)
            found = _of_width(entries, owner, name, kinds[0], main, head_dim)
            notes = [f"GPU {owner}"] if owner != gpu else []
            notes += [f"engine {name}"] if name != engine else []
            notes += [f"cache {types}"] if types.split("/")[-1] != cache_type else []
            return replace(found, transferred=", ".join(notes))
    raise ValueError(f"no parameters of {family} for {phase} and a cache of {cache_type}")


def _of_width(
    entries: dict[tuple[str, str, str], Entry[Any]], gpu: str, engine: str, kind: str, main: str, head_dim: int
) -> Entry[Any]:
    """The entry of a kind, or of another kernel of the same types where only that one was measured at this width."""
    found = entries[gpu, engine, kind]
    if str(head_dim) in found.parameters.head_dims.split():
        return found
    for key, other in entries.items():
        beside = key[:2] == (gpu, engine) and key[2].startswith(main + " ")
        if beside and str(head_dim) in other.parameters.head_dims.split():
            return other
    return found


def find_parameters(
    hardware: Hardware, *, engine: str, phase: str, cache_type: str, heads: int, kv_heads: int, head_dim: int
) -> Entry[Any]:
    """The parameters of grouped-query attention for a GPU, engine and shape.

    `transferred` says whose they are.

    The engine's own kernel for the shape on the nearest GPU, else the neutral one; a cache of FP8
    for which no engine has rows takes those of bf16.

    Raises
    ------
    ValueError
        No parameters at all for the phase.
    """
    kernel = str(kernel_class(engine, phase, group=heads / kv_heads, head_dim=head_dim))
    return _find("attention", gpu_key(hardware), engine, phase, cache_type, kernel, head_dim)


def find_latent(hardware: Hardware, *, engine: str, phase: str, cache_type: str) -> Entry[Any]:
    """The parameters of multi-head latent attention's kernels; see `find_parameters`.

    SGLang's table of prompts on Hopper is of an absorbed kernel, but its modules take expanded
    heads, as all do: the neutral one stands for it.
    """
    found = _find("mla", gpu_key(hardware), engine, phase, cache_type, "", 0)
    if phase == "prefill" and found.parameters.absorbed:
        found = _find("mla", gpu_key(hardware), NEUTRAL, phase, cache_type, "", 0)
        found = replace(found, transferred=", ".join(filter(None, (found.transferred, f"engine {NEUTRAL}"))))
    return found


def core_seconds(
    core: AttentionCore,
    hardware: Hardware,
    *,
    engine: str,
    phase: str,
    tokens_G: npt.ArrayLike,
    keys_G: npt.ArrayLike,
    queries: float = 1.0,
) -> Float:
    """Attend: tokens on each rank, and keys that they read in all; 0 without tokens.

    Decode knows of each rank its sequences and their mean context. Prefill takes its tokens for
    prompts of one length whose mean number of keys is what is given; keys beyond a causal prompt's
    were there before.

    Parameters
    ----------
    queries
        Decode: tokens of a sequence, drafts that are verified at once, which share one reading of
        its keys.
    """
    tokens, keys = np.broadcast_arrays(np.asarray(tokens_G, np.float64), np.asarray(keys_G, np.float64))
    told = (tokens.shape, tokens.tobytes(), keys.tobytes())
    return _core_seconds(core, hardware, engine, phase, float(queries), *told).copy()


@lru_cache(maxsize=32)
def _core_seconds(
    core: AttentionCore,
    hardware: Hardware,
    engine: str,
    phase: str,
    queries: float,
    shape_of_G: tuple[int, ...],
    tokens_of_G: bytes,
    keys_of_G: bytes,
) -> Float:
    """As of `core_seconds`; the layers of a step mostly ask for the same."""
    tokens = np.frombuffer(tokens_of_G).reshape(shape_of_G)
    keys = np.frombuffer(keys_of_G).reshape(shape_of_G)
    cache_type = "fp8" if cache_bytes(core.kv_type, 1000) <= 1100 else "bf16"
    if core.latent:
        entry = find_latent(hardware, engine=engine, phase=phase, cache_type=cache_type)
    else:
        shape = {"heads": core.heads, "kv_heads": core.kv_heads, "head_dim": core.head_dim}
        entry = find_parameters(hardware, engine=engine, phase=phase, cache_type=cache_type, **shape)
    mean = np.divide(keys, tokens, out=np.zeros(tokens.shape), where=tokens > 0)
    if phase == "decode":
        return _decode(entry.parameters, core, hardware, tokens / queries, mean, queries)
    return _prefill(entry.parameters, core, hardware, tokens, mean)


def _prefill(
    parameters: PrefillParameters, core: AttentionCore, hardware: Hardware, tokens: Float, mean_keys: Float
) -> Float:
    """Prompts whose tokens see so many keys in the mean, of at most all tokens.

    Ones shorter than the cheapest are priced as if they were of that length, so that more keys for
    the same tokens never cost less.
    """
    widths = {"heads": core.heads, "kv_heads": core.kv_heads, "head_dim": core.head_dim, "value_dim": core.value_dim}
    least = cheapest_length(parameters, hardware, **widths)
    length = np.minimum(np.maximum(2 * mean_keys - 1, least), np.maximum(tokens, least))
    context = np.maximum(mean_keys - (length + 1) / 2, 0)
    return prefill_seconds(parameters, hardware, tokens / length, length, context=context, mixed=True, **widths)


def _decode(
    parameters: DecodeParameters, core: AttentionCore, hardware: Hardware, batch: Float, keys: Float, queries: float
) -> Float:
    absorbed = core.absorbed("decode")
    return decode_seconds(
        parameters,
        hardware,
        batch,
        keys,
        heads=core.heads,
        kv_heads=1 if absorbed else core.kv_heads,
        head_dim=core.kv_rank + core.rope_dim if absorbed else core.head_dim,
        value_dim=core.kv_rank if absorbed else core.value_dim,
        key_bytes=core.key_bytes("decode") / (1 if absorbed else core.kv_heads),
        queries=queries,
    )
