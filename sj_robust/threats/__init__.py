"""Backdoors: poisoned training sets, what a network does with their triggers, and what finds or
removes them.

Imported when used: a report can be read (`threats.report`) without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sj_robust.lazy import imported_on_use

if TYPE_CHECKING:
    from sj_robust.threats.cleanse import Reversed as Reversed
    from sj_robust.threats.cleanse import reverse_triggers as reverse_triggers
    from sj_robust.threats.clustering import cluster_activations as cluster_activations
    from sj_robust.threats.matching import Matched as Matched
    from sj_robust.threats.matching import match_gradients as match_gradients
    from sj_robust.threats.measure import DETECTORS as DETECTORS
    from sj_robust.threats.measure import measure_threats as measure_threats
    from sj_robust.threats.poison import Poison as Poison
    from sj_robust.threats.poison import Poisoned as Poisoned
    from sj_robust.threats.poison import parse_poison as parse_poison
    from sj_robust.threats.poison import poisoned as poisoned
    from sj_robust.threats.pruning import Pruned as Pruned
    from sj_robust.threats.pruning import prune as prune
    from sj_robust.threats.report import Cleanse as Cleanse
    from sj_robust.threats.report import Clustering as Clustering
    from sj_robust.threats.report import PoisonFacts as PoisonFacts
    from sj_robust.threats.report import Pruning as Pruning
    from sj_robust.threats.report import Rates as Rates
    from sj_robust.threats.report import ThreatReport as ThreatReport
    from sj_robust.threats.trigger import Blended as Blended
    from sj_robust.threats.trigger import Patch as Patch
    from sj_robust.threats.trigger import Sine as Sine
    from sj_robust.threats.trigger import Trigger as Trigger
    from sj_robust.threats.trigger import parse_trigger as parse_trigger
    from sj_robust.threats.trigger import register_trigger as register_trigger
    from sj_robust.threats.trigger import stamped as stamped

_HOME = {
    "cleanse": ("Reversed", "reverse_triggers"),
    "clustering": ("cluster_activations",),
    "matching": ("Matched", "match_gradients"),
    "measure": ("DETECTORS", "measure_threats"),
    "poison": ("Poison", "Poisoned", "parse_poison", "poisoned"),
    "pruning": ("Pruned", "prune"),
    "report": ("Cleanse", "Clustering", "PoisonFacts", "Pruning", "Rates", "ThreatReport"),
    "trigger": (
        "Blended",
        "Patch",
        "Sine",
        "Trigger",
        "parse_trigger",
        "register_trigger",
        "stamped",
    ),
}

__all__ = [
    "DETECTORS",
    "Blended",
    "Cleanse",
    "Clustering",
    "Matched",
    "Patch",
    "Poison",
    "PoisonFacts",
    "Poisoned",
    "Pruned",
    "Pruning",
    "Rates",
    "Reversed",
    "Sine",
    "ThreatReport",
    "Trigger",
    "cluster_activations",
    "match_gradients",
    "measure_threats",
    "parse_poison",
    "parse_trigger",
    "poisoned",
    "prune",
    "register_trigger",
    "reverse_triggers",
    "stamped",
]

__getattr__ = imported_on_use(__name__, _HOME)
