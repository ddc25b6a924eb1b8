"""The model card: README.md of a checkpoint folder, filled from what was recorded there and nothing
else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from jinja2 import Environment, StrictUndefined

from sj_robust.card.figure import plot_accuracy
from sj_robust.card.metadata import OUR_TAGS, hub_dataset, metadata_of
from sj_robust.card.readme import BEGIN, END, keep_own
from sj_robust.checkpoint import zoo
from sj_robust.checkpoint.config import (
    ATTACKED,
    CARD,
    FIGURES,
    MAX_CONFIG_BYTES,
    RECIPE,
    SOURCE_EVALUATION,
    Config,
    read_bounded,
    read_config,
)
from sj_robust.checkpoint.results import (
    Point,
    Results,
    check_grid,
    headline,
    kept,
    lowest,
    read_certificates,
    read_report,
    read_reports,
    read_threats,
    results,
)
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.certified import Certified
from sj_robust.evaluation.report import Report, energy_name, eps_name
from sj_robust.evaluation.words import gradient_views, shown_verdict, telling_checks
from sj_robust.files import write_atomic
from sj_robust.reading import MAX_RECIPE_BYTES, parse_yaml
from sj_robust.text import visible
from sj_robust.threats.report import ThreatReport

TEMPLATE = Path(__file__).with_name("card.md.jinja")
PLOT = f"{FIGURES}/accuracy.png"
_BUILDER = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)", re.ASCII)  # MODULE:FUNCTION
THIS = "this model"
SOURCE = "ANN source"
KEPT = "kept of the source"


def write_card(folder: str | Path) -> Path:
    """Write README.md, and a plot where an evaluation is recorded, into a checkpoint folder.

    Every statement comes from config.json, the evaluations, evaluation_source.json, threats.json,
    certificates.json and recipe.yaml; what they do not hold is called "not recorded" or "not
    measured". The front matter is the Hub's metadata. A card that is there keeps what was written
    by hand around the generated part, and further metadata.

    Returns:
        The card's path.

    Raises:
        SJRobustError: one of these files is damaged, or the evaluation is not of these weights.
    """
    target = Path(folder)
    config = read_config(target)
    reports = read_reports(target)
    found = [results(report) for report in reports]
    zoo.check_evaluations(reports, config, str(target))
    source = read_report(target / SOURCE_EVALUATION)
    if source is not None:
        check_grid(source, target / SOURCE_EVALUATION)
    curves = {**columns(found), **({SOURCE: results(source)} if source else {})}
    if reports:
        plot_accuracy(curves, target / PLOT)
    text = render(
        config,
        reports,
        source,
        found,
        curves,
        threats=read_threats(target, config),
        certified=read_certificates(target, config),
        name=_name(target, config),
        recipe=_recipe(target),
        attacked=(target / ATTACKED).is_file(),
    )
    card = target / CARD
    if card.exists():
        text = keep_own(read_bounded(card, MAX_CONFIG_BYTES), text, OUR_TAGS)
    write_atomic(card, text)
    return card


def columns(found: Sequence[Results]) -> dict[str, Results]:
    """What a card says of the model, by its column: the lowest accuracies first, then evaluations
    of which they are not all."""
    if not found:
        return {}
    first = headline(found)
    beside = [one for one in found if one is not first]
    return {
        THIS: first,
        **{f"{THIS}, {'8-bit images' if one.grid else one.place}": one for one in beside},
    }


def collect_cards(folder: str | Path) -> list[Path]:
    """Write the card of every zoo model, freshly generated, to `folder`/NAME.md.

    Its figures are linked in the zoo.

    Returns:
        The paths.

    Raises:
        SJRobustError: as of `write_card`.
    """
    target, written = Path(folder), []
    for entry in zoo.list_models():
        text = write_card(entry.folder).read_text(encoding="utf-8")
        for figure in (PLOT, ATTACKED):
            there = Path(os.path.relpath(entry.folder / figure, target)).as_posix()
            text = text.replace(f"]({figure})", f"]({there})")
        path = target / f"{entry.name}.md"
        write_atomic(path, text)
        written.append(path)
    return written


def render(
    config: Config,
    reports: Sequence[Report],
    source: Report | None,
    measured: Sequence[Results],
    curves: Mapping[str, Results],
    *,
    threats: ThreatReport | None,
    certified: Sequence[Certified],
    name: str,
    recipe: dict[str, Any] | None,
    attacked: bool,
) -> str:
    """The text of a card; `measured` are the results of `reports`, `curves` these and the source's
    by the column they stand in, `attacked` whether there is a picture of an attacked image."""
    report, found = next(iter(reports), None), curves.get(THIS)
    further = [
        (label, one, shown_verdict(reports[measured.index(one)]))
        for label, one in curves.items()
        if label not in (THIS, SOURCE)
    ]
    robust = (
        "; ".join(dict.fromkeys(one.protocol for _, one in lowest(measured))) if measured else ""
    )
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, _Inert) else _line(value),
    )
    environment.filters.update(
        line=_line, spoken=_spoken, row=lambda cells: _Inert(" | ".join(map(_line, cells)))
    )
    shares = kept(report, source) if report and source else {}
    training = config.training or {}
    scratch = bool(training) and _from_scratch(recipe)
    channels, nodes = len(config.settings["mean"]), config.layers_by_node
    body = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        config=config,
        scratch=scratch,
        report=report,
        results=found,
        further=further,
        source=source,
        threats=threats,
        certified=certified,
        poison=config.poison and config.poison[0],
        plot=PLOT,
        attacked=ATTACKED if attacked else None,
        built=_BUILDER.fullmatch(config.model or ""),
        robust=robust or (found.protocol if found else ""),
        mixed=found is not None and found not in measured,
        verdict=report and shown_verdict(report, alone=False),
        checks=telling_checks(report) if report else [],
        training=training,
        columns=[*curves, *([KEPT] if shares else [])],
        rows=_rows(curves, shares),
        source_views=len(gradient_views(source.settings.views)) if source else 0,
        dataset=hub_dataset(found.dataset)[1] if found else "",
        layers=_layers(config, report),
        energy=_energy(report),
        settings={
            key: value
            for key, value in config.settings.items()
            if key not in ("mean", "std", "channels", "plan", "nodes")
        },
        nodes=nodes,
        per_channel=bool(config.settings.get("channels")),
        commands=_commands(config, recipe),
        before=[
            {key: value for key, value in earlier.items() if key not in ("command", "before")}
            for earlier in config.trainings[:-1]
        ],
        training_settings=training["config"] if isinstance(training.get("config"), dict) else {},
        shape=", ".join(map(str, config.input_size or (channels, "H", "W"))),
        example=", ".join(map(str, config.input_size or (channels, 32, 32))),
    )
    metadata = metadata_of(config, measured, name, converted=not scratch and not nodes).to_yaml()
    return str(ModelCard(f"---\n{metadata}\n---\n\n{BEGIN}\n{body}\n{END}\n"))


def _rows(curves: Mapping[str, Results], shares: Mapping[float, float]) -> list[list[str]]:
    """Rows (eps, accuracy of each, share kept of the source's where there are any) of the accuracy
    table; only figures of the same eps share a row."""
    columns = [
        {round(point.eps, 9): point for point in (found.clean, *found.robust)}
        for found in curves.values()
    ]
    every = sorted({eps for column in columns for eps in column})
    by_eps = {round(eps, 9): f"{100 * share:.0f} %" for eps, share in shares.items()}
    return [
        [
            "clean" if eps == 0 else eps_name(eps),
            *(_percent(column.get(eps)) for column in columns),
            *([by_eps.get(eps, "")] if shares else []),
        ]
        for eps in every
    ]


def _percent(point: Point | None) -> str:
    return "not measured" if point is None else str(point)


def _layers(config: Config, report: Report | None) -> list[tuple[str, str, str, str]]:
    """(layer, threshold, neurons, spikes per neuron) of a spiking network."""
    active = report.activity.layers if report is not None and report.activity is not None else {}
    thresholds = config.thresholds or {}
    rows = []
    for layer in dict.fromkeys([*config.settings.get("nodes", {}), *thresholds, *active]):
        threshold = f"{thresholds[layer]:.4g}" if layer in thresholds else "not recorded"
        measured = active.get(layer)
        neurons, spikes = (
            (str(measured.neurons), f"{measured.spikes_per_neuron:.3f}")
            if measured
            else ("not measured", "not measured")
        )
        rows.append((layer, threshold, neurons, spikes))
    return rows


def _energy(report: Report | None) -> list[list[str]]:
    """Rows (network, additions, multiplications, µJ) per image; empty where it was not measured."""
    found = report.energy if report is not None else None
    if found is None:
        return []
    costs = [(THIS, found.acs, found.macs, found.microjoules)]
    if (
        found.dense_acs is not None
        and found.dense_macs is not None
        and found.dense_microjoules is not None
    ):
        costs.append(
            (
                "the same with sums and means of spikes multiplied",
                found.dense_acs,
                found.dense_macs,
                found.dense_microjoules,
            )
        )
    if found.ann_macs is not None and found.ann_microjoules is not None:
        costs.append(("the same architecture as an ANN", 0, found.ann_macs, found.ann_microjoules))
    return [
        [name, f"{acs / 1e6:.3f} M", f"{macs / 1e6:.3f} M", energy_name(microjoules)]
        for name, acs, macs, microjoules in costs
    ]


def _commands(config: Config, recipe: dict[str, Any] | None) -> list[str]:
    """What to type to make the model again: the recipe's one command, else those recorded, in the
    order they were given."""
    if recipe is not None:
        return [f"sj-robust run {RECIPE}"]
    recorded = [
        config.source.get("training_command"),
        config.source.get("command"),
        *(training.get("command") for training in config.trainings),
    ]
    return [
        _code(" ".join(line.strip() for line in command.strip().splitlines()))
        for command in recorded
        if isinstance(command, str) and command.strip()
    ]


def _from_scratch(recipe: Mapping[str, Any] | None) -> bool:
    """Whether the recipe converted an untrained ANN, so that only its structure and calibrated
    thresholds were transferred."""
    ann = recipe.get("ann") if recipe else None
    return isinstance(ann, dict) and ann.get("scratch") is True


def _recipe(folder: Path) -> dict[str, Any] | None:
    path = folder / RECIPE
    if not path.exists():
        return None
    content = parse_yaml(read_bounded(path, MAX_RECIPE_BYTES), path, "save the checkpoint again")
    if not isinstance(content, dict):
        raise SJRobustError(
            f"{path} holds no mapping, expected a recipe: save the checkpoint again"
        )
    return content


def _name(folder: Path, config: Config) -> str:
    """What `load` takes: the zoo's name for a folder inside the zoo, else the folder's own."""
    resolved = folder.resolve()
    return (
        resolved.name
        if zoo.holds(folder)
        else (config.name if config.name == resolved.name else resolved.name)
    )


class _Inert(str):
    """Text that is harmless in Markdown as it stands. Every other value that the template writes is
    made so."""


def _line(value: object, longest: int = 300) -> _Inert:
    """A recorded value as inert Markdown: one line, no table bar, code fence, HTML, link or
    picture."""
    text = (
        visible(" ".join(str(value).split()), longest)
        .replace("|", "\\|")
        .replace("`", "'")
        .replace("<", "&lt;")
    )
    return _Inert(re.sub(r"\](?=[(\[:])", r"]\\", text))


def _code(command: str) -> _Inert:
    """A recorded command as a line of a block of code: there nothing is markup but the block's
    own end, and what is escaped or left out would be another command."""
    return _Inert(visible(command.replace("`", "'")))


def _spoken(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return (
            eps_name(value)
            if 0 < value < 0.2 and eps_name(value).endswith("/255")
            else f"{value:g}"
        )
    return _line(value)
