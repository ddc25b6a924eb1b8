"""Save a model as a folder and load it back: validated JSON and safetensors, no pickle, whole or
not at all."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from torch import Tensor, nn

from sj_robust.checkpoint import zoo
from sj_robust.checkpoint.build import (
    Classifier,
    assemble,
    build_backbone,
    not_finite,
    own_arguments,
    weights_of,
)
from sj_robust.checkpoint.config import (
    BESIDE,
    CERTIFICATES,
    CONFIG,
    EVALUATION,
    GRID,
    RECIPE,
    SOURCE_EVALUATION,
    STRONGEST_FIRST,
    THREATS,
    WEIGHTS,
    Config,
    read_config,
)
from sj_robust.checkpoint.describe import describe
from sj_robust.checkpoint.files import check_replaceable
from sj_robust.checkpoint.results import (
    certificates_with,
    check_belongs,
    protocol_of,
    read_report,
    read_reports,
)
from sj_robust.checkpoint.tensors import as_state, read_tensors, tensor_bytes
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.certified import Certified
from sj_robust.evaluation.facts import state_sha256
from sj_robust.files import atomic_folder, write_atomic
from sj_robust.model import NormalizedClassifier, PurifiedANN, PurifiedSNN, SpikingModel, expose
from sj_robust.model.unwrap import bare, unwrap
from sj_robust.phrases import few
from sj_robust.reading import MAX_RECIPE_BYTES, read_text


def save(
    model: Classifier,
    folder: str | Path,
    *,
    recipe: Any = None,
    report: Any = None,
    training: Any = None,
    name: str | None = None,
    source_report: Any = None,
    classes: Sequence[str] | None = None,
    input_size: Sequence[int] | None = None,
    builder: str | None = None,
    builder_args: Mapping[str, Any] | None = None,
    license: str | None = None,
    base_model: str | None = None,
) -> Config:
    """Write a model as a checkpoint folder, whole or not at all.

    An older checkpoint there is replaced. Before anything is written the network is rebuilt from
    its config and compared on one image; a network that timm cannot rebuild is saved with a
    warning, and `load` then needs `model=`.

    Args:
        model: a SpikingClassifier, one of `from_spikingjelly`, or the NormalizedClassifier of an
            ANN (whose folder `timm.create_model("local-dir:...")` reads too).
        recipe: what `sj-robust run` was given (text, path, mapping or pydantic model).
        report: the `evaluate` Report of this very model.
        training: a TrainResult or a mapping of facts.
        name: for the card, the folder's name when absent.
        source_report: the Report of the ANN it came from.
        classes: names by label.
        input_size: [C,H,W], known for a timm network.
        builder: "module:function" that made a user's own network, recorded for the reader.
        builder_args: what it was called with, which `load` gives to the function of `model=`.
        license: for the card.
        base_model: "owner/name" on the Hub, for the card.

    Returns:
        The config as written.

    Raises:
        SJRobustError: the folder holds anything that is not a checkpoint of ours, the weights are
            not finite, or the report is of another model.
    """
    model = bare(expose(model))  # type: ignore[assignment]  # checked below
    if isinstance(model, PurifiedANN | PurifiedSNN):
        raise SJRobustError(
            "save takes a network without its purifier: save the purifier with save_purifier, and"
            " the network by itself"
        )
    if not isinstance(model, NormalizedClassifier):  # spiking ones are, too
        raise SJRobustError(
            f"save got a {type(model).__name__}, expected what convert or from_spikingjelly"
            " returned, or NormalizedClassifier(network, mean, std)"
        )
    target = Path(folder)
    check_replaceable(target)
    tensors = {
        key: tensor.detach().cpu().contiguous().clone()
        for key, tensor in weights_of(model).state_dict().items()
    }
    if bad := not_finite(tensors):
        raise SJRobustError(
            f"the model has NaN or infinite weights ({few(bad, 5, '; ')}), expected"
            " finite ones: did training diverge?"
        )
    content = tensor_bytes(tensors)
    config = describe(
        model,
        tensors,
        content,
        name=name or _usable_name(target),
        classes=classes,
        input_size=input_size,
        builder=builder,
        builder_args=builder_args,
        training=training,
        license=license,
        base_model=base_model,
    )
    texts = _records(config, report, source_report, recipe, "the one to be saved")
    if report is not None and report.settings.grid:
        raise SJRobustError(
            "the report is of 8-bit images: save the model with one without grid=, and record this"
            " one beside it"
        )
    with atomic_folder(target) as temporary:
        (temporary / WEIGHTS).write_bytes(content)
        (temporary / CONFIG).write_text(_config_text(config), encoding="utf-8")
        for file, text in texts.items():
            (temporary / file).write_text(text, encoding="utf-8")
    return config


def record(
    folder: str | Path,
    *,
    report: Any = None,
    source_report: Any = None,
    threats: Any = None,
    certified: Certified | None = None,
    recipe: Any = None,
) -> list[Path]:
    """Add what became known after `save` to a checkpoint folder; weights stay as they are.

    That is an evaluation, its source's, what `measure_threats` found, a certificate, the recipe. A
    certificate replaces that of the same method, an evaluation that of the same protocol.
    evaluation.json is the strongest protocol's, and the others lie beside it, as
    evaluation_PROTOCOL.json; that of 8-bit images, evaluation_8bit.json, beside any of these. The
    zoo's index is `Checkpoint.record`'s business.

    Returns:
        The files written, the report's first.

    Raises:
        SJRobustError: the folder is no checkpoint, the report is of another model, or one of 8-bit
            images has none to stand beside.
    """
    target, config = Path(folder), read_config(Path(folder))
    texts = _records(config, report, source_report, recipe, str(target))
    if threats is not None:
        check_belongs(threats, config, str(target))
        texts[THREATS] = threats.to_json()
    if certified is not None:
        check_belongs(certified, config, str(target))
        texts[CERTIFICATES] = certificates_with(certified, target, config).to_json()
    if report is not None:
        texts = _beside_others(target, config, report) | {
            file: text for file, text in texts.items() if file != EVALUATION
        }
    for file, text in reversed(texts.items()):  # what moves aside is safe before its place is taken
        write_atomic(target / file, text)
    return [target / file for file in texts]


def load_folder(
    folder: Path,
    config: Config | None = None,
    *,
    model: nn.Module | Callable[..., nn.Module] | None = None,
) -> Classifier:
    """The classifier saved in a folder.

    Args:
        config: of the folder, where it has been read already.
        model: as of `sj_robust.load`.

    Raises:
        SJRobustError: as of `sj_robust.load`.
    """
    config = config or read_config(folder)
    tensors = read_tensors(folder / WEIGHTS, config)
    if model is not None:
        backbone = model if isinstance(model, nn.Module) else model(**own_arguments(model, config))
        backbone = unwrap(backbone)
        backbone = backbone.backbone if isinstance(backbone, NormalizedClassifier) else backbone
    elif config.architecture is None:
        made_by = (
            f"it was made by {config.model!r}" if config.model else "what made it was not recorded"
        )
        raise SJRobustError(
            f"{folder} holds your own network ({made_by}): name the function that builds it,"
            f" --model {config.model or 'MODULE:FUNCTION'} or load(..., model=...)"
        )
    else:
        backbone = build_backbone(config, tensors)
    classifier = assemble(config, backbone, tensors, str(folder / WEIGHTS))
    # last: what does not fit is told with its names before
    _check_state(tensors, config, folder / WEIGHTS)
    _check_described(classifier, config, folder / CONFIG)
    _check_evaluations(folder, config)
    return classifier


def _check_state(tensors: Mapping[str, Tensor], config: Config, path: Path) -> None:
    """Raise SJRobustError unless the tensors of `path` are those whose hash an evaluation names."""
    if len(tensors) != config.weights.tensors:
        raise SJRobustError(
            f"{path} has {len(tensors)} tensors, {CONFIG} records {config.weights.tensors}: it was"
            " altered, get it again"
        )
    if (found := state_sha256(as_state(tensors, config))) != config.weights.state_sha256:
        raise SJRobustError(
            f"{path} holds the weights {found[:12]}…, {CONFIG} records"
            f" {config.weights.state_sha256[:12]}… as what was measured: they are another"
            " network's, get the checkpoint again"
        )


def _check_evaluations(folder: Path, config: Config) -> None:
    """Raise SJRobustError where an evaluation says that it was made with another network than the
    config describes: one of the two was altered. Without it, or where it cannot be read, which a
    warning says, the network itself is not in doubt.
    """
    try:
        reports = read_reports(folder)
    except SJRobustError as error:
        warnings.warn(f"{error}. Until then what was measured counts for nothing", stacklevel=3)
        return
    zoo.check_evaluations(reports, config, str(folder))


def _check_described(classifier: Classifier, config: Config, path: Path) -> None:
    """Raise SJRobustError where the config tells other figures of the network than it has."""
    found = sum(parameter.numel() for parameter in classifier.parameters())
    if found != config.weights.parameters:
        raise SJRobustError(
            f"{path} records {config.weights.parameters} parameters, the network has {found}: it"
            " was altered, get it again"
        )
    if isinstance(classifier, SpikingModel) and config.thresholds is not None:
        thresholds = classifier.thresholds()
        if thresholds.keys() != config.thresholds.keys():
            raise SJRobustError(
                f"{path} records thresholds of other layers than the network has: it was altered,"
                " get it again"
            )
        # a mean over channels is rounded otherwise on another processor
        for name, value in thresholds.items():
            if not math.isclose(
                value, recorded := config.thresholds[name], rel_tol=1e-4, abs_tol=1e-9
            ):
                raise SJRobustError(
                    f"{path} records the threshold {recorded:g} of {name}, the network has"
                    f" {value:g}: it was altered, get it again"
                )


def check_weights(folder: Path, config: Config) -> None:
    """Raise SJRobustError where the weights of a checkpoint folder are not those its config
    describes, as far as they tell without a network to hold them."""
    _check_state(read_tensors(folder / WEIGHTS, config), config, folder / WEIGHTS)


def _records(
    config: Config, report: Any, source_report: Any, recipe: Any, where: str
) -> dict[str, str]:
    """What is known of a checkpoint beside its weights: {file name: text}."""
    texts = {}
    if report is not None:
        check_belongs(report, config, where)
        texts[EVALUATION] = report.to_json()
    if source_report is not None:
        texts[SOURCE_EVALUATION] = source_report.to_json()
    if recipe is not None:
        texts[RECIPE] = _recipe_text(recipe)
    return texts


def _beside_others(folder: Path, config: Config, report: Any) -> dict[str, str]:
    """Which files the evaluations go to: {file name: text}, that of `report` first."""
    try:
        there = read_report(folder / EVALUATION)
        if there is not None:
            check_belongs(there, config, str(folder))
    except SJRobustError:
        there = None  # damaged, or of other weights: worth nothing
    if report.settings.grid:
        if there is None:
            raise SJRobustError(
                f"{folder} has no evaluation that one of 8-bit images could stand beside: record"
                " one without --grid first"
            )
        return {BESIDE[GRID]: report.to_json()}
    new = protocol_of(report.settings.protocol)
    old = new if there is None else protocol_of(there.settings.protocol)
    if there is None or old == new:
        return {EVALUATION: report.to_json()}
    if STRONGEST_FIRST.index(new) < STRONGEST_FIRST.index(old):
        return {EVALUATION: report.to_json(), BESIDE[old]: there.to_json()}
    return {BESIDE[new]: report.to_json()}


def _recipe_text(recipe: Any) -> str:
    if isinstance(recipe, str):
        return recipe
    if isinstance(recipe, Path):
        return read_text(recipe, MAX_RECIPE_BYTES)
    plain = recipe.model_dump(mode="json") if isinstance(recipe, BaseModel) else recipe
    return yaml.safe_dump(plain, sort_keys=False)


def _config_text(config: Config) -> str:
    content = config.model_dump(mode="json")
    if content["pretrained_cfg"] is None:
        del content["pretrained_cfg"]
    else:
        content["pretrained_cfg"] = {
            key: value for key, value in content["pretrained_cfg"].items() if value is not None
        }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _usable_name(folder: Path) -> str | None:
    name = folder.resolve().name
    return name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,95}", name) else None
