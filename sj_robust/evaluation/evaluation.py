"""One evaluation, from its settings to its report."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn

from sj_robust.allocator import keep_large_blocks
from sj_robust.attack import evaluation_mode
from sj_robust.attack.base import BALL_TOLERANCE
from sj_robust.data import ImageDataset
from sj_robust.data.classes import same_classes
from sj_robust.distributed import Team, processes
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import facts
from sj_robust.evaluation.activity import count_spikes
from sj_robust.evaluation.adversarial import keep_in
from sj_robust.evaluation.checks import run_checks
from sj_robust.evaluation.energy import estimate_energy
from sj_robust.evaluation.ensemble import attack_ensemble, searcher
from sj_robust.evaluation.extend import check_same, taken_over
from sj_robust.evaluation.grid import LIMIT, grid_radii, on_grid
from sj_robust.evaluation.identity import of_evaluation
from sj_robust.evaluation.journal import Journal
from sj_robust.evaluation.judge import (
    Judge,
    check_fit,
    count_passes,
    device_of,
    fitted,
    image_count,
    true_forward,
    warn_of_state,
)
from sj_robust.evaluation.options import Options
from sj_robust.evaluation.plan import (
    Run,
    check_classes,
    for_few_classes,
    make_plan,
    stages_of,
    view_names,
)
from sj_robust.evaluation.protocol import Stage, find_protocol
from sj_robust.evaluation.report import Accuracy, Activity, Check, PerImage, Report, Settings
from sj_robust.evaluation.roughness import measure_roughness
from sj_robust.evaluation.starts import Starts
from sj_robust.evaluation.words import EXACT, chance, verdict
from sj_robust.model import SpikingModel, expose
from sj_robust.model.unwrap import bare
from sj_robust.progress import bar
from sj_robust.signals import deferred_signals

_PATIENCE = timedelta(hours=12)  # one process may have the hard images


class Evaluation:
    """Prepares, attacks, checks and reports, in this order: each step leaves on `self` what the
    next ones use.

    The constructor settles what can be settled without a pass through the model, and raises
    SJRobustError where it cannot be.
    """

    def __init__(self, model: nn.Module, dataset: ImageDataset, options: Options) -> None:
        self.started = time.monotonic()
        options.check()
        self.options = options
        self.keep = None if options.adversarial is None else keep_in(options.adversarial)
        model = expose(model)
        self.itself = bare(model)
        self.dataset = fitted(dataset, model)
        self.total = image_count(self.dataset, options.max_images)
        named = options.protocol
        self.protocol = find_protocol(named) if isinstance(named, str) else named
        views = view_names(model, options.views)
        spiking = isinstance(model, SpikingModel)
        if self.protocol is None and not spiking:
            views = [EXACT]  # one turn of a rotation, not one for each view that it has not
        stages = stages_of(self.protocol, options.attacks, views, bool(options.transfer))
        self.stages = tuple(stage for stage in stages if stage.suits(spiking=spiking))
        self.model = model
        self.eps = (
            options.eps
            if options.grid is None
            else grid_radii(options.grid, options.eps, options.norm)
        )
        self.plan = self._planned(self.stages)
        _check_plan(self.plan, self.dataset, options.views is not None)
        where = device_of(model, options.device)
        warn_of_state(model)
        self.judge = Judge(
            model.to(where), self.dataset, where, options.batch_size, grid=options.grid is not None
        )
        for other in options.transfer.values():
            other.to(where)

    def run(self) -> Report:
        models = (self.model, *self.options.transfer.values())
        advice = "start it again, with a journal (--out or --record) it goes on where it stopped"
        with ExitStack() as stack:
            for context in (
                keep_large_blocks(),
                true_forward(self.model),
                *map(evaluation_mode, models),
                *(count_passes(each, self.judge) for each in models),
            ):
                stack.enter_context(context)
            team = stack.enter_context(processes(_PATIENCE, advice))
            with on_grid(models) if self.options.grid else nullcontext():
                self._prepare(team)
                if self.options.extend and self._says_all(self.options.extend):
                    return self.options.extend
                self._attack(team)
                checks = self._check() if team.first else []
            self._measure(team, checks)
        return self._report()

    def _planned(self, stages: Sequence[Stage]) -> list[list[Run]]:
        options = self.options
        return make_plan(
            self.model,
            stages,
            self.eps,
            norm=options.norm,
            restarts=options.restarts,
            transfer=options.transfer,
            cheap_first=self.protocol is None,
        )

    def _prepare(self, team: Team) -> None:
        """The clean pass, and what an earlier session or report has found already."""
        options, total = self.options, self.total
        self.num_classes = check_fit(self.judge, total)
        for name, other in options.transfer.items():
            judge = Judge(other, self.dataset, self.judge.device, options.batch_size)
            _check_transfer(name, judge, self.model, self.num_classes, total)
        self.replaced: dict[str, str] = {}
        if self.protocol and self.num_classes < 4:
            self.stages, self.replaced = for_few_classes(
                self.stages, self.num_classes, options.norm
            )
            self.plan = self._planned(self.stages)
        check_classes((run.attack for run in self.plan[0]) if self.plan else (), self.num_classes)
        self.show = False if team.rank else options.show_progress
        self.predicted, self.activity = _clean_pass(self.judge, total, self.show)
        self.correct = self.predicted == self.dataset.labels[:total].cpu()
        self.described = facts.model_facts(self.itself, self.num_classes)
        self.data = facts.dataset_facts(self.dataset, total)
        self.transfer = {
            name: facts.weights_sha256(other) for name, other in options.transfer.items()
        }
        path = None if options.journal is None else Path(options.journal)
        hands_on = any(run.from_best for runs in self.plan for run in runs)
        identity = of_evaluation(options, self.described, self.data, self.plan, self.transfer)
        self.journal = Journal.open(
            path,
            identity,
            team.rank if team.count > 1 else None,
            Starts(options.norm) if hands_on else None,
        )
        team.gather(None)  # nobody writes before all have read
        done = [image for unit in self.journal.units.values() for image in unit.seen]
        if max(done, default=0) >= self.total:
            raise SJRobustError(
                f"{path} keeps what was done of more images than the {self.total} of this"
                " evaluation: take as many, name another file, or remove it"
            )
        if options.extend is not None:
            check_same(options.extend, options, self.protocol, identity, self.total)
            # what a stopped one found, if anything, is in the journal
            tried = any(result.attempted for result in options.extend.robust)
            on = options.extend.stopped and (self.journal.units or not tried)
            if not on and not self._says_all(options.extend):
                seen = self.predicted.tolist()
                only = options.survivors_only
                units = taken_over(options.extend, self.plan, seen, survivors_only=only)
                self.journal.merge(units)

    def _says_all(self, earlier: Report) -> bool:
        """Whether a report of this evaluation leaves nothing to do."""
        return (
            not earlier.stopped
            and earlier.settings.survivors_only == self.options.survivors_only
            and earlier.per_image.predicted == self.predicted.tolist()
            and earlier.settings.check_images == self.options.check_images
            and earlier.settings.roughness_images == self.options.roughness_images
        )

    def _attack(self, team: Team) -> None:
        """Every process its share of the images; afterwards each knows the outcome of all."""
        options, notes, mine = self.options, self.journal, team.mine(self.total)
        self.earlier = sum(unit.seconds for unit in notes.units.values())
        if options.time_limit:
            self.judge.deadline = self.started + options.time_limit
        for_one = sum(run.attack.passes * len(run.seen) for runs in self.plan for run in runs)
        total = for_one * int((self.correct & mine).sum())
        with bar("attacks", total, unit="passes", show=self.show) as progress:
            search = searcher(
                self.judge,
                notes,
                progress,
                seed=options.seed,
                for_one=for_one,
                survivors_only=options.survivors_only,
                keep=self.keep,
            )
            try:
                attack_ensemble(
                    self.correct,
                    self.plan,
                    notes,
                    search,
                    survivors_only=options.survivors_only,
                    mine=mine,
                )
            finally:
                with deferred_signals(patient=True):
                    notes.save()
        for done in team.gather(notes.done):
            notes.merge(done)
        self.outcome = attack_ensemble(
            self.correct, self.plan, notes, None, survivors_only=options.survivors_only
        )
        units = notes.units.values()
        self.forward, self.backward = (
            sum(unit.forward for unit in units) + self.total,
            sum(unit.backward for unit in units),
        )

    def _check(self) -> list[Check]:
        """Whether the outcome can be believed."""
        if not (images := self.options.check_images):
            return []
        return run_checks(
            self.judge,
            self.plan,
            self.outcome,
            self.correct,
            images=images,
            seed=self.options.seed,
            classes=self.num_classes,
        )

    def _measure(self, team: Team, checks: list[Check]) -> None:
        """What costs little beside the attacks, on images as they are, by the first process for
        all."""
        rough, energy = None, None
        if team.first:
            options = self.options
            others = options.transfer if self.plan else {}  # else no view names them
            rough = measure_roughness(
                self.judge, self.correct, options.roughness_images, others, options.seed
            )
            self.judge.deadline = math.inf  # of the attacks; this takes seconds
            energy = estimate_energy(self.judge, self.total)
        self.checks, self.roughness, self.energy = team.from_first((checks, rough, energy))

    def _report(self) -> Report:
        options, outcome, protocol = (
            self.options,
            self.outcome,
            self.protocol and str(self.protocol),
        )
        clean = Accuracy.of(int(self.correct.sum()), self.total)
        first = self.plan[0] if self.plan else []
        names = [run.attack.name for run in first]
        seen = list(dict.fromkeys(view for run in first for view in run.sources or run.seen))
        stopped = (
            f"after {options.time_limit:.0f} s (time_limit): "
            f"{outcome.pending} attempts on images were not made"
            if outcome.pending
            else None
        )
        replaced = [
            f"With {self.num_classes} classes {protocol} runs {other} in place of {attack}."
            for attack, other in self.replaced.items()
        ]
        return Report(
            model=self.described,
            dataset=self.data,
            clean=clean,
            joint=outcome.joint,
            robust=outcome.robust,
            per_image=PerImage(
                label=self.dataset.labels[: self.total].tolist(),
                predicted=self.predicted.tolist(),
                broken_by=outcome.broken_by,
            ),
            activity=self.activity,
            energy=self.energy,
            roughness=self.roughness,
            checks=self.checks,
            verdict=verdict(self.checks, names, seen, stopped is None) if self.checks else None,
            stopped=stopped,
            limits=[
                *facts.limits(
                    names,
                    seen,
                    self.data,
                    options.seed,
                    options.restarts,
                    bool(self.checks),
                    stopped,
                    options.extend,
                ),
                *([LIMIT] if options.grid else []),
                *chance(clean, self.num_classes),
                *replaced,
            ],
            settings=Settings(
                protocol=protocol,
                norm=options.norm,
                grid=options.grid,
                restarts=options.restarts,
                eps=[runs[0].attack.eps for runs in self.plan],
                attacks=names,
                views=seen,
                transfer=self.transfer,
                survivors_only=options.survivors_only,
                batch_size=options.batch_size,
                check_images=options.check_images,
                roughness_images=options.roughness_images,
                seed=options.seed,
                ball_tolerance=BALL_TOLERANCE,
                device=facts.device_name(self.judge.device),
            ),
            forward_images=self.forward,
            backward_images=self.backward,
            seconds=self.earlier + time.monotonic() - self.started,
            versions=facts.versions(),
        )


def _check_plan(plan: list[list[Run]], dataset: ImageDataset, views_given: bool) -> None:
    """Raise SJRobustError for views that no attack looks through, and a ball that holds every
    image."""
    first = plan[0] if plan else []
    if first and views_given and all(run.attack.black_box for run in first):
        raise SJRobustError("none of the attacks takes gradients: leave views out, or use pgd10")
    diagonal = math.sqrt(math.prod(dataset.images.shape[1:]))
    for runs in plan:
        eps = runs[0].attack.eps if runs else 0.0
        if eps > diagonal:
            raise SJRobustError(
                f"eps is {eps:g}: under l2 the images of {dataset.name} are at most {diagonal:.3g} "
                f"apart, in units of the image range ({eps:g}/255, not {eps:g})"
            )


def _check_transfer(
    name: str, other: Judge, model: nn.Module, num_classes: int, total: int
) -> None:
    """Raise SJRobustError unless the other model takes the same images and tells the same classes
    apart."""
    if (found := check_fit(other, total)) != num_classes:
        raise SJRobustError(
            f"the model to transfer from, {name}, has {found} classes, this one "
            f"{num_classes}: expected the same"
        )
    if not same_classes(other.model, model):
        raise SJRobustError(
            f"the model to transfer from, {name}, has other classes, or in another "
            "order, than this one: expected the same"
        )


def _clean_pass(
    judge: Judge, total: int, show_progress: bool | None
) -> tuple[Tensor, Activity | None]:
    """Predictions int64 [total], and what the nodes did meanwhile if there are any."""
    model = judge.model
    counting = count_spikes(model) if isinstance(model, SpikingModel) else nullcontext()
    predicted = []
    with counting as spikes, bar("clean", total, show=show_progress) as progress:
        for chosen, x, _ in judge.batches(torch.arange(total)):
            predicted.append(judge.predict(x).cpu())
            progress.advance(len(chosen))
    activity = (
        spikes.activity(model.timesteps, total)
        if spikes is not None and isinstance(model, SpikingModel)
        else None
    )
    return torch.cat(predicted), activity
