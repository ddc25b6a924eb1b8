"""Whether the figures of a report follow from the outcomes it holds. A report may come from a
stranger, or have been edited by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sj_robust.errors import SJRobustError
from sj_robust.evaluation.protocol import PROTOCOLS
from sj_robust.evaluation.words import (
    OLD_OPENINGS,
    OPENINGS,
    ROTATION,
    TRANSFER,
    gradient_views,
    of_old,
    worst,
)


def check_figures(report: Any) -> None:
    """Raise SJRobustError, naming the first figure of a Report that contradicts another one of it.

    Accuracies have to be those of their counts, intervals theirs, and counts those of the outcomes
    of the images: what was right as it was, and which attack broke what at which eps. Costs, spikes
    and energy have to add up.
    """
    try:
        _check(report, report.dataset.evaluated)
    # integers of a thousand digits, settings of another type
    except (ArithmeticError, TypeError) as error:
        _refuse(str(error))


def _check(report: Any, images: int) -> None:
    if not 1 <= images <= report.dataset.size:
        _refuse(f"{images} of {report.dataset.size} images were evaluated")
    if (report.model.kind == "snn") != (report.model.timesteps is not None):
        _refuse(f"kind is {report.model.kind} with T={report.model.timesteps}")
    if (
        report.model.settings is not None
        and report.model.settings.get("timesteps") != report.model.timesteps
    ):
        _refuse(
            f"T is {report.model.timesteps} and {report.model.settings.get('timesteps')} in the"
            " settings"
        )
    _check_outcomes(report, images)
    _check_attacks(report)
    _check_protocol(report)
    _check_costs(report, images)
    _check_roughness(report)
    _check_verdict(report)


def _check_outcomes(report: Any, images: int) -> None:
    """Clean and joint accuracies against the images."""
    outcome, joint = report.per_image, report.joint
    if (len(outcome.label), len(outcome.predicted)) != (images, images):
        _refuse(
            f"{images} images were evaluated, {len(outcome.label)} labels and"
            f" {len(outcome.predicted)} predictions are there"
        )
    if not all(
        0 <= number < report.model.num_classes for number in (*outcome.label, *outcome.predicted)
    ):
        _refuse(f"a label or prediction is none of {report.model.num_classes} classes")
    right = [
        label == predicted
        for label, predicted in zip(outcome.label, outcome.predicted, strict=True)
    ]
    _check_accuracy("clean", report.clean, sum(right), images)
    eps = [result.eps for result in joint]
    ascending = eps == sorted(set(eps)) and all(0 <= value < math.inf for value in eps)
    if not (
        ascending and len(outcome.broken_by) == len(joint) and _same_list(eps, report.settings.eps)
    ):
        _refuse(
            f"the joint accuracies are at eps {eps[:5]}, the outcomes of images at"
            f" {len(outcome.broken_by)} and the settings name {report.settings.eps[:5]}"
        )
    attempts = {f"{result.attack} {view}" for result in report.robust for view in result.per_view}
    before: Sequence[str | None] = [None] * images
    for result, broken_by in zip(joint, outcome.broken_by, strict=True):
        where = f"at eps {result.eps:g}"
        if len(broken_by) != images:
            _refuse(f"{images} images were evaluated, {len(broken_by)} outcomes are there {where}")
        if unknown := next((by for by in broken_by if by is not None and by not in attempts), None):
            _refuse(f"an image was broken {where} by {unknown[:80]!r}, which was not run")
        if any(
            by is not None and not was_right for by, was_right in zip(broken_by, right, strict=True)
        ):
            _refuse(f"an image that is wrong as it is was broken {where}")
        if any(by is not None and by != now for by, now in zip(before, broken_by, strict=True)):
            _refuse(f"an image broken at a smaller eps has another outcome {where}")
        standing = sum(
            was_right and by is None for was_right, by in zip(right, broken_by, strict=True)
        )
        _check_accuracy(f"joint {where}", result.accuracy, standing, images)
        if result.carried != sum(by is not None for by in before):
            _refuse(f"{result.carried} images are carried over {where}")
        before = broken_by


def _check_attacks(report: Any) -> None:
    """Each attack's results against the images, in the order in which they were run."""
    names, eps = report.settings.attacks, report.settings.eps
    found = [(result.eps, result.attack) for result in report.robust]
    if found != [(radius, name) for radius in eps for name in names]:
        _refuse(
            f"results are there for {len(found)} attacks, the settings name {len(names)} at"
            f" {len(eps)} eps"
        )
    taken = {view for result in report.robust for view in _sources(result)}
    if report.robust and taken != set(report.settings.views):
        _refuse("the settings name other views than the results")
    if len(set(names)) != len(names):
        return  # outcomes do not tell which of two attacks of one name
    clean, images = report.clean.correct, report.dataset.evaluated
    standing, before = clean, Counter[str | None]()
    outcomes = iter(report.per_image.broken_by)
    for number, result in enumerate(report.robust):
        if number % len(names) == 0:
            by = Counter(next(outcomes))
            fresh, before = by - before, by
        where = f"{result.attack} at eps {result.eps:g}"
        broken = []
        for view, one in result.per_view.items():
            new, through = fresh[f"{result.attack} {view}"], f"{where} through {view}"
            broken.append(one.broken)
            given = standing if report.settings.survivors_only else clean
            if not (one.attempted == given or (report.stopped and 0 <= one.attempted <= given)):
                _refuse(f"{through} was given {one.attempted} images of {given}")
            if not (
                one.broken == new
                if report.settings.survivors_only
                else new <= one.broken <= one.attempted
            ):
                _refuse(f"{through} broke {one.broken} images, the outcomes say {new}")
            if one.alone is not None:
                _check_accuracy(f"{through} alone", one.alone, clean - one.broken, images)
            standing -= new
        _check_accuracy(where, result.joint, standing, images)
        if result.alone is not None:
            if not clean - sum(broken) <= result.alone.correct <= clean - max(broken, default=0):
                _refuse(f"{where} alone leaves {result.alone.correct} images")
            _check_accuracy(f"{where} alone", result.alone, result.alone.correct, images)
        if not (
            result.settings.get("eps", result.eps) == result.eps
            and result.settings.get("name", result.attack) == result.attack
        ):
            _refuse(f"the settings of {where} are of another attack")
        if (number + 1) % len(names) == 0 and standing != report.joint[
            number // len(names)
        ].accuracy.correct:
            _refuse(f"an image was broken at eps {result.eps:g} through a view that has no result")


