"""list and info: what is in the zoo, and what a checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sj_robust.cli.common import Json, command, console, print_json, print_table
from sj_robust.cli.hub import calm

if TYPE_CHECKING:
    from sj_robust.hub.search import HubModel

Kind = Literal["ann", "snn"]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    command(app, "list", "sj-robust list --kind snn --hub")(list_models)
    command(app, "info", "sj-robust info resnet20-snn-t4.cifar10_linf_pgd")(info)


def list_models(
    hub: Annotated[bool, typer.Option("--hub", help="Also every model on the Hub that is tagged sj-robust.")] = False,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only models for this data set, such as cifar10.")] = None,
    kind: Annotated[Kind | None, typer.Option("--kind", help="Only source networks (ann) or spiking ones (snn).")] = None,
    as_json: Json = False,
) -> None:
    """List the models of the zoo with their measured accuracies, and those on the Hub with what their cards say."""
    from sj_robust.hub import list_hub
    from sj_robust.hub import list_models as entries

    if hub:
        calm()
    found = [entry for entry in entries() if (kind is None or entry.kind == kind) and dataset in (None, entry.dataset)]
    online = list_hub(dataset, kind) if hub else []
    if as_json:
        zoo = [{**entry.model_dump(mode="json"), "where": "zoo"} for entry in found]
        print_json([*zoo, *({**model.model_dump(mode="json"), "where": "hub", "results": None} for model in online)])
    elif not found and not online:
        print("There are no such models." if dataset or kind else "The zoo has no models yet.")
    else:
        rows = [_row(entry.model_dump()) for entry in found] + [_hub_row(model) for model in online]
        print_table(None, ["model", "kind", "data set", "T", "clean", "robust (joint)"], rows)


def info(
    name: Annotated[str, typer.Argument(help="A folder, a zoo model, or owner/name[@revision] on the Hub.", metavar="CHECKPOINT")],
    as_json: Json = False,
) -> None:
    """Show what a checkpoint is: architecture, settings, thresholds, how it was trained, what was measured."""
    from sj_robust.hub import zoo
    from sj_robust.hub.config import read_config

    if "/" in name:
        calm()
    folder = zoo.resolve(name)
    config = read_config(folder)
    results = _results(folder)
    if as_json:
        print_json({"folder": str(folder), "config": config.model_dump(mode="json"), "results": results})
        return
    settings = {key: value for key, value in config.settings.items() if key not in ("mean", "std")}
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
        "made with": _pairs(config.created_with),
        "measured": results and _measured(results),
    }
    width = max(map(len, facts))
    for key, value in facts.items():
        if value not in (None, ""):
            console().print(f"{key:<{width}}  {value}", markup=False, soft_wrap=True)


def _row(entry: dict[str, Any]) -> list[str]:
    results = entry["results"]
    clean = "not measured" if results is None else f"{100 * results['clean']['value']:.1f} %"
    robust = "" if results is None else ", ".join(_point(point) for point in results["robust"])
    return [entry["name"], entry["kind"], entry["dataset"] or "", str(entry["timesteps"] or ""), clean, robust]


def _hub_row(model: HubModel) -> list[str]:
    """Of a model on the Hub, in the columns of the zoo's; its time steps are in its config, which is not fetched for a list."""
    clean = [f"{100 * accuracy.value:.1f} %" for accuracy in model.accuracies if accuracy.eps == 0]
    robust = ", ".join(_point(accuracy.model_dump()) for accuracy in model.accuracies if accuracy.eps > 0)
    dataset = (model.dataset or "").split("/")[-1]
    return [model.name, model.kind, dataset, "", clean[0] if clean else "not measured", robust]


def _point(point: dict[str, Any]) -> str:
    return f"{100 * point['value']:.1f} % at {point['eps'] * 255:g}/255"


def _measured(results: dict[str, Any]) -> str:
    robust = ", ".join(_point(point) for point in results["robust"])
    images = f"{results['n']} images of {results['dataset']} {results['split']}"
    return f"{images}: clean {100 * results['clean']['value']:.1f} %; joint robust {robust or 'not measured'}"


def _results(folder: Path) -> dict[str, Any] | None:
    from sj_robust.hub.config import EVALUATION
    from sj_robust.hub.results import read_results

    results = read_results(folder / EVALUATION)
    return None if results is None else results.model_dump(mode="json")


def _pairs(facts: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items() if value is not None
    )
