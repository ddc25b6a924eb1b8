"""Secrets in text that leaves the program: tokens, and passwords in addresses, are masked."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

MASK = "***"
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_ADDRESSES = ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_given: set[str] = set()  # tokens passed to a function of ours

# Each keeps its first group. All repetitions are bounded: the text may be a stranger's, made to be
# searched for ever. A token of the Hub is told from words such as hf_transfer by its digits or its
# length.
_PATTERNS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(//)[^\s/?#\"'<>]{0,512}(?=@)",
        # a password may hold a slash; a port is followed by one too, and no name of a host
        r"(://)(?!\[)[^\s/:@\"'<>]{0,128}:(?!\d{1,5}(?:[/?#\s]|$))[^\s@\"'<>]{0,512}(?=@)",
        # user:password@host without a scheme
        r"((?<![\w/]))[\w.%+\-]{1,128}:[^\s/:@\"'<>]{1,512}(?=@[\w\[])",
        r"(\b)hf_(?:oauth_|jwt_|app_)[\w.\-]{6,}",
        r"(\b)(?:hf|api_org)_(?=[a-z]{0,64}\d)[a-z0-9]{6,}",
        r"(\b)(?:hf|api_org)_[a-z0-9]{16,}",
        r"(\bauthorization\b[\"']?\s*[:=]\s*(?:b(?=[\"']))?[\"']?)(?:(?:bearer|basic|token|digest)\s+)?[^\s\"',;]+",
        r"(\b(?:bearer|basic)\s+)(?=\S{0,512}[\d=_])[\w.~+/=\-]{6,}",
        r"([?&;](?:sig|[\w.\-%]{0,64}(?:token|secret|signature|password|passwd|credential|api_?key)[\w.\-%]{0,64})=)[^&\s#\"'<>]+",
        r"(\b(?:HF_TOKEN|HUGGING_FACE_HUB_TOKEN|\w{0,64}PASSWORD|\w{0,64}PASSWD|\w{0,64}SECRET)=)[^\s\"',;]+",
    )
]


def masked(text: str) -> str:
    """`text` with *** for whatever is a secret: user:password@ of an address, a token of the Hub,
    the value of an Authorization header, of a query's token or signature, and, word for word, the
    tokens and passwords that this process was given.
    """
    for secret in sorted(_known(), key=len, reverse=True):
        text = text.replace(secret, MASK)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\g<1>{MASK}", text)
    return text


def remember(token: str) -> None:
    """Mask this token from now on, whatever it looks like."""
    _given.add(token)


def harmless(error: BaseException) -> BaseException | None:
    """`error`, to be raised from; None where its own text, or that of an error behind it, holds a
    secret that a traceback would show, or is too long to look."""
    link: BaseException | None = error
    seen: set[int] = set()
    # a cause that is raised again leads back to itself
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if (
            len(str(link)) > 10_000
            or masked(str(link)) != str(link)
            or masked(repr(link)) != repr(link)
        ):
            return None
        link = link.__cause__ or link.__context__
    return error


def without_login(address: str) -> str:
    """An address without the user and password before its host."""
    scheme, separator, rest = address.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _known() -> set[str]:
    """Tokens and passwords of the environment, also in the pieces that an address breaks into. One
    of a few letters would mask half of what is said."""
    tokens = {(os.environ.get(name) or "").strip() for name in _VARIABLES}
    logins = {
        login
        for name in _ADDRESSES
        if (login := _login(os.environ.get(name) or os.environ.get(name.lower()) or ""))
    }
    passwords = {login.partition(":")[2] or login for login in logins}
    pieces = {
        piece
        for word in passwords
        for text in (word, unquote(word))
        for piece in (text, *re.split(r"[:/?#@]", text))
    }
    return {secret for secret in tokens | pieces | _given if len(secret) >= 6}


def _login(address: str) -> str:
    return address.rpartition("://")[2].rpartition("@")[0]
