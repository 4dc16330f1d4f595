"""What a running gateway consists of, and how endpoints get at it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from adapter_store.datasets import DatasetStore
from adapter_store.errors import StrataError, UnavailableError
from adapter_store.lora.store import LoraStore
from adapter_store.versions import VersionStore
from server.feedback.desk import FeedbackDesk
from server.feedback.thumbs import Thumbs
from server.files.store import FileStore
from server.jobs.link import QueueLink
from server.jobs.submission import Submissions
from server.metrics import Metrics
from server.pictures import PictureLoader

if TYPE_CHECKING:
    from server.serving import Serving


class NotReady(UnavailableError):
    """Report that the base or the first version is still being loaded."""

    code = "not_ready"
    retry_after_seconds = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request."""

    max_images: int = 16
    max_messages: int = 256
    max_choices: int = 8
    max_stop: int = 4
    max_logprobs: int = 20
    default_max_tokens: int = 256


@dataclass(slots=True)
class Gateway:
    """Hold the parts of one gateway; ``serving`` is there once the base is loaded and ``stable`` probed."""

    model_name: str
    uploads: Path
    limits: Limits
    metrics: Metrics
    store: VersionStore
    datasets: DatasetStore
    loras: LoraStore
    files: FileStore
    link: QueueLink
    submissions: Submissions
    feedback: FeedbackDesk
    pictures: PictureLoader
    thumbs: Thumbs = field(default_factory=Thumbs)
    serving: Serving | None = None
    progress: str = "the base is being loaded"
    failure: StrataError | None = field(default=None)

    def ready(self) -> Serving:
        """Return the serving half; raise NotReady before it is there or if it could not start."""
        if self.serving is None:
            raise NotReady(f"the server is not ready: {self.why_not}")
        return self.serving

    def tell(self, progress: str) -> None:
        """Note what the start waits for."""
        self.progress = progress

    @property
    def why_not(self) -> str:
        """Return what is missing before the server answers."""
        return "it could not start; its log says why" if self.failure else self.progress


def _gateway_of(request: Request) -> Gateway:
    return request.app.state.gateway


GatewayDep = Annotated[Gateway, Depends(_gateway_of)]
