"""All stages of one model, from its source to a measured checkpoint; a stage whose output is there
and unchanged is skipped.

FOLDER/ann         the ANN's checkpoint, trained where the recipe says so (log in ann.training)
FOLDER/converted   the spiking network as converted
FOLDER/finetuned   the same after finetuning, where the recipe has it (finetuned.training)
FOLDER/evaluated   the reports ann.json and snn.json (and converted.json), on the same images
FOLDER/NAME        the result: checkpoint, both evaluations, card and recipe

Beside each lies NAME.stage.json: the settings and inputs it was made from, and the hashes of what
was made.

Of several processes (torchrun, accelerate) all share training and evaluation; the first one
decides, converts, writes and speaks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from sj_robust.card import write_card
from sj_robust.checkpoint import load_folder, record
from sj_robust.checkpoint.config import CARD, read_config
from sj_robust.data import load_dataset
from sj_robust.data.loader import calibration_indices
from sj_robust.distributed import Team, own_device, processes
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import Report, evaluate
from sj_robust.evaluation.identity import of_request
from sj_robust.evaluation.journal import remove_journal
from sj_robust.evaluation.judge import image_count
from sj_robust.evaluation.plan import check_names, stages_of
from sj_robust.evaluation.protocol import find_protocol
from sj_robust.files import check_within, only_one, sha256, write_atomic
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.neuron import Surrogate
from sj_robust.recipes import steps
from sj_robust.recipes.ledger import JOURNAL, Ledger
from sj_robust.recipes.network import begun_from, call_builder, facts_of, fingerprint, open_ann
from sj_robust.recipes.spec import Measurements, Recipe
from sj_robust.training.config import FREE_FIELDS
from sj_robust.training.loop import check_shares

_RESERVED = {"ann", "converted", "finetuned", "evaluated"}
# the first process may have much to convert; one that ends is noticed at once
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class RunResult:
    """Where the outcome lies, the reports, and the stages.

    Attributes:
        stages: which ran ("made") or were skipped ("kept").
    """

    checkpoint: Path
    ann: Path
    ann_report: Report
    snn_report: Report
    converted_report: Report | None
    stages: dict[str, str]


def run(
    recipe: Recipe,
    folder: str | os.PathLike[str],
    *,
    data: str | None = None,
    model: str | None = None,
    device: str | torch.device = "cpu",
    show_progress: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> RunResult:
    """Do all stages of `recipe` in `folder`.

    Those whose output is there and made from the same settings and inputs are skipped. A run that
    was interrupted, however, goes on when called again: finished stages are kept, training resumes
    from its last saved state. A stage whose settings changed is made again; what was there before
    is kept once, as STAGE.previous.

    Started by torchrun or accelerate, the processes share training and evaluation: the outcome is
    that of one process up to rounding, and a run may be resumed with another number of them. All
    have to see `folder`, which the first one writes, and each returns the result.

    Args:
        data: name or path that takes the place of `recipe.dataset`.
        model: consent to the code that the recipe names as `ann.model`, by the same
            "module:function"; without it nothing of it is imported.
        say: called with one line per stage, in the first process.

    Raises:
        SJRobustError: as the stages do; the recipe names code without that consent; `folder` holds
            files of these names that no run made.
    """
    check_consent(recipe.ann.model, model)
    if recipe.name in _RESERVED:
        raise SJRobustError(
            f"a recipe cannot be named {recipe.name!r}: that folder is a stage's, use"
            " ARCH-snn-tT.DATASET_THREAT_METHOD"
        )
    for training in filter(None, (recipe.ann.train, recipe.finetune)):
        check_shares(training)
    _check_attacks(recipe.evaluate)
    Surrogate.parse(recipe.convert.surrogate)
    check_within(folder)
    device = own_device(torch.device(device))
    with (
        processes(
            _PATIENCE, "start it again, it goes on from the last saved state", device
        ) as team,
        only_one(folder, "a run going on") if team.first else nullcontext(),
    ):
        show_progress = show_progress if team.first else False
        return _Run(
            recipe, Path(folder), data or recipe.dataset, device, show_progress, say, team
        ).all_stages()


@dataclass
class _Run:
    recipe: Recipe
    folder: Path
    data: str
    device: str | torch.device
    show: bool | None
    say: Callable[[str], None]
    team: Team

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.folder, self.team, self.say)

    @property
    def on(self) -> dict[str, Any]:
        return {"device": self.device, "show_progress": self.show}

    @property
    def named(self) -> dict[str, Any]:
        ann = self.recipe.ann
        return {"name": self.recipe.name, "builder": ann.model, "builder_args": ann.args}

    def all_stages(self) -> RunResult:
        recipe = self.recipe
        self.train = self.team.after_first(
            lambda: load_dataset(
                self.data, "train", image_size=recipe.image_size, resize=recipe.resize
            )
        )
        self.test = self.team.after_first(
            lambda: load_dataset(
                self.data, "test", image_size=recipe.image_size, resize=recipe.resize
            )
        )
        calibration_indices(
            self.train, recipe.convert.batches, recipe.convert.batch_size, seed=recipe.seed
        )
        if recipe.finetune:  # more images than there are: said before the training, not after it
            self.train.split_off(recipe.finetune.validation, recipe.finetune.seed)
        image_count(self.test, recipe.evaluate.max_images)
        self.begun = self.team.after_first(lambda: begun_from(recipe.ann))
        self.folder.mkdir(parents=True, exist_ok=True)
        ann = self.ledger.stage(
            "ann",
            {
                "ann": _settings(recipe.ann, {"name": True, "train": FREE_FIELDS}),
                "source": fingerprint(recipe.ann, self.begun),
                "seed": recipe.seed,
            },
            self.make_ann,
            trains_on=self.train,
            shared=True,
            ready=self.open_ann,
        )
        channels = len(read_config(ann).settings["mean"])
        self.train, self.test = self.train.in_channels(channels), self.test.in_channels(channels)
        converted = snn = self.ledger.stage(
            "converted",
            {"convert": _settings(recipe.convert), "seed": recipe.seed, "ann": _identity(ann)},
            self.make_converted,
            trains_on=self.train,
        )
        if recipe.finetune:
            snn = self.ledger.stage(
                "finetuned",
                {"finetune": _settings(recipe.finetune, FREE_FIELDS), "converted": _identity(snn)},
                self.make_finetuned,
                trains_on=self.train,
                shared=True,
            )
        ann_report = self.report("ann", ann, None)
        converted_report = (
            self.report("converted", converted, ann)
            if recipe.evaluate.converted and recipe.finetune
            else None
        )
        snn_report = self.report("snn", snn, ann)
        further = {
            kind: [
                self.report(kind, checkpoint, source, protocol)
                for protocol in recipe.evaluate.further or ()
            ]
            for kind, checkpoint, source in (("ann", ann, None), ("snn", snn, ann))
        }
        made_from = {
            "recipe": recipe.to_yaml(),
            "snn": _identity(snn),
            "reports": [
                sha256(self.folder / name)
                for name in self.ledger.states
                if name.startswith("evaluated/") and "converted" not in name
            ],
        }
        result = self.ledger.stage(
            recipe.name,
            made_from,
            lambda path: self.make_result(path, ann, snn, ann_report, snn_report, further),
        )
        if self.team.first and not (ann / CARD).exists():  # it was made again, to the same weights
            self.describe(ann, ann_report, further["ann"])
        return RunResult(result, ann, ann_report, snn_report, converted_report, self.ledger.states)

    def open_ann(self) -> None:
        settings = self.recipe.ann
        self.ann = self.team.after_first(
            lambda: open_ann(settings, self.train, self.begun, seed=self.recipe.seed)
        )

    def make_ann(self, path: Path) -> None:
        settings, train = self.recipe.ann, self.train.in_channels(len(self.ann.mean))
        steps.make_ann(
            self.ann, settings, train, path, self.begun, license=self.recipe.license, **self.on
        )

    def make_converted(self, path: Path) -> None:
        ann = self.load(self.folder / "ann")
        assert isinstance(ann, NormalizedClassifier)
        steps.make_converted(
            ann,
            self.recipe.convert,
            self.train,
            path,
            seed=self.recipe.seed,
            source=facts_of(read_config(self.folder / "ann")),
            **self.named,
            **self.on,
        )

    def make_finetuned(self, path: Path) -> None:
        snn, config = self.load(self.folder / "converted"), self.recipe.finetune
        assert isinstance(snn, SpikingClassifier)
        assert config is not None
        steps.make_finetuned(snn, config, self.train, path, **self.named, **self.on)

    def report(
        self, kind: str, checkpoint: Path, source: Path | None, further: str | None = None
    ) -> Report:
        """The evaluation of `checkpoint`, under the protocol `further` if given. `source`: the ANN
        of a spiking network, whose gradients a protocol may try."""
        settings = self.recipe.evaluate.model_dump(exclude={"views", "converted", "further"})
        # an ANN has its exact gradient only
        views = None if kind == "ann" or further else self.recipe.evaluate.views
        if kind == "converted":
            settings["check_images"] = 0
        if further:
            settings["protocol"] = further
        named = settings["protocol"]
        path = (
            self.folder / "evaluated" / f"{kind}-{further}.json"
            if further
            else self.folder / "evaluated" / f"{kind}.json"
        )
        journal = path.with_suffix(JOURNAL)

        def work(_: Path) -> None:
            report = evaluate(
                self.load(checkpoint),
                self.test,
                views=views,
                transfer=(
                    {"ann": self.load(source)}
                    if source and named and find_protocol(named).transfers
                    else None
                ),
                seed=self.recipe.seed,
                journal=journal,
                **self.on,
                **{**settings, "attacks": None if named else settings["attacks"]},
            )
            if self.team.first:
                write_atomic(path, report.to_json())
                remove_journal(journal)

        made_from = of_request(
            settings,
            views=views,
            seed=self.recipe.seed,
            model=_identity(checkpoint),
            source=_identity(source) if source else None,
            images=self.test.fingerprint,
        )
        self.ledger.stage(f"evaluated/{path.name}", made_from, work, shared=True)
        return Report.from_json(path.read_text(encoding="utf-8"))

    def make_result(
        self,
        path: Path,
        ann: Path,
        snn: Path,
        ann_report: Report,
        snn_report: Report,
        further: dict[str, list[Report]],
    ) -> None:
        model, config = self.load(snn), read_config(snn)
        steps.save_trained(
            model,
            path,
            self.train,
            config.training,
            license=self.recipe.license,
            recipe=self.recipe.to_yaml(),
            report=snn_report,
            source_report=ann_report,
            **self.named,
        )
        self.describe(ann, ann_report, further["ann"])
        for report in further["snn"]:
            record(path, report=report)
        write_card(path)

    def describe(self, ann: Path, report: Report, further: list[Report]) -> None:
        """The ANN's records and card."""
        record(ann, report=report, recipe=self.recipe.to_yaml())
        for one in further:
            record(ann, report=one)
        write_card(ann)

    def load(self, checkpoint: Path) -> NormalizedClassifier | SpikingClassifier:
        builder = self.recipe.ann.model
        return load_folder(
            checkpoint, model=call_builder(builder, dict(self.recipe.ann.args)) if builder else None
        )


