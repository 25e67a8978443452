"""The readers of what comes from outside. To add one: a Target in one of these files; it is then tried everywhere."""

from tests.fuzz.runner import Target
from tests.fuzz.targets import clusters, importers, models, plans, results, traces, words

TARGETS: dict[str, Target] = {
    target.name: target
    for part in (clusters, models, plans, traces, importers, results, words)
    for target in part.TARGETS
}
