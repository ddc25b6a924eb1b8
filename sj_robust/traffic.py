"""What one conversation with a Hub may cost in bytes, time and requests: huggingface_hub itself
sets almost no limit to any of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

MAX_ANSWER = 8 << 20  # bytes of an answer about one repository: the names of some 30,000 files
MAX_PAGE = 32 << 20  # of one page of a list of models, with their cards
MAX_FILE = 1 << 38  # of a file whose size was not listed
MAX_ERROR = 1 << 16  # of what an error or a redirection says; the rest is not read
# a checkpoint of 32 files takes 96, and as many again where each has to be fetched twice
MAX_REQUESTS = 400
MAX_WAIT = 60.0  # seconds, all in all, that a Hub may ask us to wait before we ask again
SILENCE = 60.0  # seconds until an answer has to begin
# an answer that has begun has to bring so many bytes a second, in each so many seconds of waiting
# for it
WINDOW, MIN_RATE = 30.0, 2048


# Seconds to connect, and then without a byte (read, write), after which a request fails.
WORKING = (5.0, 60.0, 60.0)


class LimitError(Exception):
    """More than a Hub may send or ask of us; the text says what, without naming the Hub."""


class SlowError(LimitError, TimeoutError):
    """The Hub answers so slowly that it counts as unreachable."""


class Traffic:
    """The limits of one conversation, held to by hooks in the client's session.

    timeouts: seconds to connect, and without a byte. questions: how the paths of requests begin
    that fetch no file, and answer: the most bytes of what they bring.
    """

    def __init__(
        self, timeouts: Mapping[str, float], questions: str = "/api/", answer: int = MAX_ANSWER
    ) -> None:
        self.timeouts, self.questions, self.answer = timeouts, questions, answer
        self.requests, self.waited = 0, 0.0
        self.too_silent = False
        self._owner = threading.get_ident()
        self._path, self._size = "", cast(int | None, None)
        self._watch: threading.Timer | None = None

    @contextmanager
    def held(self) -> Iterator[Traffic]:
        """While it is held, the client's session keeps to the limits, and logs no retries."""
        from huggingface_hub.utils import get_session

        session = get_session()
        ours: dict[str, Any] = {"request": self._ask, "response": self._answered}
        session.event_hooks = {
            kind: [*session.event_hooks.get(kind, []), hook] for kind, hook in ours.items()
        }
        try:
            with _quiet_client():
                yield self
        finally:
            # and of several conversations at once each takes away its own hooks only
            self._unwatch()
            session.event_hooks = {
                kind: [hook for hook in session.event_hooks[kind] if hook != own]
                for kind, own in ours.items()
            }

    @contextmanager
    def file(self, path: str, size: int) -> Iterator[None]:
        """While it is held, what comes is the file called `path`, of `size` bytes."""
        self._path, self._size = path, size
        try:
            yield
        finally:
            self._path, self._size = "", None

    def told(self, error: Exception) -> Exception:
        """What `error` comes from, where a request was ended here."""
        return (
            SlowError(f"does not answer within {SILENCE:g} seconds") if self.too_silent else error
        )

    def _ask(self, request: Any) -> None:
        # some requests ask for no limit at all, which a default would not change
        asked = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = asked | {
            what: asked.get(what) or seconds for what, seconds in self.timeouts.items()
        }
        # what is packed has no size until it is unpacked
        request.headers["Accept-Encoding"] = "identity"
        if threading.get_ident() != self._owner:
            return  # another conversation, or one of the threads that send files
        self.requests += 1
        if self.requests > MAX_REQUESTS:
            raise LimitError(f"has no end: {MAX_REQUESTS} requests were made")
        self._unwatch()
        length = request.headers.get(
            "Content-Length", "0" if request.method in ("GET", "HEAD") else ""
        )
        if length.isdecimal():  # what is sent takes its time as well
            self._watch = threading.Timer(SILENCE + int(length) / MIN_RATE, self._hang_up)
            self._watch.daemon = True
            self._watch.start()

    def _answered(self, response: Any) -> None:
        owned = threading.get_ident() == self._owner
        if owned:
            self._unwatch()
        request = response.request
        if request.method == "HEAD":
            pass
        elif response.status_code >= 300:
            response.stream = _stream(response.stream, _cut(response.stream, MAX_ERROR))
        else:
            most = self._most(str(request.url.path), owned)
            announced = response.headers.get("Content-Length", "")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise LimitError("sends its answer packed, which was not asked for")
            if announced.isdecimal() and (len(announced) > 18 or int(announced) > most):
                raise LimitError(
                    f"announces {announced[:18]} bytes{self._of} where at most {most} were expected"
                )
            response.stream = _stream(response.stream, self._counted(response.stream, most))
        self._check_wait(response)

    def _most(self, path: str, owned: bool) -> int:
        if owned and self._size is not None:
            return self._size
        return self.answer if path.startswith(self.questions) else MAX_FILE

    @property
    def _of(self) -> str:
        return f" of {self._path}" if self._path else ""

    def _check_wait(self, response: Any) -> None:
        """Raise the client's own error where the Hub asks for a longer wait than we are ready for:
        the client would sleep it out."""
        from huggingface_hub.utils import hf_raise_for_status

        seconds = asked_to_wait(response)
        if seconds is None or response.status_code < 400:
            return
        self.waited += seconds
        if self.waited > MAX_WAIT:
            hf_raise_for_status(response)

    def _counted(self, stream: Any, most: int) -> Iterator[bytes]:
        """The parts of a body, until it is longer or slower than it may be. Time counts only while
        it is waited for."""
        total, begun = 0, time.monotonic()
        came, seconds = 0, 0.0  # of the current window
        for part in stream:
            seconds += time.monotonic() - begun
            total, came = total + len(part), came + len(part)
            if total > most:
                raise LimitError(f"sends more than the {most} bytes{self._of} that were expected")
            if seconds > WINDOW:
                if came < MIN_RATE * seconds:
                    raise SlowError(
                        f"sends less than {MIN_RATE} bytes a second ({came} in {seconds:.0f} s)"
                    )
                came, seconds = 0, 0.0
            yield part
            begun = time.monotonic()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _hang_up(self) -> None:
        """End a request whose answer comes in so slowly that it never begins: a read that gets one
        byte now and then has no timeout."""
        from huggingface_hub import close_session

        self.too_silent = True
        close_session()


