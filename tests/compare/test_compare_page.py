"""The page of a comparison: its text, and in a real browser."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_up import ANN, PGD, TRADES, Make, check

from sj_robust import SJRobustError
from sj_robust.compare import compare, write_page
from sj_robust.evaluation import Check

HOSTILE = "<img src=x onerror=alert(1)>\"'&{{7*7}}|[a](javascript:b)`\x1b[31m\u202eevil"


class Page(HTMLParser):
    """Every element and attribute of a page, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text += data


def hostile_folder(make: Make) -> Path:
    """A checkpoint all of whose texts attack the reader; a folder's name alone cannot hold a
    slash."""
    return make(
        HOSTILE,
        dataset={"name": HOSTILE, "split": HOSTILE, "fingerprint": HOSTILE},
        protocol=HOSTILE + "</script>",
        attacks=[HOSTILE],
        views=[HOSTILE],
        checks=[Check(name=HOSTILE, status="fail", found=HOSTILE, numbers={})],
        stopped=HOSTILE,
    )


@pytest.mark.usefixtures("three")
def test_hostile_texts_are_shown_and_not_obeyed(make: Make) -> None:
    comparison = compare([hostile_folder(make), make("odd", norm=HOSTILE), PGD, TRADES])
    page = Page(comparison.to_html())
    assert not {"img", "iframe", "object", "embed", "form", "base"} & {
        tag for tag, _ in page.elements
    }
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not [
        name
        for _, attributes in page.elements
        for name in attributes
        if name.startswith("on") or name == "style"
    ]
    # as text, unaltered but for what cannot be printed
    assert "<img src=x onerror=alert(1)>\"'&{{7*7}}" in page.text
    for text in (comparison.to_html(), comparison.to_markdown(), comparison.to_json()):
        assert "\x1b" not in text
        assert "\u202e" not in text
    markdown = comparison.to_markdown()
    assert "<img" not in markdown
    assert "[a]" not in markdown
    assert all(
        len(re.findall(r"(?<!\\)\|", line)) == len(comparison.header()) + 1
        for line in markdown.splitlines()
        if line[:1] == "|"
    )


@pytest.mark.usefixtures("three")
def test_the_page_is_self_contained_and_says_the_figures(make: Make) -> None:
    comparison = compare([PGD, TRADES, ANN, make("bare", measured=False)])
    text = comparison.to_html()
    page = Page(text)
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), (tag, attributes)
    assert not re.search(r"url\(|@import|https?:|fetch\(|XMLHttpRequest|//[a-z0-9]+\.", text)
    header = [cell for tag, cell in page.elements if tag == "th" and cell.get("scope") == "col"]
    assert len(header) == len(comparison.header()) == 14
    assert (
        sum(tag == "svg" and attributes.get("role") == "group" for tag, attributes in page.elements)
        == 2
    )
    identifiers = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for _, attributes in page.elements:
        for reference in (attributes.get("aria-labelledby") or "").split():
            assert reference in identifiers
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in identifiers
    labels = {
        attributes["aria-label"]
        for _, attributes in page.elements
        if attributes.get("class") == "point"
    }
    assert f"{TRADES}, eps 8/255: 9.4 %, 95 % interval 7.1 to 12.3 %" in labels
    assert f"{TRADES}, 28.0 µJ, eps 8/255: 9.4 %, 95 % interval 7.1 to 12.3 %" in labels
    assert len(labels) == 3 * 4 + 3 * 3  # clean and three eps; energy at three eps
    assert '<span>30.3</span><small class="wrap">16 % of its ANN’s</small>' in text
    assert "| 186.5 |" in comparison.to_markdown()
    assert "Energy not measured" not in text


@pytest.mark.parametrize(
    "energies", [(30.0,), (1e-6, 1e12), (20.0, 50.0, 186.5), (None, 1e-300, 0.0, 7.0)]
)
def test_the_energies_of_any_size_are_on_the_axis(
    make: Make, energies: tuple[float | None, ...]
) -> None:
    folders = [
        make(f"m{number}", energy=energy, correct=(30, 20, 10))
        for number, energy in enumerate(energies)
    ]
    text = compare(folders).to_html()
    (chart,) = re.findall(r'<svg[^>]*aria-labelledby="energy-title.*?</svg>', text, re.DOTALL)
    drawn = [energy for energy in energies if energy and energy >= 1e-6]
    # of rows in the order in which they were named, for their accuracies are equal
    places = [float(x) for x in re.findall(r'<circle class="ring" cx="([\d.]+)"', chart)][
        : len(drawn)
    ]
    assert chart.count('class="point"') == 3 * len(drawn)
    assert all(48 < place < 466 for place in places)
    ticks = re.findall(
        r'<text class="tick" x="([\d.]+)" y="292" text-anchor="middle">([^<]+)</text>', chart
    )
    assert len(ticks) >= 2
    for x, label in ticks:
        assert [float(x) < place for place in places] == [float(label) < energy for energy in drawn]
    missing = [f"m{number}" for number, energy in enumerate(energies) if energy not in drawn]
    assert ("Energy not measured: " + ", ".join(missing) in text) == bool(missing)


