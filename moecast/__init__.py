"""Forecast what a Mixture-of-Experts model's routing costs on a GPU cluster.

Each package stands on its own: ``moecast.topology``, ``moecast.traces``, ``moecast.sim``,
``moecast.placement``, ``moecast.kernels`` and ``moecast.validate``. Importing ``moecast`` itself
imports none of them.
"""

from moecast.errors import MoecastError

__version__ = "0.1.0"

__all__ = ["MoecastError", "__version__"]
