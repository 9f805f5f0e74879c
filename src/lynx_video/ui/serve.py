"""The page on a port of this machine, until somebody ends it."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lynx_video.errors import BadRequest, MissingDependency
from lynx_video.ui.guard import login, middleware, read_password

if TYPE_CHECKING:
    import gradio as gr

    from lynx_video.studio.setup import Setup
    from lynx_video.ui.session import Desk

LARGEST_UPLOAD = 32 * 2**20
"""Bytes of a picture."""
MOST_VISITORS = 256
"""Pages whose state is kept: a picture of a few megabytes each."""
CLEANED_EVERY, KEPT_SECONDS = 600, 24 * 3600
"""Copies of pictures and clips that the page made for showing them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageFlags:
    """Where the page is, who may use it, and where its clips go."""

    host: str = "127.0.0.1"
    "address to listen on; any but this machine's own needs --password"
    port: int = 7860
    "port to listen on; 0: a free one"
    password: str | None = field(default=None, metadata={"metavar": "USER:FILE"})
    "who may use the page: a name, and the file that holds the password"
    output_dir: Path = Path("clips")
    "folder of the clips: new ones go there, and the gallery shows what is there"
    require_consent: bool = False
    "make no clip without a word on who agreed to it"
    recogniser: Path | None = None
    "ONNX file of the face recogniser that scores the clips, instead of the model's own"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise BadRequest(f"--port must be a number from 0 to 65535, got {self.port}.")


def serve(flags: PageFlags, setup: Setup, say: Callable[[str], None]) -> None:
    """Show the page until the process is asked to end. say: told where it is, once it is there.

    Raises BadRequest for an address that needs a password, a port that is taken and a folder that can't be written.
    """
    from lynx_video.media.video import check_output
    from lynx_video.ui.session import Desk

    known = read_password(flags.host, flags.password)
    check_output(flags.output_dir / "clip.mp4", overwrite=True)
    with TemporaryDirectory(prefix="lynx-video-") as scratch, gradio_at_home(Path(scratch)), ending() as end:
        portraits, lent = Path(scratch) / "portraits", Path(scratch) / "gradio" / "clips"
        for folder in (portraits, lent):
            folder.mkdir(parents=True)
        desk = Desk(setup, flags.output_dir, portraits, consent_required=flags.require_consent)
        page = build(desk, lent)
        desk.open()
        try:
            port = flags.port or free_port(flags.host)
            launch(page, flags.host, port, known)
            say(f"http://{f'[{flags.host}]' if ':' in flags.host else flags.host}:{port}")
            end.wait()
        finally:
            desk.close()
            if page.is_running:
                # The event streams of open pages would hold it up, and are ended with many words.
                page.server.config.timeout_graceful_shutdown = 1
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            page.close(verbose=False)


def build(desk: Desk, lent: Path) -> gr.Blocks:
    """The page, not yet reachable. lent: a folder below Gradio's own for copies of the clips it shows."""
    import gradio as gr

    from lynx_video.pipeline.models import MODELS
    from lynx_video.ui.page import lay_out
    from lynx_video.ui.wiring import Wiring
    from lynx_video.ui.words import about, examples, hint

    with gr.Blocks(title="Lynx Video", analytics_enabled=False, delete_cache=(CLEANED_EVERY, KEPT_SECONDS)) as page:
        parts = lay_out(desk, examples(desk.drawn), about(desk), hint(desk.drawn))
        Wiring(desk, parts, lent, MODELS[desk.setup.model.model].same_person).connect(page)
    page.queue(default_concurrency_limit=4, max_size=200, api_open=False)
    return page


def free_port(host: str) -> int:
    """A port that nobody listens on. Raises BadRequest for an address that is not this machine's."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
            found.bind((host, 0))
            return int(found.getsockname()[1])
    except OSError as error:
        raise BadRequest(f"{host} can't be listened on ({error.strerror or error}).") from error


def launch(page: gr.Blocks, host: str, port: int, known: tuple[str, str] | None) -> None:
    """Listen. Raises BadRequest for a port or an address that can't be had."""
    from lynx_video.ui.style import CSS, NAMES, theme

    try:
        page.launch(
            server_name=host,
            server_port=port,
            auth=login(*known) if known else None,
            prevent_thread_lock=True,
            share=False,
            inbrowser=False,
            inline=False,
            quiet=True,
            show_error=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            max_file_size=LARGEST_UPLOAD,
            state_session_capacity=MOST_VISITORS,
            app_kwargs={"middleware": middleware(host), "docs_url": None, "redoc_url": None, "openapi_url": None},
            theme=theme(),
            css=CSS,
            js=NAMES,
        )
    except OSError as error:
        why = error.strerror or "the port is taken"
        raise BadRequest(f"{host}:{port} can't be listened on ({why}); choose another --port.") from error


@contextmanager
def gradio_at_home(scratch: Path) -> Iterator[None]:
    """Within it Gradio keeps its files in `scratch`, tells nobody that it runs, and heeds no setting that would open more.

    Raises MissingDependency if it is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise MissingDependency("the page needs Gradio: pip install 'lynx-video[ui]'")
    before = {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")}
    for name in before:
        del os.environ[name]
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(scratch / "gradio"),
        "GRADIO_EXAMPLES_CACHE": str(scratch / "examples"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("GRADIO_")]:
            del os.environ[name]
        os.environ |= before


@contextmanager
def ending() -> Iterator[threading.Event]:
    """An event that is set when the process is asked to end, by Ctrl+C or by a service manager."""
    event = threading.Event()

    def end(*_: Any) -> None:
        event.set()

    before = {kind: signal.signal(kind, end) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
