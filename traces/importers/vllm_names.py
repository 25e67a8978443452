"""The names under which people save vLLM's arrays, one request or many to a file."""

from __future__ import annotations

import re

_NAME = re.compile(
    r"(?:(?P<before>.+?)[._/-])??(?P<field>(?:prompt_)?routed_experts|prompt_token_ids|token_ids)"
    r"(?:[._/-](?P<after>.+))?"
)


def request_name(name: str) -> tuple[str, str] | None:
    """Split ``r7/prompt_routed_experts`` or ``routed_experts_7`` into (request, field); None: it is no such name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return "/".join(filter(None, (found["before"], found["after"]))), found["field"]


def is_request_name(name: str) -> bool:
    """Whether an array of that name is a request's routing."""
    parts = request_name(name)
    return parts is not None and parts[1].endswith("routed_experts")
