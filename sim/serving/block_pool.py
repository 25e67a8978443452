"""A rank's KV blocks, for every batcher: free ones queue up to be taken, and until then their content is found.

A full block is found by what it holds and by all that comes before it. What two requests have in
common is a group's prefix (`Request.prefix_group`), so a block is *shared* where it lies within
that, and only its own request's otherwise; a request finds its own again when it was preempted.
Blocks are freed from a request's last to its first, so that what is left of it when some have been
taken is a beginning. After vLLM's `BlockPool` and `FullAttentionManager`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from moecast.sim.serving.request import Request

NOBODY = -1


@dataclass(slots=True)
class _Idle:
    """Free blocks in a row that hold something: a shared one, or the first ones of a request beyond those."""

    blocks: int
    shared: int = NOBODY
    request: int = NOBODY


@dataclass(slots=True)
class Found:
    """What is in the cache for a request that holds nothing: shared blocks by number, then how many of its own."""

    shared: list[int] = field(default_factory=list)
    own: int = 0

    @property
    def blocks(self) -> int:
        """In all."""
        return len(self.shared) + self.own


class BlockPool:
    """Blocks of one rank; requests hold counts of them, and of shared ones a list.

    Parameters
    ----------
    blocks, block_tokens
        How many, and tokens of each.
    caching
        Content stays findable; without it a block is as good as any other, and only counts are
        kept.
    blanks_first
        Freed blocks whose content nobody can find are taken before all others (vLLM 0.33), not in
        turn (vLLM 0.19).
    """

    def __init__(self, blocks: int, block_tokens: int, *, caching: bool, blanks_first: bool = True) -> None:
        self.free = self.blocks = blocks
        self.block_tokens, self.caching = block_tokens, caching
        self._blanks_first = blanks_first
        self._blanks = blocks  # free blocks in front of the queue
        self._queue: OrderedDict[int, _Idle] = OrderedDict()
        self._tickets = 0
        # (group, index) to blocks that hold it, oldest first
        self._copies: dict[tuple[int, int], dict[int, None]] = {}
        self._content: dict[int, tuple[int, int]] = {}
        self._holders: dict[int, int] = {}
        self._place: dict[int, int] = {}  # of an idle shared block in the queue
        self._own_place: dict[int, int] = {}  # of an idle request's own blocks

    @property
    def used(self) -> int:
        """Blocks that requests hold."""
        return self.blocks - self.free

    def shareable(self, request: Request) -> int:
        """Full blocks of its prompt that others may have in common with it."""
        if not self.caching or request.prefix_group == NOBODY:
            return 0
        return request.prefix_tokens // self.block_tokens

    def find(self, request: Request, tokens: int) -> Found:
        """What is there of a request that has so many tokens; at least one of them is always computed."""
        found = Found()
        if not self.caching:
            return found
        most = (tokens - 1) // self.block_tokens
        shareable = min(self.shareable(request), most)
        for index in range(shareable):
            copies = self._copies.get((request.prefix_group, index))
            if not copies:
                return found
            found.shared.append(next(iter(copies)))
        place = self._own_place.get(request.id)
        if place is not None:
            found.own = min(self._queue[place].blocks, most - shareable)
        return found

    def idle(self, found: Found) -> int:
        """Of the blocks found, those that nobody holds: they stop being free once they are held."""
        return found.own + sum(not self._holders[block] for block in found.shared)

    def hold(self, request: Request, found: Found) -> None:
        """Let a request hold what was found."""
        for block in found.shared:
            if not self._holders[block]:
                del self._queue[self._place.pop(block)]
                self.free -= 1
            self._holders[block] += 1
        if found.own:
            rest = self._queue[self._own_place[request.id]]
            rest.blocks -= found.own
            self.free -= found.own
        place = self._own_place.pop(request.id, None)
        if place is not None and not self._queue[place].blocks:
            del self._queue[place]

    def take(self, blocks: int) -> None:
        """Take so many from the front of the queue; what they held is lost."""
        if blocks > self.free:
            raise RuntimeError(f"{blocks} blocks are wanted, {self.free} are free")
        self.free -= blocks
        if not self.caching:
            return
        blank = min(blocks, self._blanks)
        self._blanks -= blank
        blocks -= blank
        while blocks:
            ticket, idle = next(iter(self._queue.items()))
            gone = min(blocks, idle.blocks)
            idle.blocks -= gone
            blocks -= gone
            if not idle.blocks:
                del self._queue[ticket]
                self._forget(idle, ticket)

    def _forget(self, idle: _Idle, ticket: int) -> None:
        if idle.shared != NOBODY:
            content = self._content.pop(idle.shared)
            copies = self._copies[content]
            del copies[idle.shared], self._holders[idle.shared], self._place[idle.shared]
            if not copies:
                del self._copies[content]
        elif self._own_place.get(idle.request) == ticket:
            del self._own_place[idle.request]

    def keep(self, request: Request, shared: list[int], tokens: int) -> None:
        """Make a running request's full shared blocks findable, of so many tokens; they are put in `shared`."""
        full = min(self.shareable(request), tokens // self.block_tokens)
        for index in range(len(shared), full):
            block = self._tickets = self._tickets + 1
            content = request.prefix_group, index
            self._copies.setdefault(content, {})[block] = None
            self._content[block] = content
            self._holders[block] = 1
            shared.append(block)

    def release(self, request: Request, blocks: int, shared: list[int], computed: int, *, ends: bool) -> None:
        """Take back all of a request's blocks; `computed` of its tokens are in them. `ends`: it does not come back."""
        if not self.caching:
            self.free += blocks
            return
        full = computed // self.block_tokens
        self._add_blanks(blocks - full)
        if full > len(shared):
            ticket = self._append(_Idle(full - len(shared), request=NOBODY if ends else request.id))
            if not ends:
                self._own_place[request.id] = ticket
        for block in reversed(shared):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._place[block] = self._append(_Idle(1, shared=block))

    def _add_blanks(self, blocks: int) -> None:
        if blocks and not self._blanks_first:
            self._append(_Idle(blocks))
        else:
            self._blanks += blocks
            self.free += blocks

    def _append(self, idle: _Idle) -> int:
        self.free += idle.blocks
        self._tickets += 1
        self._queue[self._tickets] = idle
        return self._tickets
