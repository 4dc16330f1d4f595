"""Build the gateway: the parts, the routes around them, and what starts and ends with the process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from fastapi import FastAPI

from adapter_store.errors import StrataError
from adapter_store.jobs import JobJournal
from adapter_store.lora.store import LoraStore
from adapter_store.versions import VersionStore
from server.adapters.router import router as adapters_router
from server.auth import KeyCheck, parse_keys
from server.canary.router import router as canary_router
from server.chat.router import router as chat_router
from server.datasets.opening import open_datasets
from server.datasets.router import router as datasets_router
from server.docs.description import install_description
from server.docs.router import router as docs_router
from server.errors import install_handlers
from server.evaluations.router import router as evaluations_router
from server.feedback.desk import FeedbackDesk, SendingPolicy
from server.feedback.pending import PendingStore
from server.feedback.router import router as feedback_router
from server.files.router import router as files_router
from server.files.store import FileStore
from server.fine_tuning.router import router as fine_tuning_router
from server.gateway import Gateway, Limits
from server.jobs.link import QueueLink, RedisPlace
from server.jobs.router import router as jobs_router
from server.jobs.submission import Submissions
from server.logs import log
from server.metrics import Metrics
from server.middleware import BodyGuard, RequestFrame
from server.models.router import router as models_router
from server.ops.router import program_version
from server.ops.router import router as ops_router
from server.origins import OriginCheck
from server.page.router import router as page_router
from server.pictures import PictureLoader, parse_hosts
from server.routing.router import router as routing_router
from server.serving import open_serving
from server.settings import GatewaySettings
from server.tasks.router import router as tasks_router
from server.uploads import sweep
from server.vqa.router import router as vqa_router

_ROUTERS = (
    ops_router,
    page_router,
    chat_router,
    vqa_router,
    routing_router,
    models_router,
    tasks_router,
    feedback_router,
    datasets_router,
    files_router,
    fine_tuning_router,
    jobs_router,
    adapters_router,
    canary_router,
    evaluations_router,
    docs_router,
)
OnFatal = Callable[[StrataError], None]


def create_app(settings: GatewaySettings, *, on_fatal: OnFatal | None = None) -> FastAPI:
    """Return the gateway's application.

    The base is loaded in the background after the start; until then ``/ready`` and questions answer 503.

    Args:
        settings: as read at the entry point.
        on_fatal: called once if the base or the first version cannot be brought to serve.
    """
    metrics = Metrics()
    link = QueueLink(
        RedisPlace(settings.redis_url, settings.home), settings.model_name, JobJournal(settings.home / "jobs")
    )
    gateway = _build_gateway(settings, metrics, link)
    app = FastAPI(
        title="Strata",
        summary="A LLaVA server that keeps learning.",
        version=program_version(),
        lifespan=_lifespan(gateway, settings, on_fatal),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.gateway = gateway
    install_handlers(app)
    install_description(app)
    for router in _ROUTERS:
        app.include_router(router)
    keys = parse_keys(settings.api_keys.get_secret_value())
    app.add_middleware(KeyCheck, keys=keys)
    app.add_middleware(
        BodyGuard,
        max_request_bytes=settings.max_request_bytes,
        max_upload_bytes=settings.max_upload_bytes,
        max_held_bytes=settings.max_held_bytes,
        pause_seconds=settings.body_timeout_seconds,
    )
    app.add_middleware(
        OriginCheck, host=settings.host, allowed_hosts=settings.allowed_names, has_keys=bool(keys)
    )
    app.add_middleware(RequestFrame, metrics=metrics)
    return app


def _build_gateway(settings: GatewaySettings, metrics: Metrics, link: QueueLink) -> Gateway:
    home = settings.home
    datasets = open_datasets(settings, home / "datasets")
    submissions = Submissions(lineage=settings.model_name, datasets=datasets, link=link, metrics=metrics)
    return Gateway(
        model_name=settings.model_name,
        uploads=home / "uploads",
        limits=Limits(
            max_images=settings.max_images,
            max_messages=settings.max_messages,
            max_choices=min(settings.max_choices, settings.max_batch + settings.max_waiting),
            max_stop=settings.max_stop,
            max_logprobs=settings.max_logprobs,
            default_max_tokens=settings.default_max_tokens,
        ),
        metrics=metrics,
        store=VersionStore(settings.versions_url, settings.model_name, settings.home / "fetched"),
        datasets=datasets,
        loras=LoraStore(home / "loras"),
        files=FileStore(home / "files"),
        link=link,
        submissions=submissions,
        feedback=FeedbackDesk(
            PendingStore(home / "feedback"),
            datasets=datasets,
            submissions=submissions,
            journal=link.journal,
            policy=SendingPolicy(settings.feedback_count, settings.feedback_seconds),
            metrics=metrics,
        ),
        pictures=PictureLoader(parse_hosts(settings.image_url_hosts)),
    )


def _lifespan(
    gateway: Gateway, settings: GatewaySettings, on_fatal: OnFatal | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(sweep, gateway.uploads)
        await asyncio.to_thread(gateway.files.sweep)
        watch = asyncio.create_task(gateway.link.watch(gateway.metrics), name="watch-queue")
        sending = asyncio.create_task(gateway.feedback.watch(), name="send-corrections")
        opening = asyncio.create_task(_open(gateway, settings, on_fatal), name="open-serving")
        try:
            yield
        finally:
            for task in (opening, sending, watch):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            serving, gateway.serving = gateway.serving, None
            if serving is not None:
                await serving.close()
            await asyncio.to_thread(gateway.link.close)

    return lifespan


async def _open(gateway: Gateway, settings: GatewaySettings, on_fatal: OnFatal | None) -> None:
    try:
        gateway.serving = await open_serving(
            settings, gateway.store, gateway.metrics, thumbs=gateway.thumbs, tell=gateway.tell
        )
    except Exception as error:  # noqa: BLE001  a background task must tell its end itself
        known = isinstance(error, StrataError)
        log(
            "the base cannot be served",
            logging.ERROR,
            error=None if known else error,
            reason=str(error)[:500],
        )
        gateway.failure = error if isinstance(error, StrataError) else StrataError("loading the base failed")
        if on_fatal is not None:
            on_fatal(gateway.failure)
