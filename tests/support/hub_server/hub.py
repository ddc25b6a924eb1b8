"""The server: HTTP in a thread, one handler per connection, every request logged."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from . import writing as writing  # registers its routes
from .faults import Fault
from .routes import Answer, Request, answer
from .store import Refused, Repository, Store


class TestHub:
    """A running Hub. `endpoint` is for HF_ENDPOINT; LFS content is served under another host name,
    as the real one does.

    >>> with TestHub() as hub:
    ...     hub.store.tokens["hf_alice"] = "alice"
    ...     hub.create("alice/model").put({"config.json": b"{}"})
    """

    __test__ = False  # for pytest

    def __init__(self) -> None:
        self.store = Store()
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.page_size = 1000
        self.stopping = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.content_host = f"http://localhost:{self.port}"

    def __enter__(self) -> TestHub:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def create(self, name: str, **how: Any) -> Repository:
        return self.store.create(name, **how)

    def fault(self, kind: str, path: str = ".", **how: Any) -> Fault:
        """From now on, answers to matching requests go wrong; see Fault."""
        self.faults.append(Fault(kind, path, **how))
        return self.faults[-1]

    def asked(self, method: str, path: str) -> int:
        """How many requests matched."""
        return sum(
            request.method == method and bool(re.search(path, request.path))
            for request in self.requests
        )


class _Handler(BaseHTTPRequestHandler):
    hub: TestHub
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = (
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not self._chunked()
            else self._read_chunks()
        )
        url = urlsplit(self.path)
        request = Request(
            self.command,
            unquote(url.path),
            url.path,
            parse_qs(url.query),
            dict(self.headers.items()),
            body,
        )
        self.hub.requests.append(request)
        fault = next(
            (fault for fault in self.hub.faults if fault.meets(self.command, request.path)), None
        )
        if fault and fault.kind == "drop":
            self.close_connection = True
            return
        if fault and fault.kind == "status":
            self._send(
                Answer({"error": "injected"}, status=fault.status, headers=fault.headers), None
            )
            return
        try:
            with self.hub.store.lock:
                reply = answer(self.hub, request)
        except Refused as refused:
            reply = Answer(
                {"error": refused.message},
                status=refused.status,
                headers={
                    **({"X-Error-Code": refused.code} if refused.code else {}),
                    "X-Error-Message": refused.message,
                    **refused.headers,
                },
            )
        self._send(reply, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _send(self, reply: Answer, fault: Fault | None) -> None:
        content = (
            reply.content
            if isinstance(reply.content, bytes)
            else json.dumps(reply.content).encode()
        )
        content = fault.content(content) if fault else content
        if fault and fault.kind in ("answer", "long", "endless") and fault.status != 503:
            reply.status = fault.status
        if fault and fault.kind == "answer":
            reply.length = None
            reply.headers.update(
                {
                    key: value.format(endpoint=self.hub.endpoint)
                    for key, value in fault.headers.items()
                }
            )
        if fault and fault.kind == "long":
            reply.length = fault.after
        try:
            if fault and fault.kind == "drip":
                self._drip(fault.seconds)
                return
            self.send_response(reply.status)
            for key, value in reply.headers.items():
                self.send_header(key, value)
            if "Content-Type" not in reply.headers:
                self.send_header(
                    "Content-Type",
                    (
                        "application/octet-stream"
                        if isinstance(reply.content, bytes)
                        else "application/json"
                    ),
                )
            if fault and fault.kind == "endless":
                self.send_header("Connection", "close")
            else:
                self.send_header(
                    "Content-Length",
                    str(reply.length if reply.length is not None else len(content)),
                )
            self.end_headers()
            if self.command != "HEAD":
                self._write(content, fault)
        except (BrokenPipeError, ConnectionResetError):  # a client that was killed
            self.close_connection = True

    def _write(self, content: bytes, fault: Fault | None) -> None:
        if fault is None or fault.kind not in ("truncate", "stall", "slow", "long", "endless"):
            self.wfile.write(content)
            return
        if fault.kind in ("long", "endless"):
            self.close_connection, fault.sent = True, 0
            while fault.sent < fault.after and not self.hub.stopping.is_set():
                part = content[fault.sent : fault.sent + 65536] or bytes(
                    min(65536, fault.after - fault.sent)
                )
                self.wfile.write(part)
                fault.sent += len(part)
            return
        if fault.kind == "slow":
            for start in range(0, len(content), fault.after):
                self.wfile.write(content[start : start + fault.after])
                self.wfile.flush()
                if self.hub.stopping.wait(fault.seconds):
                    break
            return
        self.wfile.write(content[: fault.after])
        self.wfile.flush()
        if fault.kind == "stall":
            self.hub.stopping.wait(fault.seconds)
        self.close_connection = True

    def _drip(self, seconds: float) -> None:
        self.close_connection = True
        for letter in b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 1000:
            self.wfile.write(bytes([letter]))
            self.wfile.flush()
            if self.hub.stopping.wait(seconds):
                return

    def _chunked(self) -> bool:
        return "chunked" in (self.headers.get("Transfer-Encoding") or "")

    def _read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *_: object) -> None:
        pass
