"""Answers that go wrong on request."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

HTML = (
    b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>Checking your"
    b" browser</body></html>\n"
)


@dataclass
class Fault:
    """What befalls the answers to requests whose path matches `path` (a regular expression),
    `times` times or for ever (None).

    drop:      the connection ends without an answer
    truncate:  the announced length is right, the connection ends after `after` bytes
    stall:     nothing comes after `after` bytes, for `seconds`
    short:     the announced length is `after` too, so that the answer looks complete
    flip:      one bit of one byte in the middle is flipped; the length is right
    html:      a page in place of the content; html-equal: padded or cut to its length
    status:    `status`, with `headers`, in place of an answer
    answer:    `body` in place of the content, with `headers`; {endpoint} in them is the server
    slow:      the content comes in pieces of `after` bytes with a pause of `seconds` between them
    drip:      the headers come letter by letter with a pause of `seconds` between them
    long:      the content goes on with zeros, `after` bytes in all, which are announced
    endless:   the same without any length announced
    """

    kind: str
    path: str = "."
    method: str = "GET"
    times: int | None = 1
    after: int = 1000
    seconds: float = 30.0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    sent: int = 0  # bytes of content that the client took, of the last answer
    spared: int = 0  # so many matching requests are answered well first
    met: int = 0

    def meets(self, method: str, path: str) -> bool:
        if (
            self.method not in (method, "*")
            or not re.search(self.path, path)
            or self.times == self.met
        ):
            return False
        if self.spared:
            self.spared -= 1
            return False
        self.met += 1
        return True

    def content(self, content: bytes) -> bytes:
        """The content as this fault leaves it."""
        if self.kind == "flip" and content:
            middle = len(content) // 2
            return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        if self.kind == "short":
            return content[: self.after]
        if self.kind == "html":
            return HTML
        if self.kind == "html-equal":
            return (HTML * (len(content) // len(HTML) + 1))[: len(content)]
        return self.body if self.kind == "answer" else content
