"""Run the gateway: ``python -m server --port 8000``; every flag is also a variable ``STRATA_<NAME>``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from adapter_store.errors import StrataError
from adapter_store.settings import make_home, read_settings
from server.launch.ports import require_free_port
from server.settings import FLAG_ALIASES, GatewaySettings

EXIT_FATAL = 2
_KEEP_ALIVE_SECONDS = 30
_SHUTDOWN_SECONDS = 10
_ANSWER_SECONDS = 7.0
_MAX_HEADER_BYTES = 64 * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return 2, with a message and no traceback, where a restart cannot help."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        settings = read_settings(GatewaySettings, arguments, program="python -m server", aliases=FLAG_ALIASES)
        return serve(settings)
    except StrataError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return EXIT_FATAL


def serve(settings: GatewaySettings) -> int:
    """Run the gateway with uvicorn until a signal; return its exit status."""
    from adapter_store.base.allocator import tune_allocator

    tune_allocator()  # before torch is imported

    import uvicorn

    from server.app import create_app
    from server.connections import GuardedConnection
    from server.logs import configure_logs, log
    from server.stopping import GracefulServer

    configure_logs(settings.log_level)
    make_home(settings.home)
    require_free_port(settings.host, settings.port, "--port")
    failures: list[StrataError] = []

    def on_fatal(error: StrataError) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(settings, on_fatal=on_fatal)
    config = uvicorn.Config(
        app,
        loop="asyncio",  # uvicorn would take whatever else happens to be installed
        http=GuardedConnection,
        ws="none",
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
    )
    server = GracefulServer(config, app.state.gateway, _ANSWER_SECONDS)
    try:
        server.run()
    except SystemExit as stop:
        return int(stop.code or 0)
    if failures:
        raise failures[0]
    log("stopped", logging.INFO)
    return 0 if server.started else EXIT_FATAL


if __name__ == "__main__":
    sys.exit(main())
