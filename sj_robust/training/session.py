"""What surrounds the steps of a training: validations, saved states, the log, clocks, and the
random state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.backends import cudnn

from sj_robust.distributed import Team
from sj_robust.errors import SJRobustError
from sj_robust.progress import bar
from sj_robust.signals import deferred_signals
from sj_robust.training import average
from sj_robust.training.config import learning_rate
from sj_robust.training.log import Log, NoLog, draw_curves
from sj_robust.training.plan import Plan
from sj_robust.training.state import Groups, Progress, save_state
from sj_robust.training.validation import validate

# drawing takes a second: curves.png is remade at a validation only where the last is older than
# this
DRAW_SECONDS = 30


class Stopwatch:
    """Wall-clock seconds since it was made or restarted, on top of `before`."""

    def __init__(self, before: float = 0.0) -> None:
        self._start = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def restart(self) -> None:
        self._start = time.perf_counter()


class Session:
    """One run of the loop, from its start or a saved state to its end or an interruption.

    `steps` hands out the steps that are left, with what is due between them: a validation, which
    may make the weights of now the best, and saving the state. `note` takes what a step found.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        folder: Path,
        team: Team,
        progress: Progress,
        groups: Groups,
        scaler: torch.amp.GradScaler,
        interrupted: Callable[[], bool],
        show_progress: bool | None,
    ) -> None:
        self.model, self.plan, self.folder, self.team = model, plan, folder, team
        self.progress, self.groups, self.scaler = progress, groups, scaler
        self.config, self.interrupted, self.show = progress.config, interrupted, show_progress
        self.clock, self.training = Stopwatch(progress.seconds), Stopwatch()
        self.unsaved, self.undrawn = Stopwatch(), Stopwatch()
        self.unread: list[dict[str, Tensor]] = []  # facts of the last steps, still on the device
        self.open = ExitStack()

    def __enter__(self) -> Session:
        config, progress = self.config, self.progress
        images, done = self.plan.total * config.batch_size, progress.step * config.batch_size
        log = Log(self.folder, progress.log_bytes) if self.team.first else NoLog()
        self.log = self.open.enter_context(log)
        self.status = self.open.enter_context(bar("training", images, done=done, show=self.show))
        return self

    def __exit__(self, *error: object) -> None:
        self.open.close()

    def steps(self) -> Iterator[int]:
        """The number of every step that is left. Raises KeyboardInterrupt, after the state is
        saved, where a signal asks for the end."""
        while not self.progress.finished:
            if self.plan.validates(self.progress.step) and not self.progress.validated:
                self._validate()
            self._save_if_due()
            if not self.progress.finished:
                self.training.restart()
                yield self.progress.step
        if self.team.first:  # of a run that was killed after its last state too
            draw_curves(self.folder)

    def note(self, facts: dict[str, Tensor]) -> None:
        """Count a step; what it found goes to the log, every so many steps."""
        config, progress = self.config, self.progress
        self.unread.append(facts)
        progress.step += 1
        reading = progress.step % config.log_every == 0 or progress.step == self.plan.total
        if reading:
            self._read()
        # read first: on a GPU the steps only end there
        progress.training_seconds += self.training.seconds
        self.status.advance(config.batch_size)
        if not reading:
            return
        means = progress.means()
        shown = [name for name in ("loss", "clean", "robust") if name in means]
        self.status.note(" ".join(f"{name} {means[name]:.3f}" for name in shown))
        self.log.write(
            event="train",
            epoch=self.plan.epoch(progress.step),
            step=progress.step,
            **means,
            lr=learning_rate(config, progress.step - 1, self.plan.total),
            images_per_second=round(progress.images_per_second, 1),
            seconds=round(self.clock.seconds, 1),
        )

    def _validate(self) -> None:
        """On the averaged weights, where there are such; the best yet are kept."""
        self._read()
        weights, step = self.groups["model"], self.progress.step
        with average.swapped(weights, self.groups["ema"]):
            result = validate(
                self.model, self.plan.held_out, self.config, step, self.interrupted, self.team
            )
            if result and self.progress.add(result):
                average.copy(weights, self.groups["best"])
        if result:
            self.log.write(
                event="validation",
                epoch=self.plan.epoch(step),
                **result.model_dump(),
                seconds=round(self.clock.seconds, 1),
            )

    def _save_if_due(self) -> None:
        progress, first = self.progress, self.team.first
        # clocks and signals differ from process to process: what they ask for is agreed on
        late = first and self.unsaved.seconds > 60 * self.config.checkpoint_minutes
        stop, due = self.team.totals(self.interrupted(), late)
        if stop or due or progress.step % self.plan.per_epoch == 0 or progress.finished:
            self._read()
            with deferred_signals(patient=True):
                progress.log_bytes, progress.seconds = self.log.sync(), self.clock.seconds
                progress.scaler = self.scaler.state_dict()
                if first:
                    save_state(self.folder, progress, self.groups)
            self.unsaved.restart()
        if stop:
            raise KeyboardInterrupt
        old = self.undrawn.seconds > DRAW_SECONDS
        if first and progress.validated and old and not progress.finished:
            draw_curves(self.folder)
            self.undrawn.restart()

    def _read(self) -> None:
        """Fetch what the steps since the last call left behind, in one transfer, for the log.

        Raises SJRobustError, naming the step, where a loss was not finite. This comes before any
        state is saved or validated.
        """
        if not self.unread:
            return
        rows = torch.stack(
            [torch.stack([value.float() for value in facts.values()]) for facts in self.unread]
        ).tolist()
        first, names = self.progress.step - len(self.unread), list(self.unread[0])
        self.unread.clear()
        for step, values in enumerate(rows, start=first):
            facts = dict(zip(names, values, strict=True))
            if not math.isfinite(facts["loss"]):
                raise SJRobustError(
                    f"training diverged: the loss is {facts['loss']} at step {step}; the state in"
                    f" {self.folder} is the last good one. Lower lr and start again in another"
                    " folder"
                )
            self.progress.collect(facts)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Global random state restored afterwards; meanwhile cuDNN kernels that give the same bits each
    time."""
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        # TF32 as it is: without a word on it, flags would allow it
        cudnn.flags(enabled=True, deterministic=True, allow_tf32=cudnn.allow_tf32),
    ):
        yield