@contextmanager
def _quiet_client() -> Iterator[None]:
    """While it is held, the client does not log each retry, with the address it asks: what cannot
    be helped ends in one error."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)


def limited() -> AbstractContextManager[Traffic]:
    """While it is held, whatever the client fetches keeps to the limits: for data sets, and weights
    that timm fetches for itself."""
    return Traffic(dict(zip(("connect", "read", "write"), WORKING, strict=True))).held()


def asked_to_wait(response: Any) -> float | None:
    """Seconds that an answer tells us to wait, as huggingface_hub reads it; None where it names
    none."""
    from huggingface_hub.utils import parse_ratelimit_headers

    found = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    if found is not None and found.remaining == 0:
        return float(found.reset_in_seconds)
    text = response.headers.get("Retry-After", "").strip()
    return float(text[:18]) if text.isdecimal() else None


def _cut(stream: Any, most: int) -> Iterator[bytes]:
    for part in stream:
        yield part[:most]
        most -= len(part)
        if most <= 0:
            return


def _stream(stream: Any, parts: Iterator[bytes]) -> Any:
    """`parts` in place of a response's body. The client's HTTP library has changed before (httpx,
    httpx2): the class its streams have to be of is found by name."""
    base: Any = next(kind for kind in type(stream).__mro__ if kind.__name__ == "SyncByteStream")

    class Limited(base):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            return parts

        def close(self) -> None:
            stream.close()

    return Limited()