def _check_protocol(report: Any) -> None:
    """Its attacks, and views that it fixes, where this release has it in that version."""
    named, classes = report.settings.protocol, report.model.num_classes
    protocol = {str(known): known for known in PROTOCOLS.values()}.get(named)
    if protocol is None or classes < 4:  # for few classes other attacks take the place of some
        return
    spiking = report.model.kind == "snn"
    stages = [stage for stage in protocol.stages if stage.suits(spiking=spiking)]
    attacks = [stage.attack for stage in stages]
    if report.settings.attacks != attacks:
        _refuse(f"{named} runs {', '.join(map(str, attacks))}, not {report.settings.attacks}")
    for number, result in enumerate(report.robust):
        expected = {view for view in stages[number % len(stages)].views if view != TRANSFER}
        taken = set(gradient_views(_sources(result)))
        if spiking and protocol.name != "autoattack" and taken != expected:
            _refuse(f"{result.attack} of {named} is through {', '.join(sorted(expected))}")


def _sources(result: Any) -> Sequence[str]:
    """The views that an attack took gradients from, where they took turns: those of the
    settings."""
    if list(result.per_view) != [ROTATION]:
        return list(result.per_view)  # an attack may call a setting of its own "sources"
    found = result.settings.get("sources")
    if not (isinstance(found, list) and len(set(found)) > 1):
        _refuse(f"{result.attack} at eps {result.eps:g} names no views that took turns")
    return found  # type: ignore[no-any-return]


