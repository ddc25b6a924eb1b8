"""The index of models: one YAML of facts per model, written from its checkpoint, read without
importing torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sj_robust.checkpoint.config import (
    CERTIFICATES,
    CONFIG,
    EVALUATIONS,
    FILES,
    MAX_CONFIG_BYTES,
    ORIGIN,
    RECIPE,
    SOURCE_EVALUATION,
    THREATS,
    WEIGHTS,
    Config,
    Name,
    Sha256,
    read_bounded,
    read_config,
)
from sj_robust.checkpoint.near import missing_folder
from sj_robust.checkpoint.results import (
    Results,
    check_belongs,
    headline,
    kept,
    read_report,
    read_reports,
    results,
)
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.report import Report  # no torch
from sj_robust.files import atomic_folder, sha256, write_atomic, zoo_root
from sj_robust.phrases import did_you_mean, few
from sj_robust.reading import parse_yaml
from sj_robust.settings import first_error
from sj_robust.text import visible

# the card and its figures are derived from these
VERIFIED = (CONFIG, WEIGHTS, *EVALUATIONS, SOURCE_EVALUATION, THREATS, CERTIFICATES, RECIPE)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _verified(file: str) -> str:
    if file not in VERIFIED:
        raise ValueError(f"{file!r} is none of {', '.join(VERIFIED)}")
    return file


class FileFacts(_Strict):
    """Size and content hash of one file of a checkpoint."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Share(_Strict):
    """A part of something, at one eps; of a few images it may be more than all of it."""

    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    value: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Entry(_Strict):
    """One model of the zoo. None where the checkpoint does not record a fact."""

    format_version: Literal[1] = 1
    name: Name
    kind: Literal["ann", "snn"]
    architecture: str | None
    timesteps: int | None
    parameters: Annotated[int, Field(ge=0)] | None = None
    dataset: str | None
    threat: str | None
    method: str | None
    # of the weights of the ANN that it was converted from
    ann_sha256: Sha256 | None = None
    checkpoint: Annotated[str, Field(pattern=r"^checkpoints/[A-Za-z0-9][A-Za-z0-9_.\-]{0,95}$")]
    recipe: (
        Annotated[
            str, Field(pattern=r"^checkpoints/[A-Za-z0-9][A-Za-z0-9_.\-]{0,95}/recipe\.yaml$")
        ]
        | None
    )
    files: dict[Annotated[str, AfterValidator(_verified)], FileFacts]
    results: list[Results]  # one for each protocol, the strongest first
    # of its ANN's robust accuracy, under the strongest protocol and on the images of both
    kept: list[Share] = []

    @property
    def strongest(self) -> Results | None:
        """The lowest accuracy that was found at each eps, mostly by the strongest protocol.

        None where nothing was measured.
        """
        return headline(self.results) if self.results else None

    @property
    def folder(self) -> Path:
        """The checkpoint folder on disk."""
        return root() / self.checkpoint

    def verify(self) -> None:
        """Compare every file with its recorded size and hash.

        Raises:
            SJRobustError: names the first that is missing or differs.
        """
        for name, facts in self.files.items():
            path = self.folder / name
            if not path.is_file():
                raise SJRobustError(
                    f"{path} of zoo model {self.name!r} is missing: install sj-robust again"
                )
            if path.stat().st_size != facts.bytes or sha256(path) != facts.sha256:
                raise SJRobustError(
                    f"{path} of zoo model {self.name!r} differs from the index: it was altered,"
                    " install sj-robust again"
                )


def root() -> Path:
    """The zoo folder: in the package of a wheel, beside it in a checkout."""
    return zoo_root()


def holds(folder: Path) -> bool:
    """Whether `folder` is the checkpoint folder of a zoo model."""
    return folder.resolve().parent == (root() / "checkpoints").resolve()


def list_models() -> list[Entry]:
    """Every model of the zoo, by name.

    Raises:
        SJRobustError: names an index file that is damaged.
    """
    return [_read(path) for path in sorted(root().glob("*.yaml"))]


def find(name: str) -> Entry:
    """The zoo model called `name`. Raises SJRobustError with the nearest names where there is
    none."""
    path = root() / f"{name}.yaml"
    if path.parent == root() and path.name in {entry.name for entry in root().glob("*.yaml")}:
        return _read(path)
    looked = f"looked in {Path.cwd()} and {root()}"
    raise SJRobustError(
        f"{name!r} is neither a checkpoint folder nor a zoo model ({looked}): {_nearest(name)}"
    )


def resolve(folder_or_name: str | Path) -> Path:
    """The checkpoint folder meant by a path, or else by the name of a zoo model, whose files are
    verified against the index. Raises SJRobustError where there is none."""
    path = Path(folder_or_name)
    # unlike Path.is_dir false for a name that no file can have; "" is no folder's
    if folder_or_name != "" and os.path.isdir(path):
        return path
    if (
        isinstance(folder_or_name, Path)
        or os.path.isfile(path)
        or "/" in folder_or_name
        or folder_or_name[:1] in (".", "~")
    ):
        raise SJRobustError(missing_folder(folder_or_name))
    entry = find(folder_or_name)
    entry.verify()
    return entry.folder