def check_consent(named: str | None, model: str | None) -> None:
    """Let code run on the word of whoever runs a recipe, not on that of the recipe.

    It may be a stranger's.

    Raises:
        SJRobustError: `model` is not the code that is `named`.
    """
    if named == model:
        return
    if named is None:
        raise SJRobustError(
            f"model {model!r} was given, but the recipe names no code (ann.model): leave it away"
        )
    given = "was not given" if model is None else f"{model!r} was given"
    raise SJRobustError(
        f"the recipe runs the code {named!r} (ann.model), and consent to it {given}: look at it,"
        f" and if you trust it say so with --model {named} (model={named!r})"
    )


def _check_attacks(settings: Measurements) -> None:
    """Raise SJRobustError for a protocol, attack or view that is none: before the training, not
    after it."""
    for protocol in filter(None, (settings.protocol, *(settings.further or ()))):
        check_names(protocol)
    check_names(None, settings.attacks, settings.views, settings.norm)
    if settings.protocol:
        stages_of(find_protocol(settings.protocol), None, settings.views, False)


def _settings(part: BaseModel, labels: Any = None) -> dict[str, Any]:
    """What of the settings decides a stage's outcome: not `labels`, nor a setting that is not there
    (a later version may add some)."""
    return part.model_dump(mode="json", exclude=labels, exclude_none=True)


def _identity(checkpoint: Path) -> dict[str, Any]:
    """What a stage that starts from `checkpoint` depends on: its weights and structure, not its
    timings or versions."""
    config = read_config(checkpoint)
    return {"weights": config.weights.sha256, "settings": config.settings}
