"""list and info: what is in the zoo, and what a checkpoint is."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import compress
from math import isclose
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from sj_robust.cli.common import Json, command, console, print_json, show
from sj_robust.cli.hub import calm
from sj_robust.cli.options import zoo_names
from sj_robust.text import visible

if TYPE_CHECKING:
    from sj_robust.checkpoint.config import Config
    from sj_robust.checkpoint.zoo import Entry
    from sj_robust.evaluation.certified import Certified
    from sj_robust.hub.search import HubModel

Kind = Literal["ann", "snn"]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    command(app, "list", "sj-robust list --kind snn --hub")(list_models)
    command(app, "info", "sj-robust info resnet20-snn-t4.cifar10_linf_pgd")(info)


def list_models(
    hub: Annotated[
        bool, typer.Option("--hub", help="Also every model on the Hub that is tagged sj-robust.")
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Only models for this data set, such as cifar10."),
    ] = None,
    kind: Annotated[
        Kind | None,
        typer.Option("--kind", help="Only source networks (ann) or spiking ones (snn)."),
    ] = None,
    threat: Annotated[
        str | None, typer.Option("--threat", help="Only models trained against it: linf, or none.")
    ] = None,
    timesteps: Annotated[
        int | None,
        typer.Option("--timesteps", min=1, help="Only spiking networks of so many time steps."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models of the zoo with their measured accuracies, and those on the Hub with what
    their cards say.

    Accuracies are in percent, robust ones in l-infinity balls. Threat is what a model was trained
    against, energy an estimate for one image; – is not measured, or not recorded. --json has the
    intervals, other radii and the ANN's energy.
    """
    from sj_robust.checkpoint import list_models as entries
    from sj_robust.hub import list_hub

    if hub:
        calm()

    def wanted(model: Entry | HubModel) -> bool:
        return (kind, threat, timesteps) == (
            kind and model.kind,
            threat and model.threat,
            timesteps and model.timesteps,
        )

    found = [entry for entry in entries() if wanted(entry) and dataset in (None, entry.dataset)]
    online = [model for model in list_hub(dataset, kind) if wanted(model)] if hub else []
    if as_json:
        zoo = [{**entry.model_dump(mode="json"), "where": "zoo"} for entry in found]
        print_json(
            [
                *zoo,
                *(
                    {**model.model_dump(mode="json"), "where": "hub", "results": []}
                    for model in online
                ),
            ]
        )
    elif not found and not online:
        print(
            "There are no such models."
            if dataset or kind or threat or timesteps
            else "The zoo has no models yet."
        )
    else:
        _print([*map(_row, found), *map(_hub_row, online)])


