"""Certificates: what no legal plan can beat, each with its proof where it is computed."""

from moecast.placement.certificates.fan_out import FanOutBound, fan_out_bound
from moecast.placement.certificates.step_time import certificate_s

__all__ = ["FanOutBound", "certificate_s", "fan_out_bound"]
