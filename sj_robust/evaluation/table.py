"""The text table of a report."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from sj_robust.evaluation.words import eps_name, shown_verdict, telling_checks
from sj_robust.phrases import aligned
from sj_robust.text import visible

if TYPE_CHECKING:
    from sj_robust.evaluation.report import Report, RobustResult


def summary(report: Report) -> str:
    """See `Report.summary`."""
    lines = [report.heading(), f"clean accuracy  {report.clean}"]
    if report.joint:
        if report.settings.protocol:
            lines.append(f"protocol  {report.settings.protocol}")
        if report.settings.grid:
            lines.append("adversarial images of 8 bits; those of any values may break more")
        lines += [
            "",
            *_table(report),
            "",
            (
                f"cost  {report.seconds:.0f} s; the attacks took {report.forward_images} images"
                f" forward and {report.backward_images} backward"
            ),
        ]
    if report.stopped:
        lines += ["", f"stopped {report.stopped}"]
    if checks := telling_checks(report):
        width = max(len(check.name) for check in checks)
        lines += [
            "",
            *(f"{check.status:<7}  {check.name.ljust(width)}  {check.found}" for check in checks),
        ]
        lines += ["", str(shown_verdict(report, alone=False))]
    if report.roughness:
        lines += ["", *(f"roughness  {line}" for line in report.roughness.lines())]
    if report.activity:
        lines += ["", f"spikes per neuron and image  {report.activity.spikes_per_neuron:.3f}"]
    lines += [*([] if report.activity else [""]), f"energy  {report.energy or 'not measured'}"]
    return "\n".join(map(visible, lines))  # names may come from a stranger's report


def _table(report: Report) -> list[str]:
    attacks = report.settings.attacks
    several = len(report.settings.views) > 1
    header = [
        "eps",
        *(("after " if report.settings.survivors_only else "") + attack for attack in attacks),
        "joint" if report.stopped is None else "joint, at most",
    ]
    rows = [header + ["broke most"] * several]
    for joint in report.joint:
        results = {result.attack: result for result in report.robust if result.eps == joint.eps}
        cells = [_found(report, results[attack]) for attack in attacks]
        rows.append(
            [eps_name(joint.eps), *cells, str(joint.accuracy)]
            + [_strongest(list(results.values()))] * several
        )
    lines = aligned(rows)
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _found(report: Report, result: RobustResult) -> str:
    if report.stopped and not result.attempted:
        return "not run"
    return str(result.joint if report.settings.survivors_only else result.alone)


def _strongest(results: list[RobustResult], count: int = 3) -> str:
    """The views that broke most images at one eps, over all attacks. Among survivors alone, earlier
    views have the first pick."""
    broken: Counter[str] = Counter()
    for result in results:
        broken.update({view: found.broken for view, found in result.per_view.items()})
    return (
        ", ".join(f"{view} ({number})" for view, number in broken.most_common(count) if number)
        or "-"
    )