@pytest.mark.usefixtures("three")
def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    comparison = compare([PGD])
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "file" / "page.html"):
        with pytest.raises(SJRobustError, match=r"cannot be written \(.*\): choose another file"):
            write_page(comparison, path)
    assert (tmp_path / "file").read_text() == "mine"


class Browser:
    """Headless Chromium, driven by the DevTools protocol through a pipe."""

    def __init__(self, program: str, profile: Path) -> None:
        (read_in, self._out), (self._in, write_out) = os.pipe(), os.pipe()

        # Chromium reads commands from 3 and answers on 4; the ends that we were given may be 3 or 4
        # themselves
        def pipes() -> None:
            commands, answers = os.dup(read_in), os.dup(write_out)
            high = [
                os.dup2(number, 100 + index) for index, number in enumerate((commands, answers))
            ]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-extensions",
            "--disable-background-networking",
            "--disable-component-update",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
        ]
        self._process = subprocess.Popen(
            [program, *flags, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=pipes,
            close_fds=False,
        )
        os.close(read_in)
        os.close(write_out)
        self._count, self._rest, self.events, self._session = 0, b"", [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters} | (
            {"sessionId": self._session} if self._session else {}
        )
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + 30
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))[0], (
                "Chromium does not answer"
            )
            self._rest += os.read(self._in, 1 << 20) or pytest.fail("Chromium ended")
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def open(self, path: Path) -> None:
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key if text != " " else "Space",
                windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    def media(self, scheme: str) -> None:
        self.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def size(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def page(browser: Browser, make: Make, three: None, tmp_path: Path) -> Browser:
    """The page of six models, opened."""
    models = [
        PGD,
        TRADES,
        ANN,
        make(
            "strong", protocol="strong@1", correct=(200, 100, 50), checks=[check("noise", "pass")]
        ),
        make("bare", measured=False),
        hostile_folder(make),
    ]
    write_page(compare(models), tmp_path / "page.html")
    browser.media("light")
    browser.size(1280, 900)
    browser.open(tmp_path / "page.html")
    return browser


NAMES = (
    "[...document.querySelectorAll('tbody tr')].filter(row => !row.hidden).map(row =>"
    " row.cells[1].textContent)"
)
SORTED = "[...document.querySelectorAll('thead th')].map(th => th.getAttribute('aria-sort'))"
HEADER = "document.querySelectorAll('thead button')[{}]"


def test_the_page_loads_without_requests_errors_or_foreign_scripts(page: Browser) -> None:
    requests = [
        event["params"]["request"]["url"]
        for event in page.events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    assert [url.split(":")[0] for url in requests if not url.startswith("data:")] == ["file"]
    problems = [
        event
        for event in page.events
        if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")
    ]
    assert problems == []
    assert page.run("document.documentElement.classList.contains('js')")  # our own script ran
    page.run(
        "{ const s = document.createElement('script'); s.textContent = 'window.injected = 1';"
        " document.body.append(s); }"
    )
    assert page.run("window.injected") is None  # and no other may


def test_columns_sort_by_keyboard_and_pointer(page: Browser) -> None:
    start = page.run(NAMES)
    assert start[:2] == [PGD, TRADES]
    assert page.run(SORTED) == ["ascending"] + ["none"] * 13
    page.run(HEADER.format(5) + ".focus()")
    page.press("Enter", 13, "\r")
    clean = page.run(NAMES)
    assert page.run(SORTED)[5] == "descending"
    assert page.run(SORTED).count("none") == 13
    assert (clean[0], clean[1], clean[-1]) == (ANN, PGD, "bare")
    page.press(" ", 32, " ")
    assert page.run(SORTED)[5] == "ascending"
    assert page.run(NAMES)[-2:] == [ANN, "bare"]  # what was not measured stays last
    assert "ascending" in page.run("document.getElementById('status').textContent")
    page.run(HEADER.format(1) + ".click()")
    names = page.run(NAMES)
    assert [name for name in names if not name.startswith("<")] == [
        "bare",
        PGD,
        TRADES,
        ANN,
        "strong",
    ]
    page.run(HEADER.format(0) + ".click()")
    assert page.run(NAMES)[:2] == [PGD, TRADES]


def test_the_filter_hides_rows_and_their_marks(page: Browser) -> None:
    def type_in(text: str) -> None:
        page.run(
            "{ const q = document.getElementById('query'); q.value = "
            + json.dumps(text)
            + "; q.dispatchEvent(new Event('input')); }"
        )

    visible = (
        "[...document.querySelectorAll('figure:first-of-type .point')].filter(p =>"
        " getComputedStyle(p).display !== 'none').length"
    )
    before = page.run(visible)
    type_in("SNN  _PGD")
    assert page.run(NAMES) == [PGD]
    assert page.run(visible) < before
    assert page.run("document.getElementById('status').textContent") == "1 of 6 models shown."
    type_in("strong@1")
    assert page.run(NAMES) == ["strong"]
    type_in("no such model")
    assert page.run(NAMES) == []
    type_in("")
    assert len(page.run(NAMES)) == 6
    assert page.run(visible) == before


def test_points_are_reached_by_tab_and_read_out(page: Browser) -> None:
    seen, labels = [], set()
    for _ in range(80):
        page.press("Tab", 9)
        seen.append(page.run("document.activeElement.tagName"))
        if label := page.run(
            "document.activeElement.matches('.point') ?"
            " document.activeElement.getAttribute('aria-label') : null"
        ):
            labels.add(label)
            told = page.run(
                "document.activeElement.closest('figure').querySelector('output').textContent"
            )
            assert told == label
            assert (
                page.run("getComputedStyle(document.activeElement.querySelector('.ring')).stroke")
                != "none"
            )
        elif seen[-1] == "BUTTON":
            assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert any(label.startswith(f"{ANN}, clean: 81.2 %") for label in labels)
    shown = page.run(
        "[...document.querySelectorAll('.point')].filter(p => p.getClientRects().length).length"
    )
    assert len(labels) == shown
    page.run(
        "{ const r = document.getElementById('radius'); r.value = '2/255'; r.dispatchEvent(new"
        " Event('change')); }"
    )
    drawn = (
        "[...document.querySelectorAll('g.radius')].filter(g => getComputedStyle(g).display !=="
        " 'none')"
    )
    groups = page.run(f"{drawn}.map(g => g.dataset.eps)")
    assert groups == ["2/255"]


def test_light_and_dark_follow_the_system_until_chosen(page: Browser) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.run(paper)
    page.media("dark")
    dark = page.run(paper)
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(18, 23, 29)")
    label = "document.getElementById('theme').textContent"  # it changes in an event, a frame later
    assert page.run(
        f"new Promise(tell => {{ const look = () => {label} === 'Light mode' ? tell(true) :"
        " setTimeout(look, 10); look(); })"
    )
    page.run("document.getElementById('theme').click()")
    assert page.run(paper) == light
    page.media("light")
    page.run("document.getElementById('theme').click()")
    assert page.run(paper) == dark
    page.run("localStorage.clear()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page: Browser, scheme: str) -> None:
    """WCAG AA: contrast 4.5 for text, 3 for marks."""
    page.media(scheme)
    found = page.run("""(() => {
      const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
      const light = colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ratio = (a, b) => {
        const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
        return (x + 0.05) / (y + 0.05);
      };
      const ground = node => {
        for (; node; node = node.parentElement) {
          const colour = getComputedStyle(node).backgroundColor;
          if (colour !== 'rgba(0, 0, 0, 0)') return colour;
        }
      };
      const all = selector => [...document.querySelectorAll(selector)];
      const texts = all('p, td, th, small, .badge, .soft, button, li, dd, output, a')
        .map(e => ratio(getComputedStyle(e).color, ground(e)));
      const marks = all('.marker')
        .map(e => ratio(getComputedStyle(e).stroke, ground(document.body)));
      return [Math.min(...texts), Math.min(...marks)];
    })()""")
    assert found[0] >= 4.5
    assert found[1] >= 3


@pytest.mark.parametrize("width", [1280, 420])
def test_nothing_but_the_table_is_wider_than_the_window(page: Browser, width: int) -> None:
    page.size(width, 900)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(
        "document.querySelector('.scroll').scrollWidth >="
        " document.querySelector('.scroll').clientWidth"
    )
