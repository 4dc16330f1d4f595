"""Every exception that Strata raises on purpose.

::

    StrataError                     message for people: what was wrong, where, what to do
    ├── InputError                  the caller's fault, HTTP 400; ``param`` names the field
    │   ├── ImageError              bytes that are not a usable picture
    │   └── DatasetError            a data set with faults; ``report`` lists all of them
    │       └── LoraError           a LoRA that cannot become a task, with such a report
    ├── NotFoundError               unknown model, version, alias, job or file, HTTP 404
    ├── ConflictError               compare-and-set lost or a name is taken, HTTP 409
    │   └── AliasConflict           the alias moved since it was read
    ├── UnavailableError            try again later, HTTP 503 with Retry-After
    │   ├── QueueUnavailable        Redis cannot be reached
    │   ├── EngineBusy              the waiting line is full, HTTP 429
    │   └── DatasetsBusy            too many data sets wait to be checked, HTTP 429
    ├── BaseModelError              the base folder cannot be used
    │   └── NotALlava               it is a model, but not a LLaVA
    ├── StateError                  an adapter state cannot be used
    │   ├── BaseMismatch            it was made for another base
    │   ├── TargetMismatch          it adapts other linears than this program's settings name
    │   └── StateInvalid            wrong shapes, NaN, foreign or damaged files
    ├── StoreError                  the version store refused
    │   ├── VersionCorrupt          a file does not match its recorded sha256
    │   ├── FencedOut               a newer worker owns the lineage
    │   └── ProbeFailed             a loaded version does not reproduce its recorded answer
    └── LeaseLost                   another worker took the job over
"""

from __future__ import annotations

from typing import Any


class StrataError(Exception):
    """Base of all errors; ``code`` is the stable string that HTTP answers carry."""

    code = "strata_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InputError(StrataError):
    """Reject what the caller sent."""

    code = "invalid_request"


class ImageError(InputError):
    """Reject bytes that are not a usable picture."""

    code = "invalid_image"


class DatasetError(InputError):
    """Reject a data set; ``report`` holds every fault found."""

    code = "invalid_dataset"

    def __init__(self, message: str, *, report: Any, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.report = report


class LoraError(DatasetError):
    """Reject a LoRA that cannot become a task; ``report`` holds every fault found."""

    code = "invalid_lora"


class NotFoundError(StrataError):
    """Report an unknown model, version, alias, job or file."""

    code = "not_found"


class ConflictError(StrataError):
    """Report a lost compare-and-set or a taken name."""

    code = "conflict"


class AliasConflict(ConflictError):
    """Report that an alias moved since it was read."""

    code = "alias_conflict"


class UnavailableError(StrataError):
    """Report a part that is down for now; the caller may try again."""

    code = "unavailable"
    retry_after_seconds = 5


class QueueUnavailable(UnavailableError):
    """Report that Redis cannot be reached."""

    code = "queue_unavailable"


class EngineBusy(UnavailableError):
    """Report a full waiting line."""

    code = "engine_busy"
    retry_after_seconds = 1


class DatasetsBusy(UnavailableError):
    """Report that too many data sets wait to be checked."""

    code = "datasets_busy"
    retry_after_seconds = 10


class BaseModelError(StrataError):
    """Report a base folder that cannot be used."""

    code = "base_model_error"


class NotALlava(BaseModelError):
    """Report a model folder that is not a LLaVA."""

    code = "not_a_llava"


class StateError(StrataError):
    """Report an adapter state that cannot be used."""

    code = "state_error"


class BaseMismatch(StateError):
    """Report a state that was made for another base."""

    code = "base_mismatch"


class TargetMismatch(StateError):
    """Report a state that adapts other linears than the engine was told to."""

    code = "target_mismatch"


class StateInvalid(StateError):
    """Report wrong shapes, NaN, or foreign or damaged files in a state."""

    code = "state_invalid"


class StoreError(StrataError):
    """Report that the version store refused."""

    code = "store_error"


class VersionCorrupt(StoreError):
    """Report a file that does not match its recorded sha256."""

    code = "version_corrupt"


class AliasCorrupt(StoreError):
    """Report a record of an alias that cannot be read; the message names it by its place in the store."""

    code = "alias_corrupt"


class FencedOut(StoreError):
    """Report that a newer worker owns the lineage."""

    code = "fenced_out"


class ProbeFailed(StoreError):
    """Report a loaded version that does not reproduce its recorded answer."""

    code = "probe_failed"


class LeaseLost(StrataError):
    """Report that another worker took the job over."""

    code = "lease_lost"
