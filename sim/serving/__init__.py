"""From steps to requests: engines that batch as real ones do, and what their users see."""

from __future__ import annotations

from moecast.sim.serving.arrivals import ArrivalLaw, parse_arrivals
from moecast.sim.serving.made_requests import Lengths, Sharing, make_requests
from moecast.sim.serving.prefill_pool import PrefillPool
from moecast.sim.serving.recorded import read_requests
from moecast.sim.serving.request import Request
from moecast.sim.serving.serve import serve, step_cost
from moecast.sim.serving.served import Served, write_served
from moecast.sim.serving.setup import Serving
from moecast.sim.serving.slo import Slo, parse_slo
from moecast.sim.serving.timeline import serving_timeline

__all__ = [
    "ArrivalLaw",
    "Lengths",
    "PrefillPool",
    "Request",
    "Served",
    "Serving",
    "Sharing",
    "Slo",
    "make_requests",
    "parse_arrivals",
    "parse_slo",
    "read_requests",
    "serve",
    "serving_timeline",
    "step_cost",
    "write_served",
]
