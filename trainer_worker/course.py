"""Plan a training run: its length, its learning rate from step to step, and when it may end early."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from adapter_store.jobs.hyperparameters import Hyperparameters

LEAST_IMPROVEMENT = 0.02
"""A validation loss that falls by less than this share counts as a plateau."""
LEAST_EPOCHS, LEAST_STEPS, LEAST_STEPS_AGAIN = 4, 160, 20
"""What is planned when nobody says: small batches are walked over more often, unless the task is known."""
ESCAPED = 0.85
"""Under this share of the chance loss, pictures have begun to matter."""
PLATEAU_SHARE = 1 / 3
"""Part of the plan that may pass at chance; further steps there are not counted, at most once the plan."""
DECAY_SHARE = 0.35
"""Part of the run in which the rate falls to 0: live tensors come to rest and theta* catches up."""
LEARNED = 0.01
"""Mean token loss of answers that are known: each token is given with 99 %, and gradients all but vanish."""
STEADY = 3
"""Validations in a row that must reach the target: early in a run one may do so by luck."""


@dataclass(frozen=True, slots=True)
class Step:
    """Numbers of one optimizer step, for progress reports."""

    step: int
    total: int
    loss: float
    learning_rate: float
    samples_per_second: float
    eta_seconds: float
    validation: float | None
    alphas: Mapping[str, list[float]]


class Course:
    """Plan a run: how long, how fast (warm-up, constant, decay), and when to stop early.

    A plateau of the validation score starts the decay at once instead of ending the run abruptly. Where no
    passes are named, so does a pass at the loss of known answers, once what is served knows them as well and
    validation gains no more. Not so the plateau at the loss of guessing by frequency, on which many runs
    begin: they leave it sooner or later.
    """

    def __init__(
        self,
        settings: Hyperparameters,
        steps_per_epoch: int,
        *,
        again: bool = False,
        chance: float | None = None,
    ) -> None:
        """Plan ``steps_per_epoch`` steps a pass.

        Args:
            settings: passes, limits and patience.
            steps_per_epoch: optimizer steps of one pass over the samples.
            again: the increments have learned before.
            chance: mean token loss of always answering by frequency; None if that says nothing.
        """
        self._settings = settings
        least = LEAST_STEPS_AGAIN if again else LEAST_STEPS
        epochs = settings.epochs or max(LEAST_EPOCHS, least / max(steps_per_epoch, 1))
        planned = max(1, math.ceil(epochs * steps_per_epoch))
        self.total = min(planned, settings.max_steps) if settings.max_steps else planned
        self._warmup = max(1, round(settings.warmup_ratio * self.total))
        self._validate_every = max(4, steps_per_epoch)
        self._began = time.monotonic()
        self._decay_from: float | None = None
        self._decay_until: float | None = None
        self._best = -1.0
        self._best_loss = math.inf
        self._stale = self._right = self._calm = 0
        self._confirm_every = max(steps_per_epoch, LEAST_STEPS_AGAIN // 2)
        self._by_mastery = False
        self._samples = 0
        self._chance = chance
        self._smooth_loss = math.inf if chance is None else 2 * chance
        self._escaped = chance is None or settings.epochs > 0  # passes that are named are kept to
        self._waited = 0
        self.steps = 0

    def seconds(self) -> float:
        """Return the time since the run began."""
        return time.monotonic() - self._began

    def progress(self) -> float:
        """Return the used share of the budget, by steps or by time, whichever is further."""
        by_steps = (self.steps - self._waited) / self.total
        limit = self._settings.max_seconds
        return max(by_steps, self.seconds() / limit) if limit and self.steps else by_steps

    def done(self) -> bool:
        """Return whether the run is over."""
        if self._settings.max_steps and self.steps >= self._settings.max_steps:
            return True
        return self.progress() >= (self._decay_until or 1.0)

    def rate(self) -> float:
        """Return the factor on the peak rate: linear up, constant, linear down to almost 0."""
        up = min(1.0, (self.steps + 1) / self._warmup)
        start, end = self._decay_from or 1.0 - DECAY_SHARE, self._decay_until or 1.0
        down = (end - self.progress()) / max(end - start, 1e-9)
        return max(0.0, min(up, down, 1.0)) + 1e-4

    def step(self, samples: int, loss: float) -> None:
        """Count an optimizer step on ``samples`` samples of that mean token loss."""
        self.steps += 1
        self._samples += samples
        self._calm = self._calm + 1 if loss < LEARNED else 0
        self._recall()
        if self._chance is None or self._escaped:
            return
        self._smooth_loss = 0.8 * self._smooth_loss + 0.2 * loss
        self._escaped = self._smooth_loss < ESCAPED * self._chance
        if not self._escaped and self.progress() >= PLATEAU_SHARE and self._waited < self.total:
            self._waited += 1

    def time_to_validate(self) -> bool:
        """Return whether a validation is due after this step."""
        return self.steps % self._validate_every == 0

    def note(self, accuracy: float, loss: float) -> None:
        """Take in a validation score; decay once neither value improves, or while the target is reached."""
        less = self._best_loss > LEARNED and loss < self._best_loss * (1 - LEAST_IMPROVEMENT)
        improved = accuracy > self._best + 1e-9 or less
        self._stale = 0 if improved else self._stale + 1
        self._best = max(self._best, accuracy)
        self._best_loss = min(self._best_loss, loss)
        if not self._escaped and self._waited < self.total:
            self._stale = 0
        self._right = self._right + 1 if accuracy >= self._settings.target_accuracy else 0
        plateau = self._settings.patience and self._stale >= self._settings.patience
        reached = self._right >= STEADY
        self._recall()
        if plateau or reached:
            self._decay(by_mastery=reached)

    def time_to_confirm(self) -> bool:
        """Return whether the answers seem to be known: see whether what is served knows them."""
        if self._settings.epochs or not self._settings.patience or self._decay_from is not None:
            return False
        gains = math.isfinite(self._best_loss) and not self._stale
        return self._calm > 0 and self._calm % self._confirm_every == 0 and not gains

    def confirm(self, loss: float) -> None:
        """Take in the token loss of theta* on what is learned; decay if that is known."""
        if loss < LEARNED:
            self._decay(by_mastery=True)

    def _decay(self, *, by_mastery: bool) -> None:
        if self._decay_from is None and self.progress() < 1.0 - DECAY_SHARE:
            self._decay_from, self._by_mastery = self.progress(), by_mastery
            self._decay_until = min(1.0, self._decay_from * (1 + DECAY_SHARE / (1 - DECAY_SHARE)))

    def _recall(self) -> None:
        """Return to the plan if what seemed to be known is not known after all."""
        if self._by_mastery and not (self._right or self._calm):
            self._decay_from = self._decay_until = None
            self._by_mastery = False

    def describe(
        self, loss: float, rate: float, validation: float | None, alphas: Mapping[str, list[float]]
    ) -> Step:
        """Return the numbers of the last step, with what is left of the run."""
        elapsed = self.seconds()
        used = self.progress() / (self._decay_until or 1.0)
        total = max(self.steps, round(self.steps / used)) if used > 0 else self.total
        eta = elapsed * max(0.0, 1 / used - 1) if used > 0 else 0.0
        speed = self._samples / max(elapsed, 1e-9)
        return Step(self.steps, total, loss, rate, speed, eta, validation, alphas)