def add(folder: str | Path, name: str) -> Entry:
    """Write or refresh zoo/NAME.yaml from a checkpoint folder, and copy the folder into
    zoo/checkpoints unless it is there already.

    Every fact is read from the checkpoint's own files. Raises SJRobustError where the folder is no
    checkpoint of ours.
    """
    source, target = Path(folder).resolve(), root().resolve() / "checkpoints" / name
    config = read_config(source)
    present = [file for file in VERIFIED if (source / file).is_file()]
    files = {
        file: FileFacts(sha256=sha256(source / file), bytes=(source / file).stat().st_size)
        for file in present
    }
    if WEIGHTS not in files or files[WEIGHTS].sha256 != config.weights.sha256:
        raise SJRobustError(
            f"{source} does not hold the {WEIGHTS} that its {CONFIG} records: save the checkpoint"
            " again"
        )
    try:
        entry = Entry.model_validate(
            {
                "name": name,
                **_facts(source, config),
                "checkpoint": f"checkpoints/{name}",
                "files": files,
                "recipe": f"checkpoints/{name}/{RECIPE}" if RECIPE in files else None,
            }
        )
    except ValidationError as error:
        raise SJRobustError(
            f"{source} cannot enter the zoo as {name!r}: {first_error(error)}"
        ) from None
    if source != target:
        with atomic_folder(target) as temporary:
            for item in FILES - {ORIGIN}:
                _copy(source / item, temporary / item)
    write_atomic(
        root() / f"{name}.yaml", yaml.safe_dump(entry.model_dump(mode="json"), sort_keys=False)
    )
    return entry


def check_evaluations(reports: Sequence[Report], config: Config, where: str) -> None:
    """Raise SJRobustError where one of the evaluations of a checkpoint is of another network than
    its `config` describes.

    Reports made before they named all that decides a network leave a gap; of the zoo's own weights
    the zoo's config closes it.
    """
    for report in reports:
        check_belongs(report, config, where)
    if any(report.model.model_args is None for report in reports) and (
        ours := _of_weights(config.weights.sha256)
    ):
        for key in ("architecture", "model_args", "classes"):
            if (said := getattr(config, key)) != (right := getattr(ours, key)):
                raise SJRobustError(
                    f"the evaluation of {where} is of zoo model {ours.name}, whose {key} is"
                    f" {visible(right, 100)} and not {visible(said, 100)}: get the checkpoint"
                    " again, or evaluate it anew"
                )


def _of_weights(sha256: str) -> Config | None:
    """The config of the zoo model that has these weights."""
    for path in sorted(root().glob("*.yaml")):
        if (
            sha256 in read_bounded(path, MAX_CONFIG_BYTES)
            and (entry := _read(path)).files[WEIGHTS].sha256 == sha256
        ):
            return read_config(entry.folder)
    return None


def _facts(folder: Path, config: Config) -> dict[str, Any]:
    training = config.training or {}
    reports, source = read_reports(folder), read_report(folder / SOURCE_EVALUATION)
    shares = kept(reports[0], source) if reports and source else {}
    found, method = [results(report) for report in reports], _method(config)
    dataset = training.get("dataset") or (found[0].dataset if found else None)
    return {
        "kind": config.kind,
        "architecture": config.architecture,
        "timesteps": config.timesteps,
        "parameters": config.weights.parameters,
        "dataset": dataset,
        "threat": threat_of(config),
        "method": method,
        "ann_sha256": config.ann_sha256,
        "results": found,
        "kept": [{"eps": eps, "value": share} for eps, share in shares.items()],
    }


def threat_of(config: Config) -> str | None:
    """What the model was trained against: "linf", or "none" for natural training. None where it was
    not recorded."""
    method = _method(config)
    return None if method is None else "none" if method == "natural" else "linf"


def _method(config: Config) -> Any:
    settings = (config.training or {}).get("config")
    return settings.get("method") if isinstance(settings, dict) else None


def _read(path: Path) -> Entry:
    try:
        entry = Entry.model_validate(
            parse_yaml(read_bounded(path, MAX_CONFIG_BYTES), path, "install sj-robust again")
        )
    except ValidationError as error:
        raise SJRobustError(f"{path} is not a valid zoo entry: {first_error(error)}") from None
    if entry.name != path.stem:
        raise SJRobustError(
            f"{path} describes {entry.name!r}, expected {path.stem!r}: install sj-robust again"
        )
    return entry


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copyfile(source, target)


def _nearest(name: str) -> str:
    names = sorted(path.stem for path in root().glob("*.yaml"))
    if not names:
        return "the zoo is empty"
    return (
        did_you_mean(
            name, [*names, *(path.name for path in Path().iterdir() if path.is_dir())], cutoff=0.4
        )
        or f"the zoo has {few(names, 8)}"
    )