def info(
    name: Annotated[
        str,
        typer.Argument(
            help="A folder, a zoo model, or owner/name[@revision] on the Hub.",
            metavar="CHECKPOINT",
            autocompletion=zoo_names,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Show what a checkpoint is: architecture, settings, thresholds, how it was trained, what was
    measured."""
    from sj_robust.catalog import locate
    from sj_robust.checkpoint.results import read_certificates, results

    if "/" in name:
        calm()
    checkpoint = locate(name)
    folder, config = checkpoint.folder, checkpoint.config
    found = [results(report) for report in checkpoint.reports()]
    certified = read_certificates(folder, config)
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "config": config.model_dump(mode="json"),
                "results": [one.model_dump(mode="json") for one in found],
                "certificates": [one.model_dump(mode="json") for one in certified],
            }
        )
        return
    settings = {
        key: value for key, value in config.settings.items() if key not in ("mean", "std", "nodes")
    }
    facts = {
        "folder": folder,
        "name": config.name,
        "kind": config.kind,
        "architecture": config.architecture or config.model,
        "classes": config.num_classes,
        "timesteps": config.timesteps,
        "parameters": config.weights.parameters,
        "weights": f"sha256 {config.weights.sha256[:16]}…",
        "settings": _pairs(settings),
        "thresholds": _pairs(config.thresholds or {}),
        "nodes": "; ".join(
            f"{', '.join(layers)}: {text}" for text, layers in config.layers_by_node.items()
        ),
        "made from": _pairs(_plain(config.source)),
        **_trained(config),
        "made with": _pairs(config.created_with),
        **{f"under {one.place}": _measured(one.model_dump(mode="json")) for one in found},
        **{f"certified, {one.name}": _certified(one) for one in certified},
    }
    width = max(map(len, facts))
    for key, value in facts.items():
        if value not in (None, ""):
            show(f"{key:<{width}}  {value}", 20_000)


def _certified(one: Certified) -> str:
    points = ", ".join(f"{one.radius(point.eps)}: {point.accuracy}" for point in one.points)
    return f"{points} of {one.images} images of {one.dataset.name} {one.dataset.split}"


COLUMNS = [
    "model",
    "kind",
    "dataset",
    "threat",
    "T",
    "parameters",
    "clean",
    "2/255",
    "4/255",
    "8/255",
    "protocol",
    "images",
    "energy, µJ",
]
# of a training's settings, what tells it from others
TRAINED = (
    "method",
    "eps",
    "attack_steps",
    "epochs",
    "batch_size",
    "lr",
    "schedule",
    "ema",
    "precision",
    "poison",
)
RADII = [float(Fraction(name)) for name in COLUMNS[7:10]]


def _row(entry: Entry) -> list[str]:
    found = entry.strongest
    if found is None:
        return _cells(entry, entry.dataset, None, {}, None, None, None)
    robust = {point.eps: point.value for point in found.robust if found.norm == "linf"}
    return _cells(
        entry,
        entry.dataset,
        found.clean.value,
        robust,
        found.short_protocol,
        found.n,
        found.microjoules,
    )


def _hub_row(model: HubModel) -> list[str]:
    at = {accuracy.eps: accuracy.value for accuracy in model.accuracies if accuracy.norm == "linf"}
    return _cells(
        model,
        model.dataset and model.dataset.split("/")[-1],
        at.get(0.0),
        at,
        model.protocol,
        None,  # a Hub's listing does not say
        model.microjoules,
    )


def _cells(
    model: Entry | HubModel,
    dataset: str | None,
    clean: float | None,
    robust: dict[float, float],
    protocol: str | None,
    images: int | None,
    microjoules: float | None,
) -> list[str]:
    from sj_robust.evaluation.report import energy_name

    at = [
        next((value for eps, value in robust.items() if isclose(eps, radius, rel_tol=1e-6)), None)
        for radius in RADII
    ]
    accuracies = ["–" if value is None else f"{100 * value:.1f}" for value in (clean, *at)]
    parameters = None if model.parameters is None else f"{model.parameters:,}"
    energy = None if microjoules is None else energy_name(microjoules)
    facts = [
        model.name,
        model.kind,
        dataset,
        model.threat,
        model.timesteps,
        parameters,
        *accuracies,
        protocol,
        None if images is None else f"{images:,}",
        energy,
    ]
    return ["–" if fact is None else visible(fact, 200) for fact in facts]


def _print(rows: list[list[str]]) -> None:
    """One line for each model where there is room; else names are broken at their signs and
    protocols at spaces, or left out."""
    room = console().width
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    narrow = sum(widths) + 2 * len(widths) > room
    least = {"kind": 95, "threat": 95, "protocol": 95, "images": 110}
    shown = [room >= least.get(column, 0) for column in COLUMNS]
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, int(not narrow), 0, 0),
        leading=int(narrow),
    )
    for name in compress(COLUMNS, shown):
        header = (
            {"parameters": "params", "energy, µJ": "energy\nµJ"}.get(name, name) if narrow else name
        )
        number = name in ("T", "parameters", "clean", *COLUMNS[7:10], "images", "energy, µJ")
        table.add_column(header, justify="right" if number else "left", no_wrap=name != "protocol")
    for row in rows:
        name = re.sub(r"(?<=[./])(?=.)", "\n", row[0]) if narrow else row[0]
        table.add_row(*map(Text, compress([name, *row[1:]], shown)))
    console().print(table)


def _point(point: dict[str, Any]) -> str:
    return f"{100 * point['value']:.1f} % at {point['eps'] * 255:g}/255"


def _measured(results: dict[str, Any]) -> str:
    from sj_robust.evaluation.report import energy_name

    robust = ", ".join(_point(point) for point in results["robust"])
    images = f"{results['n']} images of {results['dataset']} {results['split']}"
    energy = (
        "not measured"
        if results["microjoules"] is None
        else f"{energy_name(results['microjoules'])} µJ an image (estimate)"
    )
    return (
        f"{images}: clean {100 * results['clean']['value']:.1f} %; joint robust"
        f" {robust or 'not measured'}; energy {energy}"
    )


def _trained(config: Config) -> dict[str, str]:
    """A line for each training, the first one first."""
    lines: dict[str, str] = {}
    for training in config.trainings:
        settings = training.get("config")
        settings = _plain(settings) if isinstance(settings, dict) else {}
        run = {key: training.get(key) for key in ("dataset", "split", "images", "steps", "seconds")}
        line = _pairs({key: settings.get(key) for key in TRAINED} | _plain(run))
        lines[f"training {len(lines) + 1}" if len(config.trainings) > 1 else "training"] = line
    return lines


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if not isinstance(value, dict | list)}


def _pairs(facts: dict[str, Any]) -> str:
    from sj_robust.evaluation.report import eps_name

    return ", ".join(
        f"{key} {(eps_name if key == 'eps' else '{:.4g}'.format)(value)}"
        if isinstance(value, float)
        else f"{key} {value}"
        for key, value in facts.items()
        if value is not None
    )
