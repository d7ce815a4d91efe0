"""A server that speaks OpenAI's chat completions: in a thread of a test, or as `vllm serve` is run.

    python chat_server.py --port 8000 --delay 0.1

As a command it listens on all addresses, and its replies are ratings of its own.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from zlib import crc32

Answer = tuple[int, dict[str, str], Any]  # status, headers, body


class ChatServer(ThreadingHTTPServer):
    """Replies "8" to all, after the `first` answers; keeps what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.reply: Callable[[str], str] = lambda prompt: "8"
        self.first: list[Answer] = []
        self.delay = 0.0  # seconds before a reply
        self.gate: threading.Barrier | None = None  # replies only when so many ask at once
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_GET(self):
        self._send(200, {}, {"data": []} if self.path == "/v1/models" else {})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with server.lock:
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization"))
            server.times.append(time.monotonic())
            other = server.first.pop(0) if server.first else None
            if other is None:
                server.asked[prompt] += 1
        if other is not None:
            return self._send(*other)
        if server.gate:
            server.gate.wait(timeout=20)
        time.sleep(server.delay)
        message = {"role": "assistant", "content": server.reply(prompt)}
        return self._send(200, {}, {"choices": [{"message": message}]})

    def _send(self, status: int, headers: dict[str, str], body: Any) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def rating(prompt: str) -> str:
    """A whole number from 0 to 10 that the prompt decides."""
    return str(crc32(prompt.encode()) % 11)


@contextmanager
def chat_server():
    """A server that runs in a thread."""
    server = ChatServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.0)
    args = parser.parse_args()
    server = ChatServer("", args.port)
    server.reply, server.delay = rating, args.delay
    server.serve_forever()
