"""Capture from Hugging Face transformers: a context manager for people's own scripts, and what the command runs."""

from __future__ import annotations

from moecast.traces.capture.hf.routing import RoutingCapture, capture_routing

__all__ = ["RoutingCapture", "capture_routing"]
