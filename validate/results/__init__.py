"""Results of other people's benchmarks, read as measurements: serving runs and nccl-tests."""

from moecast.validate.results.check import Checked, check_collectives, check_serving
from moecast.validate.results.nccl_tests import NcclResult, read_nccl_tests
from moecast.validate.results.serving import ServingResult, read_serving

__all__ = [
    "Checked",
    "NcclResult",
    "ServingResult",
    "check_collectives",
    "check_serving",
    "read_nccl_tests",
    "read_serving",
]
