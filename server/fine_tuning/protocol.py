"""The request that creates a fine-tuning job."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from adapter_store.jobs.hyperparameters import Whole


class Supervised(BaseModel):
    """Hold the settings of supervised training."""

    model_config = ConfigDict(extra="allow")

    hyperparameters: dict[str, Any] = Field(default_factory=dict)


class Method(BaseModel):
    """Name the training method; ``supervised`` is the one there is."""

    model_config = ConfigDict(extra="allow")

    type: str = "supervised"
    supervised: Supervised | None = None


class CreateJob(BaseModel):
    """Ask for a job that learns an uploaded file."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "training_file": "file-0193f2a4c0de1f2e3d4c5b6a79801122",
                "model": "strata",
                "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4}}},
                "metadata": {"task": "digits"},
            }
        },
    )

    training_file: str = Field(max_length=120)
    model: str = Field(max_length=200)
    validation_file: str | None = Field(default=None, max_length=120)
    hyperparameters: dict[str, Any] | None = None
    method: Method | None = None
    suffix: str | None = Field(default=None, max_length=64)
    seed: Whole | None = Field(default=None, ge=0, lt=2**31)
    metadata: dict[str, str] | None = None
