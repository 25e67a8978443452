"""The KV cache of one rank: blocks of tokens, those of running requests and those kept for a prefix to come again.

What requests of one prefix group have in common is a chain of blocks, which holds as many of its first ones as are
kept. A chain gives up its last blocks first, and the chain that was not used for longest goes first, as engines' lists
of free blocks do it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from moecast.sim.serving.batchers.batcher import Limits
from moecast.sim.serving.request import Request


@dataclass(slots=True)
class _Chain:
    """The kept blocks of one prefix group, and how many of them each request that runs holds."""

    kept: int = 0
    held_by: dict[int, int] = field(default_factory=dict)

    @property
    def held(self) -> int:
        return max(self.held_by.values(), default=0)


class KvCache:
    """Blocks of one rank's cache.

    Parameters
    ----------
    limits
        How many blocks, how large, and whether prefixes are kept.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._own: dict[int, int] = {}
        self._chains: dict[int, _Chain] = {}
        self._used = 0  # own blocks, and those of chains that a running request holds
        self._idle = 0  # blocks of chains that nobody holds

    @property
    def used(self) -> int:
        """Blocks that running requests hold."""
        return self._used

    @property
    def free(self) -> int:
        """Blocks that can be taken, those kept for a prefix included."""
        return self._limits.kv_blocks - self._used

    @property
    def kept(self) -> int:
        """Blocks that hold a prefix and that nobody uses now."""
        return self._idle

    def found(self, request: Request) -> int:
        """Tokens of a prompt whose keys are kept, in whole blocks; at least one token is always computed."""
        chain = self._chains.get(request.prefix_group) if self._limits.prefix_cache else None
        if chain is None or request.prefix_group < 0:
            return 0
        size = self._limits.block_tokens
        return size * min(chain.kept, request.prefix_tokens // size, (request.prompt_tokens - 1) // size)

    def needed(self, request: Request, tokens: int, *, found: int = 0) -> int:
        """Free blocks that it takes to let a request hold so many tokens, `found` of which are kept."""
        size = self._limits.block_tokens
        shared = found // size
        chain = self._chains.get(request.prefix_group)
        # kept blocks that nobody uses stop being free when they are used
        woken = max(0, shared - chain.held) if chain is not None and shared else 0
        return max(0, self._limits.blocks_of(tokens) - shared - self._own.get(request.id, 0)) + woken

    def enter(self, request: Request, tokens: int, *, found: int = 0) -> None:
        """Let a request that holds nothing hold so many tokens, the first `found` of them kept ones."""
        shared = found // self._limits.block_tokens
        if shared:
            chain = self._chains.pop(request.prefix_group)
            self._chains[request.prefix_group] = chain  # used last
            woken = max(0, shared - chain.held)
            chain.held_by[request.id] = shared
            self._used += woken
            self._idle -= woken
        self._own[request.id] = 0
        self._take(request.id, self._limits.blocks_of(tokens) - shared)

    def grow(self, request: Request, tokens: int, *, shared: int = 0) -> bool:
        """Let a running request hold so many tokens in all; whether there was room. `shared`: blocks of its chain."""
        more = self._limits.blocks_of(tokens) - shared - self._own[request.id]
        if more > self.free:
            return False
        if more > 0:
            self._take(request.id, more)
        return True

    def _take(self, request_id: int, blocks: int) -> None:
        if blocks > self.free:
            raise RuntimeError(f"request {request_id} wants {blocks} blocks, {self.free} are free")
        self._own[request_id] += blocks
        self._used += blocks
        self._evict(self._used + self._idle - self._limits.kv_blocks)

    def _evict(self, blocks: int) -> None:
        for group, chain in list(self._chains.items()):
            if blocks <= 0:
                return
            gone = min(blocks, chain.kept - chain.held)
            chain.kept -= gone
            self._idle -= gone
            blocks -= gone
            if not chain.kept:
                del self._chains[group]

    def keep(self, request: Request, computed: int) -> int:
        """Keep a running request's computed prefix for others: its own blocks become its chain's.

        Returns
        -------
        Blocks of the chain that the request holds from now on.
        """
        if not self._limits.prefix_cache or request.prefix_group < 0:
            return 0
        chain = self._chains.setdefault(request.prefix_group, _Chain())
        held = chain.held_by.get(request.id, 0)
        whole = min(computed, request.prefix_tokens) // self._limits.block_tokens
        if whole <= chain.kept or held < chain.kept:  # another request computed the same at the same time
            if not chain.kept and not chain.held_by:
                del self._chains[request.prefix_group]
            return held
        more = whole - chain.kept
        self._own[request.id] -= more
        chain.kept = whole
        chain.held_by[request.id] = whole
        return whole

    def leave(self, request: Request) -> None:
        """Give up all blocks of a request; those of a prefix stay kept."""
        self._used -= self._own.pop(request.id)
        chain = self._chains.get(request.prefix_group)
        if chain is not None and request.id in chain.held_by:
            before = chain.held
            del chain.held_by[request.id]
            rested = before - chain.held
            self._used -= rested
            self._idle += rested