def _check_costs(report: Any, images: int) -> None:
    """Passes, spikes and energy."""
    if report.robust and all(
        result.forward_images is not None and result.backward_images is not None
        for result in report.robust
    ):
        forward, backward = (
            sum(getattr(result, field) for result in report.robust)
            for field in ("forward_images", "backward_images")
        )
        # less than the sum where several processes had counted what they share more than once,
        # which was corrected in the total
        if not (
            images <= report.forward_images <= forward + images
            and 0 <= report.backward_images <= backward
        ):
            _refuse(
                f"{report.forward_images} forward and {report.backward_images} backward passes, the"
                f" attacks' add up to {forward + images} and {backward}"
            )
    if (activity := report.activity) is not None:
        layers, steps = activity.layers.values(), report.model.timesteps or 1
        # which may make other steps than T
        own_nodes = bool((report.model.settings or {}).get("nodes"))
        spikes = sum(layer.spikes_per_neuron * layer.neurons for layer in layers)
        good = (
            activity.neurons == sum(layer.neurons for layer in layers)
            and _close(activity.spikes_per_neuron * activity.neurons, activity.spikes_per_image)
            and (own_nodes or _close(spikes, activity.spikes_per_image))
            and all(
                _close(layer.rate * steps, layer.spikes_per_neuron)
                and 0 <= layer.rate
                and layer.neurons >= 0
                for layer in layers
            )
        )
        if not good:
            _refuse(
                f"{activity.spikes_per_image:g} spikes per image, {activity.spikes_per_neuron:g}"
                " per neuron: not those of the layers"
            )
    if (energy := report.energy) is not None:
        cost = energy.picojoules
        dense = (energy.dense_acs, energy.dense_macs, energy.dense_microjoules)

        def priced(acs: float | None, macs: float | None, microjoules: float | None) -> bool:
            return _close(
                ((macs or 0) * cost["MAC"] + (acs or 0) * cost.get("AC", 0.0)) / 1e6,
                microjoules or 0.0,
            )

        good = (
            1 <= energy.images <= report.dataset.size
            and "MAC" in cost
            and priced(energy.acs, energy.macs, energy.microjoules)
            and (energy.ann_macs is None) == (energy.ann_microjoules is None)
            and (energy.ann_macs is None or priced(0, energy.ann_macs, energy.ann_microjoules))
            and (dense == (None, None, None) or (None not in dense and priced(*dense)))
            and all(
                value >= 0
                for value in (
                    energy.macs,
                    energy.acs,
                    energy.ann_macs or 0,
                    dense[0] or 0,
                    dense[1] or 0,
                    *cost.values(),
                )
            )
        )
        if not good:
            _refuse(f"{energy.microjoules:g} µJ are not what the operations cost")


def _check_roughness(report: Any) -> None:
    """Shares against their counts; of the model itself on right images, of others on no more than
    these."""
    rough = report.roughness
    if rough is None:
        return
    named = {f"{TRANSFER}:{name}" for name in rough.others}
    if rough.points < 1 or not rough.model or not named <= set(report.settings.views):
        _refuse(
            f"the roughness is of {rough.points} points, {len(rough.model)} radii and of"
            f" {', '.join(sorted(named)) or 'no others'}"
        )
    radii, images = [found.eps for found in rough.model], rough.model[0].images
    for name, several in (("the model", rough.model), *rough.others.items()):
        if (
            [found.eps for found in several] != radii
            or radii != sorted(set(radii))
            or not 0 < radii[0] <= radii[-1] <= 1
        ):
            _refuse(f"the roughness of {name} is within {[found.eps for found in several][:5]}")
        for found in several:
            same = (
                found.images == several[0].images
                and 1 <= found.images <= images <= report.clean.correct
            )
            right = (
                found.of(found.eps, found.changed, found.images)
                if same and 0 <= found.changed <= found.images
                else None
            )
            if right is None or not all(
                map(
                    _close,
                    (found.value, found.low, found.high),
                    (right.value, right.low, right.high),
                )
            ):
                _refuse(
                    f"the roughness of {name}, {100 * found.value:.1f} %, is not {found.changed} of"
                    f" {found.images} images"
                )


def _check_verdict(report: Any) -> None:
    if (report.verdict is None) != (not report.checks):
        _refuse("the verdict is not that of the checks")
    if report.checks:
        found, old = worst(report.checks), of_old(report)
        opening = OLD_OPENINGS.get(found) if old else OPENINGS[found]
        if (
            opening is None
            or not report.verdict.startswith(opening)
            or ("can be trusted" in report.verdict and not old)
        ):
            _refuse(
                f"the verdict {report.verdict[:60]!r} does not follow from the checks, the worst of"
                f" which is {found!r}"
            )


def _check_accuracy(what: str, found: Any, correct: int, images: int) -> None:
    if (found.correct, found.total) != (correct, images):
        _refuse(
            f"{what}: {found.correct} of {found.total} images, the outcomes say {correct} of"
            f" {images}"
        )
    if not found.follows():
        _refuse(
            f"{what}: {100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}] are"
            f" not {correct} of {images} images"
        )


def _refuse(why: str) -> None:
    raise SJRobustError(f"the evaluation contradicts itself: {why}")


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def _same_list(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(map(_close, one, other))
