"""A chat completions endpoint on this machine, for the tests of the judge."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

GOOD = {"prompt_following": 0.5, "aesthetics": 0.25, "motion_naturalness": 1, "video_quality": 0.75, "reason": "a bit dark"}
Reply = Callable[[dict[str, Any], int], tuple[int, Any]]


@dataclass
class Endpoint:
    """Speaks chat completions. reply: (what was asked, how many requests came before) -> (status, body or text of the answer)."""

    reply: Reply = lambda _asked, _number: (200, GOOD)
    models: tuple[int, Any] = (200, {"object": "list", "data": [{"id": "eye", "object": "model"}]})
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    waiting: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""


def completion(content: Any, **changes: Any) -> dict[str, Any]:
    """A chat completion; changes: to the message or the choice, or usage."""
    text = content if isinstance(content, str) else json.dumps(content)
    usage = changes.pop("usage", {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050})
    choice = {"index": 0, "finish_reason": changes.pop("finish_reason", "stop")}
    choice["message"] = {"role": "assistant", "content": text, **changes}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "eye", "choices": [choice], "usage": usage}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(*state.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.asked)
                state.asked.append(body)
            status, content = state.reply(body, number)
            if status == 200 and not (isinstance(content, dict) and "choices" in content) and not isinstance(content, bytes):
                content = completion(content)
            self.answer(status, content)

        def answer(self, status: int, content: Any) -> None:
            state.paths.append(self.path)
            state.keys.append(self.headers.get("Authorization", ""))
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if isinstance(content, bytes) else "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(raw)
            except (BrokenPipeError, ConnectionResetError):  # the client waits no longer
                pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        state.waiting.set()
        server.shutdown()
        thread.join()
