"""Tables of slots: what an empty one holds, and how large they may be."""

from __future__ import annotations

EMPTY = -1

MOST_EXPERTS = 2**16 - 1  # a trace numbers them in 16 bits
MOST_GROUP_SLOTS = 2**16 - 1  # and slots of one layer in one EP group
MOST_SLOTS = 1 << 26  # 61 layers of 288 slots on 1,024 ranks in 32 groups are half a million
