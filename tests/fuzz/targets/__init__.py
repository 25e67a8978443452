"""The readers of what comes from outside. To add one: a Target in one of these files; it is then tried everywhere."""

from tests.fuzz.runner import Target
from tests.fuzz.targets import checkpoints, clusters, commands, importers, models, plans, results, traces, words

TARGETS: dict[str, Target] = {
    target.name: target
    for part in (clusters, models, plans, traces, importers, results, words, checkpoints, commands)
    for target in part.TARGETS
}
