"""No token and no password is in anything that leaves the program."""

from __future__ import annotations

import pytest

from sj_robust import SJRobustError
from sj_robust.masking import harmless, masked, remember, without_login

TOKEN = "hf_" + "aBcDeFgHiJ" * 3 + "wxyz"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://alice:geheim@hub.local:8080/x", "http://***@hub.local:8080/x"),
        ("http://alice:p@ss:w@hub/x and more", "http://***@hub/x and more"),
        ("http://alice:pa/ss@hub/x", "http://***@hub/x"),
        ("http://alice:p%40ss@[::1]:80/x", "http://***@[::1]:80/x"),
        ("postgres://u:geheim@h, http://a:geheim@c", "postgres://***@h, http://***@c"),
        (f"https://{TOKEN}@huggingface.co/a/b", "https://***@huggingface.co/a/b"),
        ("//alice:geheim@hub/x", "//***@hub/x"),
        ("alice:geheim@hub.local", "***@hub.local"),
        (f"got {TOKEN}.", "got ***."),
        (f"b'Bearer {TOKEN}\\n'", "b'Bearer ***\\n'"),
        ("Illegal header value b'Bearer s3cret-tok\\n'", "Illegal header value b'Bearer ***\\n'"),
        ("{'authorization': 'Bearer geheim'}", "{'authorization': '***'}"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: ***"),
        (
            "https://cdn/x?X-Amz-Signature=abc&y=1&token=zzz#f",
            "https://cdn/x?X-Amz-Signature=***&y=1&token=***#f",
        ),
        ("https://cdn/x?access_token=geheim", "https://cdn/x?access_token=***"),
        ("HF_TOKEN=geheim sj-robust pull", "HF_TOKEN=*** sj-robust pull"),
    ],
)
def test_secrets_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert str(SJRobustError(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8080/owner/name@rev cannot be reached",
        "https://huggingface.co/a/b@main",
        "alice/snn@v1 is gated",
        "set HF_TOKEN to a token",
        "hf_transfer, hf_hub_download, hf_raise_for_status and HF_HUB_OFFLINE",
        "module:function at x@y.z",
        "http://[::1]:8080/a@b",
        "http://hub:80?x=@y",
        "Basic settings, bearer of good news",
        "a token, not tried",
        "8/255 @ linf",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert masked(text) == text


def test_what_the_process_was_given_is_masked_word_for_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "opensesame\n")
    monkeypatch.setenv("HF_ENDPOINT", "alice:pass word@hub")
    monkeypatch.setenv("https_proxy", "http://bob:proxyword@proxy:3128")
    remember("given-to-a-function")
    text = masked("opensesame, 'pass word', given-to-a-function, proxyword")
    assert text == "***, '***', ***, ***"
    monkeypatch.setenv("HF_TOKEN", "a")  # one of a letter would mask every word
    assert masked("a banana") == "a banana"


def test_a_traceback_shows_none(capsys: pytest.CaptureFixture[str]) -> None:
    clean, dirty = ValueError("clean"), ValueError(f"Bearer {TOKEN}")
    assert harmless(clean) is clean
    assert harmless(dirty) is None
    clean.__context__ = dirty
    assert harmless(clean) is None


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://a:b@hub/x", "http://hub/x"),
        ("https://huggingface.co", "https://huggingface.co"),
        ("a:b@hub", "hub"),
        ("http://a:b@c@hub", "http://hub"),
        ("http://a:b/c@hub", "http://hub"),
    ],
)
def test_an_address_without_its_login(address: str, shown: str) -> None:
    assert without_login(address) == shown


@pytest.mark.parametrize(
    "unit", ["://a:", "a.", "?token", "//", "Bearer ", "hf_", "&sig", ":@", "://", "authorization:"]
)
def test_a_strangers_text_is_not_searched_for_ever(unit: str) -> None:
    assert len(masked(unit * 20_000)) > 0


def test_an_error_that_leads_back_to_itself() -> None:
    """`raise cause` in the handler of what it caused makes a circle of causes and contexts."""
    cause, ours = OSError("plain"), ValueError("ours")
    ours.__cause__, cause.__context__ = cause, ours
    assert harmless(cause) is cause
