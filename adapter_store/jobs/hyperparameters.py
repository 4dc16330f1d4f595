"""Settings of one job's learning: the gateway refuses bad ones, the worker merges them over its defaults."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from adapter_store.errors import InputError

EmaMode = Literal["normalised", "released", "fixed", "off"]
OPENAI_NAMES = {"n_epochs": "epochs"}


def no_boolean(value: Any) -> Any:
    """Return a value that shall be a number, raise ValueError if it is true or false: 1 and 0 to pydantic."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004  pydantic reads ValueError
    return value


Whole = Annotated[int, BeforeValidator(no_boolean)]
Number = Annotated[float, BeforeValidator(no_boolean)]

_LEAST = 1e-6
"""What is smaller can only be a slip: a product with it is lost in the rounding of what it acts on."""


def _none_or_enough(value: float) -> float:
    """Return a number whose 0 means none, raise ValueError if it is neither that nor large enough."""
    if 0 < value < _LEAST:
        raise ValueError(f"must be 0 or at least {_LEAST:f}")
    return value


NoneOr = Annotated[Number, AfterValidator(_none_or_enough)]
"""A number that switches something off at 0, so that nearly 0 would do the opposite."""


class Hyperparameters(BaseModel):
    """Everything that may differ between two jobs.

    Attributes:
        epochs: Passes over the training pictures, unless validation stops them; 0: four, more of few or hard
            ones, fewer once all answers are known.
        max_seconds: Time for training steps; the learning rate has decayed fully by then. 0: no limit.
        max_steps: Optimizer steps at most; 0: no limit.
        batch_size: Questions per optimizer step.
        pack: Questions of one picture that share a row.
        learning_rate: Peak rate: size of a step relative to the size of what an adapted linear acts on.
        down_rate_ratio: Rate of the down projections, relative to their own size, beside the peak rate.
        aimed: New down projections look where a survey of the base finds the answers (else: at random).
        survey_samples: Training samples that the survey runs.
        learning_rate_multiplier: Factor on ``learning_rate``, as the OpenAI API names it.
        context_learning_rate: Rate of the contextual logits w.
        warmup_ratio: Share of the run in which the rate grows from 0.
        dropout: Share of an increment's rank components that each row of a batch trains without.
        weight_decay: Share of a weight that a step at rate 1 takes away (decoupled).
        beta2: Decay of the optimizer's mean of squared gradients.
        clip_norm: Gradients are clipped to this L2 norm; 0: not clipped.
        patience: Validations without improvement before training stops; 0: never stop early.
        validation_ratio: Share of the training pictures used to notice a plateau (never held-out ones).
        ema_mode: Weight of the EMA-balanced update (eqs. 8 to 10); ``off``: the trained values as they are.
        share: Whether increments of other tasks that the batch uses may move, too (backward transfer).
        rows_per_task: Increments added by an expansion (S).
        validation_cap: Most pictures used so.
        target_accuracy: Validation score at which the rate starts to decay; over 1: never.
        seed: Seed of keys, new increments, the validation split and the order of batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: NoneOr = Field(default=0, ge=0, le=10_000)
    max_seconds: NoneOr = Field(default=0, ge=0)
    max_steps: Whole = Field(default=0, ge=0)
    batch_size: Whole = Field(default=16, ge=1, le=4096)
    pack: Whole = Field(default=4, ge=1, le=64)
    learning_rate: Number = Field(default=1.5e-3, ge=_LEAST, le=1)
    down_rate_ratio: Number = Field(default=1, ge=_LEAST, le=100)
    aimed: bool = True
    survey_samples: Whole = Field(default=384, ge=1, le=4096)
    learning_rate_multiplier: Number = Field(default=1, ge=_LEAST, le=1000)
    context_learning_rate: Number = Field(default=0.05, ge=0, le=10)
    warmup_ratio: Number = Field(default=0.05, ge=0, lt=1)
    dropout: Number = Field(default=0, ge=0, le=0.9)
    weight_decay: Number = Field(default=0.1, ge=0, le=1)
    beta2: Number = Field(default=0.99, ge=_LEAST, lt=1)
    clip_norm: NoneOr = Field(default=1, ge=0)
    patience: Whole = Field(default=3, ge=0)
    validation_ratio: Number = Field(default=0.05, ge=0, lt=0.5)
    validation_cap: Whole = Field(default=32, ge=0)
    target_accuracy: Number = Field(default=1.01, ge=_LEAST)
    ema_mode: EmaMode = "normalised"
    share: bool = False
    rows_per_task: Whole = Field(default=4, ge=1, le=256)
    seed: Whole = Field(default=0, ge=0, lt=2**31)

    @property
    def peak_rate(self) -> float:
        """Return the learning rate after the multiplier of the OpenAI API."""
        return self.learning_rate * self.learning_rate_multiplier

    @classmethod
    def of_job(cls, defaults: Hyperparameters, given: Mapping[str, Any]) -> Hyperparameters:
        """Merge a job's values over the defaults; ``"auto"`` means the default.

        Raises:
            InputError: with every unknown name and every bad value.
        """
        named = {OPENAI_NAMES.get(name, name): value for name, value in given.items() if value != "auto"}
        for theirs, ours in OPENAI_NAMES.items():
            if theirs in given and ours in given:
                raise InputError(f"{theirs} and {ours} are one setting: send one", param="hyperparameters")
        try:
            return cls.model_validate({**defaults.model_dump(), **named})
        except ValidationError as error:
            faults = "; ".join(_fault(item, given) for item in error.errors(include_url=False))
            known = ", ".join(sorted({*cls.model_fields, *OPENAI_NAMES}))
            raise InputError(
                f"hyperparameters cannot be used: {faults} (known: {known})", param="hyperparameters"
            ) from None


def _fault(item: ErrorDetails, given: Mapping[str, Any]) -> str:
    """Name the setting as the caller wrote it, and what is wrong with it."""
    name = str(item["loc"][0])
    shown = next((theirs for theirs, ours in OPENAI_NAMES.items() if ours == name and theirs in given), name)
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Hyperparameters.model_fields, n=1)
        return f"{shown}: there is no such setting" + (f", did you mean {near[0]}?" if near else "")
    return f"{shown}: {item['msg'].removeprefix('Value error, ')}"
