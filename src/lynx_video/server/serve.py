"""The service as one command: an HTTP server in this process, workers beside it, and an orderly end."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from lynx_video.errors import BadRequest, LynxError, MissingDependency
from lynx_video.server.config import ServeFlags, StoreFlags, is_loopback
from lynx_video.studio.setup import Setup

if TYPE_CHECKING:
    from lynx_video.server.service import Service

MOST_CONNECTIONS = 800
"""Of clients at a time; one more is answered with 503. Each takes a file handle, of which there are often 1024."""
STREAMS_SECONDS = 5
"""How long open answers may take to come to an end."""


def serve(store: StoreFlags, flags: ServeFlags, setup: Setup, say: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or SIGINT; then what is in progress goes back to the queue.

    say: is told in a line where it listens.

    Raises BadRequest for an address that may not or cannot be listened on, and what `Desk.open` and `open_database` raise; LynxError if
    the workers cannot start.
    """
    with opened(store, flags, setup) as service, _listener(flags) as listener:
        from lynx_video.server.faults import speak
        from lynx_video.server.supervisor import Supervisor

        speak()
        name, port = listener.getsockname()[:2]
        supervisor = Supervisor(store=store, flags=flags, setup=setup, database=service.database)
        server = _server(service)
        with _signals(lambda: _end(server, service)):
            supervisor.start()
            watch = threading.Thread(target=_until_fault, args=(supervisor, server, service), daemon=True)
            watch.start()
            shown = f"[{name}]" if ":" in name else name
            say(f"{setup.model.model} on http://{shown}:{port} (OpenAPI at /docs), data in {store.data}")
            try:
                server.run(sockets=[listener])
            finally:
                service.closing = True
                supervisor.stop()
                watch.join()
    if supervisor.fault:
        raise LynxError(f"the service ended: {supervisor.fault}")


@contextmanager
def opened(store: StoreFlags, flags: ServeFlags, setup: Setup, *, keyed: bool | None = None) -> Iterator[Service]:
    """A service whose database and desk are open. keyed: whether keys are needed; by default where others can reach the address.

    Raises MissingDependency without the packages of `serve`, BadRequest if keys are needed and there are none.
    """
    try:
        from lynx_video.server.access import has_keys
        from lynx_video.server.database import open_database
        from lynx_video.server.service import make_service
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"the service needs {error.name}, which is not installed: pip install 'lynx-video[serve]'"
        ) from error
    database = open_database(store)
    try:
        far = not is_loopback(flags.host)
        keyed = far if keyed is None else keyed
        if keyed and not has_keys(database):
            raise BadRequest(
                f"--host {flags.host} can be reached from elsewhere, and there are no keys yet: make one (`lynx-video keys add NAME`), "
                "or listen on 127.0.0.1."
                if far
                else "keys are needed here, and there are none yet: make one with `lynx-video keys add NAME`."
            )
        service = make_service(store, flags, setup, database, keyed)
        service.desk.open()
        yield service
    finally:
        database.close()


def _server(service: Service) -> Any:
    """uvicorn over the app, without signal handlers of its own (it would raise the signal again at its end, and we would die of it)."""
    import uvicorn

    from lynx_video.server.app import make_app

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        make_app(service),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STREAMS_SECONDS,
        limit_concurrency=MOST_CONNECTIONS,
    )
    return Server(config)


@contextmanager
def _listener(flags: ServeFlags) -> Iterator[socket.socket]:
    """A socket on the address. Raises BadRequest if it cannot be had."""
    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(flags.host, flags.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            listener = stack.enter_context(socket.socket(found[0], found[1]))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(found[4])
            listener.listen(2048)
        except OSError as error:
            raise BadRequest(
                f"--host {flags.host} --port {flags.port}: can't be listened on ({error.strerror or error})."
            ) from error
        yield listener


@contextmanager
def _signals(end: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call `end` within the block. Elsewhere than in the main thread there are none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, lambda *_: end()) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _end(server: Any, service: Service) -> None:
    service.closing = True
    server.should_exit = True


def _until_fault(supervisor: Any, server: Any, service: Service) -> None:
    """End the server if the workers can't start."""
    import time

    while not service.closing:
        if supervisor.fault:
            _end(server, service)
        time.sleep(0.1)
