"""Comparisons of recorded evaluations: real zoo models, made-up reports, and the page in a real browser."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sj_robust import SJRobustError
from sj_robust.evaluate import Accuracy, Check, Report
from sj_robust.evaluate.checks import verdict
from sj_robust.hub import list_models
from sj_robust.hub.compare import Comparison, compare, write_page

PGD, TRADES, ANN = "resnet20-snn-t4.made_up_pgd", "resnet20-snn-t4.made_up_trades", "resnet20.made_up"
HOSTILE = "<img src=x onerror=alert(1)>\"'&{{7*7}}|[a](javascript:b)`\x1b[31m\u202eevil"
Make = Callable[..., Path]


# What these tests are about is made up, so that a zoo that is measured again does not change them.
VIEWS = [f"PCW:{number}" for number in range(1, 20)]
RADII = (2 / 255, 4 / 255, 8 / 255)
SETTINGS = {"protocol": None, "norm": "linf", "restarts": 1, "attacks": ["fgsm", "pgd10"]}
ANN_MACS = 40_551_040
DATASET = {"name": "cifar10", "split": "test", "size": 10_000, "fingerprint": "a" * 64}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a checkpoint folder without weights, with a made-up report; `correct`: images right at each eps."""

    def write(name: str, *, kind: str = "snn", clean: int = 317, correct: tuple[int, ...] = (142, 87, 47), eps: tuple[float, ...] = RADII,
              total: int = 500, checks: list[Check] | None = None, stopped: str | None = None, dataset: dict[str, Any] | None = None,
              energy: float | None = None, measured: bool = True, **settings: Any) -> Path:  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        source = next(entry for entry in list_models() if entry.kind == kind and entry.results).folder
        shutil.copy(source / "config.json", folder)
        if not measured:
            return folder
        content = json.loads((source / "evaluation.json").read_text())
        content["dataset"] |= DATASET | {"evaluated": total} | (dataset or {})
        content["settings"] |= SETTINGS | {"views": VIEWS if kind == "snn" else ["exact"]} | settings
        content |= {"checks": [check.model_dump() for check in checks or []], "stopped": stopped,
                    "verdict": verdict(checks, stopped is None) if checks else None}
        content["clean"] = Accuracy.of(clean, total).model_dump()
        content["joint"] = [{"eps": radius, "accuracy": Accuracy.of(right, total).model_dump(), "carried": 0}
                            for radius, right in zip(eps, correct, strict=True)]
        beside = {"ann_macs": ANN_MACS, "ann_microjoules": 186.5} if kind == "snn" else {"ann_macs": None, "ann_microjoules": None}
        content["energy"] = None if energy is None else {
            "images": 64, "acs": 3e7, "macs": 4e5, "microjoules": energy, "picojoules": {"MAC": 4.6, "AC": 0.9}, **beside}
        (folder / "evaluation.json").write_text(Report.model_validate_json(json.dumps(content)).to_json())
        return folder

    return write


@pytest.fixture
def three(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders PGD and TRADES, alike, and ANN, in the current folder."""
    make(PGD, clean=341, correct=(182, 125, 56), energy=30.3)
    make(TRADES, energy=28.04)
    make(ANN, kind="ann", clean=406, correct=(333, 234, 88), energy=186.5)
    monkeypatch.chdir(tmp_path)


def check(name: str, status: Any) -> Check:
    return Check(name=name, status=status, found=f"{name} found", numbers={})


def row_of(comparison: Comparison, name: str) -> Any:
    return next(row for row in comparison.rows if row.name == name)


def notes_of(comparison: Comparison, name: str, figure: str = "robust") -> list[str]:
    return [comparison.footnotes[number - 1] for number in getattr(row_of(comparison, name).marks, figure)]


def test_the_zoo_is_compared_by_what_its_index_says() -> None:
    comparison = compare([entry.name for entry in list_models()])
    assert len(comparison.rows) == len(list_models())
    for entry in list_models():
        row, results = row_of(comparison, entry.name), entry.strongest
        assert (row.kind, row.architecture, row.timesteps) == (entry.kind, entry.architecture, entry.timesteps)
        if results is None:
            assert (row.setup, row.clean, row.rank) == (None, None, None)
            continue
        assert (row.clean.value, row.clean.low, row.clean.high) == (results.clean.value, results.clean.low, results.clean.high)
        assert [(cell.eps, cell.value, cell.low, cell.high) for cell in row.robust] == [
            (point.eps, point.value, point.low, point.high) for point in results.robust]
        assert (row.spikes_per_neuron is None) == (entry.kind == "ann")
        assert (row.microjoules, row.ann_microjoules) == (results.microjoules, results.ann_microjoules)
    ranks = [row.rank for row in comparison.rows if row.rank is not None]
    assert ranks[:1] == [1]
    assert ranks == sorted(ranks)


@pytest.mark.usefixtures("three")
def test_an_ann_beside_spiking_networks_says_that_its_gradient_is_another() -> None:
    comparison = compare([ANN, PGD, TRADES])
    assert [row.rank for row in comparison.rows] == [1, 2, None]
    assert "19 views" in comparison.setup.protocol  # type: ignore[union-attr]
    assert notes_of(comparison, ANN) == [
        "Other gradients: the exact gradient, an ANN has no other; the ranked models were attacked through 19 views."]
    assert notes_of(comparison, ANN, "clean") == []  # the clean accuracy is of the same images
    assert notes_of(comparison, PGD) == notes_of(comparison, TRADES) == []


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(("change", "note", "clean_too"), [
    ({"dataset": {"name": "svhn"}}, "Other data: 500 images of svhn test, not 500 of cifar10 test.", True),
    ({"dataset": {"split": "train"}}, "Other data: 500 images of cifar10 train, not 500 of cifar10 test.", True),
    ({"total": 400}, "Other images: 400 of cifar10 test, not 500.", True),
    ({"dataset": {"fingerprint": "f" * 64}}, "Other images under the same name, cifar10 test (fingerprint ffffffffffff, not", True),
    ({"norm": "l2"}, "Other norm: l2, not linf.", False),
    ({"protocol": "strong@1"}, "Other protocol: strong@1, not fgsm + pgd10, 19 views.", False),
    ({"attacks": ["fgsm", "pgd20"]}, "Other attacks: fgsm + pgd20, not fgsm + pgd10.", False),
    ({"views": ["PCW:1", "rate"]}, "Other gradients: 2 views, not 19 views.", False),
    ({"restarts": 5}, "Other number of restarts: 5, not 1.", False),
    ({"attacks": [], "correct": (), "eps": ()}, "Clean accuracy only: nothing was attacked.", False),
    ({"stopped": "after 9 s (time_limit)"}, "The evaluation was stopped after 9 s (time_limit); what was not attacked counts as robust.",
     False),
])
def test_what_differs_is_marked_and_not_ranked(make: Make, change: dict[str, Any], note: str, clean_too: bool) -> None:
    comparison = compare([make("odd", **{"correct": (390, 380, 370), **change}), PGD, TRADES])
    assert [(row.name, row.rank) for row in comparison.rows] == [(PGD, 1), (TRADES, 2), ("odd", None)]
    assert [found.startswith(note) for found in notes_of(comparison, "odd")] == [True]
    assert bool(notes_of(comparison, "odd", "clean")) is clean_too
    assert len(comparison.footnotes) == 1
    if norm := change.get("norm"):  # its figures must not share a column with l∞ of the same number
        assert {eps.norm for eps in comparison.columns} == {"linf", norm}
        assert all(row_of(comparison, "odd").at(eps) is None for eps in comparison.columns if eps.norm == "linf")


@pytest.mark.usefixtures("three")
def test_several_differences_are_all_told(make: Make) -> None:
    comparison = compare([PGD, TRADES, make("odd", norm="l2", attacks=["fgsm"], restarts=2, total=400, correct=(1, 1, 1))])
    assert [note.split(":")[0] for note in notes_of(comparison, "odd")] == [
        "Other images", "Other norm", "Other attacks", "Other number of restarts"]


def test_a_named_protocol_is_the_same_for_an_ann(make: Make) -> None:
    ann = make("ann", kind="ann", protocol="quick@1", correct=(400, 300, 100))
    snn, other = make("snn", protocol="quick@1", correct=(90, 80, 70)), make("other", protocol="paper@1", correct=(99, 98, 97))
    comparison = compare([ann, snn, other])
    assert [(row.name, row.rank) for row in comparison.rows] == [("ann", 1), ("snn", 2), ("other", None)]
    assert notes_of(comparison, "other") == ["Other protocol: paper@1, not quick@1."]


def test_views_chosen_under_a_protocol_that_lets_them_are_marked(make: Make) -> None:
    shared = {"protocol": "autoattack@1", "correct": (3, 2, 1)}
    folders = [make("ann", kind="ann", **shared), make("a", views=["ASSG", "black-box"], **shared),
               make("b", views=["PCW:1", "black-box"], **shared), make("c", views=["ASSG", "black-box"], **shared)]
    comparison = compare(folders)
    assert {row.name: row.rank for row in comparison.rows} == {"ann": 1, "a": 1, "c": 1, "b": None}  # equal figures share a rank
    assert notes_of(comparison, "b") == ["Other gradients: PCW:1, not ASSG."]


def test_transfer_from_another_source_is_still_transfer(make: Make) -> None:
    folders = [make(name, protocol="strong@1", views=["ASSG", f"transfer:{name}"], correct=(3, 2, 1)) for name in ("a", "b")]
    assert compare(folders).footnotes == []


@pytest.mark.usefixtures("three")
def test_figures_share_a_column_at_equal_eps_alone(make: Make) -> None:
    few = make("few", eps=(8 / 255, 16 / 255), correct=(90, 5), energy=25.0)
    none_shared = make("other", eps=(1 / 255,), correct=(400,))
    comparison = compare([PGD, few, none_shared, TRADES])
    assert [eps.label for eps in comparison.columns] == ["1/255", "2/255", "4/255", "8/255", "16/255"]
    assert [(row.name, row.rank) for row in comparison.rows] == [("few", 1), (PGD, 2), (TRADES, 3), ("other", None)]
    assert notes_of(comparison, "few") == [
        "Other eps: 8/255, 16/255, not 2/255, 4/255, 8/255; an image that a smaller eps broke counts as broken at larger ones."]
    assert row_of(comparison, PGD).at(comparison.columns[0]) is None
    assert comparison.to_markdown().splitlines()[2].count("not measured") == 3  # 1/255, 2/255, 4/255 of "few"


@pytest.mark.usefixtures("three")
def test_a_checkpoint_without_evaluation_is_not_measured(make: Make) -> None:
    comparison = compare([make("bare", measured=False), PGD])
    bare = row_of(comparison, "bare")
    assert (bare.rank, bare.setup, bare.clean, bare.robust) == (None, None, None, [])
    assert comparison.rows[-1] is bare
    assert comparison.to_markdown().splitlines()[3].count("not measured") == 8  # clean, three eps, energy, protocol, images, checks
    assert comparison.to_html().count('<td class="missing">not measured</td>') == 7
    alone = compare([make("alone", measured=False)])
    assert (alone.setup, alone.columns, alone.about()) == (None, [], ["No model has a recorded evaluation."])
    assert "<figure" not in alone.to_html()


def test_clean_accuracies_are_ranked_where_nothing_was_attacked(make: Make) -> None:
    folders = [make(name, clean=clean, attacks=[], views=[], correct=(), eps=()) for name, clean in (("a", 317), ("b", 341))]
    comparison = compare(folders)
    assert [(row.rank, row.name) for row in comparison.rows] == [(1, "b"), (2, "a")]
    assert comparison.ranked_by is None
    assert "Ranked by clean accuracy" in comparison.to_markdown()
    assert "<figure" not in comparison.to_html()


@pytest.mark.parametrize(("statuses", "status", "word"), [
    (["pass", "pass"], "pass", "pass"), (["pass", "warn"], "warn", "with care"), (["warn", "not run"], "not run", "incomplete"),
    (["warn", "not run", "fail"], "fail", "do not trust"),
])
def test_the_word_for_the_checks_is_that_of_their_verdict(make: Make, statuses: list[Any], status: str, word: str) -> None:
    checks = [check(f"check {number}", status) for number, status in enumerate(statuses)]
    comparison = compare([make("checked", checks=checks)])
    found = comparison.rows[0].checks
    assert found is not None
    assert (found.status, found.count, found.verdict) == (status, len(statuses), verdict(checks, True))
    assert comparison.to_markdown().splitlines()[2].endswith(f"| {word} |")
    assert verdict(checks, True) in comparison.to_html()
    assert "not checked" in compare([make("unchecked")]).to_markdown()


@pytest.mark.usefixtures("three")
def test_the_same_checkpoints_give_the_same_json(make: Make) -> None:
    names = [PGD, ANN, make("odd", restarts=3)]
    text = compare(names).to_json()
    assert compare(names).to_json() == text
    assert Comparison.model_validate_json(text).to_json() == text
    content = json.loads(text)
    assert list(content) == ["format", "setup", "ranked_by", "columns", "rows", "footnotes"]
    assert list(content["rows"][0]) == ["name", "kind", "architecture", "timesteps", "parameters", "rank", "setup", "clean", "robust",
                                        "spikes_per_neuron", "spikes_per_image", "microjoules", "ann_microjoules", "checks", "marks"]
    assert (content["rows"][0]["microjoules"], content["rows"][0]["ann_microjoules"]) == (30.3, 186.5)


@pytest.mark.usefixtures("three")
def test_a_model_named_twice_counts_once_and_equal_names_are_told_apart(make: Make, tmp_path: Path) -> None:
    assert [row.name for row in compare([PGD, f"./{PGD}", tmp_path / PGD]).rows] == [PGD]
    first = make("one")
    (tmp_path / "elsewhere").mkdir()
    second = Path(shutil.copytree(first, tmp_path / "elsewhere" / "one"))
    assert [row.name for row in compare([first, second]).rows] == [f"one ({first})", f"one ({second})"]


def test_an_evaluation_of_other_weights_or_damaged_is_named(make: Make) -> None:
    folder = make("a")
    config = json.loads((folder / "config.json").read_text())
    config["weights"]["state_sha256"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SJRobustError, match="evaluation is of another model"):
        compare([folder])
    text = (make("b") / "evaluation.json").read_text()
    for place, (old, new) in enumerate([('"value": 0.634', '"value": 63.4'), ('"low": 0.59', '"low": NaN, "_": 0.59'),
                                        ('"format": 1', '"format": 2'), ('"dataset"', '"data"'), ("{", "[")]):
        damaged = make(f"damaged{place}")
        assert old in text
        (damaged / "evaluation.json").write_text(text.replace(old, new, 1))
        with pytest.raises(SJRobustError, match=r"evaluation.json: not an evaluation report of this version: .*evaluate the checkpoint"):
            compare([damaged])


def test_it_needs_no_torch() -> None:
    code = ("import sys; sys.modules['torch'] = None\nfrom sj_robust.hub.compare import compare, zoo\n"
            "c = compare([entry.name for entry in zoo.list_models()]); c.to_json(); c.to_markdown(); print(len(c.to_html()))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10_000


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
    """A checkpoint all of whose texts attack the reader; a folder's name alone cannot hold a slash."""
    return make(HOSTILE, dataset={"name": HOSTILE, "split": HOSTILE, "fingerprint": HOSTILE}, protocol=HOSTILE + "</script>",
                attacks=[HOSTILE], views=[HOSTILE], checks=[Check(name=HOSTILE, status="fail", found=HOSTILE, numbers={})],
                stopped=HOSTILE)  # fmt: skip


@pytest.mark.usefixtures("three")
def test_hostile_texts_are_shown_and_not_obeyed(make: Make) -> None:
    comparison = compare([hostile_folder(make), make("odd", norm=HOSTILE), PGD, TRADES])
    page = Page(comparison.to_html())
    assert not {"img", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on") or name == "style"]
    assert "<img src=x onerror=alert(1)>\"'&{{7*7}}" in page.text  # as text, unaltered but for what cannot be printed
    for text in (comparison.to_html(), comparison.to_markdown(), comparison.to_json()):
        assert "\x1b" not in text
        assert "\u202e" not in text
    markdown = comparison.to_markdown()
    assert "<img" not in markdown
    assert "[a]" not in markdown
    assert all(len(re.findall(r"(?<!\\)\|", line)) == len(comparison.header()) + 1 for line in markdown.splitlines() if line[:1] == "|")


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
    assert len(header) == len(comparison.header()) == 13
    assert sum(tag == "svg" and attributes.get("role") == "group" for tag, attributes in page.elements) == 2
    identifiers = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for _, attributes in page.elements:
        for reference in (attributes.get("aria-labelledby") or "").split():
            assert reference in identifiers
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in identifiers
    labels = {attributes["aria-label"] for _, attributes in page.elements if attributes.get("class") == "point"}
    assert f"{TRADES}, eps 8/255: 9.4 %, 95 % interval 7.1 to 12.3 %" in labels
    assert f"{TRADES}, 28.0 µJ, eps 8/255: 9.4 %, 95 % interval 7.1 to 12.3 %" in labels
    assert len(labels) == 3 * 4 + 3 * 3  # clean and three eps; energy at three eps
    assert '<span>30.3</span><small class="wrap">0.16 of its ANN</small>' in text
    assert "| 186.5 |" in comparison.to_markdown()
    assert "Energy not measured" not in text


@pytest.mark.parametrize("energies", [(30.0,), (1e-6, 1e12), (20.0, 50.0, 186.5), (None, 1e-300, 0.0, 7.0)])
def test_the_energies_of_any_size_are_on_the_axis(make: Make, energies: tuple[float | None, ...]) -> None:
    folders = [make(f"m{number}", energy=energy, correct=(30, 20, 10)) for number, energy in enumerate(energies)]
    text = compare(folders).to_html()
    (chart,) = re.findall(r'<svg[^>]*aria-labelledby="energy-title.*?</svg>', text, re.DOTALL)
    drawn = [energy for energy in energies if energy and energy >= 1e-6]
    # of rows in the order in which they were named, for their accuracies are equal
    places = [float(x) for x in re.findall(r'<circle class="ring" cx="([\d.]+)"', chart)][:len(drawn)]
    assert chart.count('class="point"') == 3 * len(drawn)
    assert all(48 < place < 466 for place in places)
    ticks = re.findall(r'<text class="tick" x="([\d.]+)" y="292" text-anchor="middle">([^<]+)</text>', chart)
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

        def pipes() -> None:  # Chromium reads commands from 3 and answers on 4; the ends that we were given may be 3 or 4 themselves
            commands, answers = os.dup(read_in), os.dup(write_out)
            high = [os.dup2(number, 100 + index) for index, number in enumerate((commands, answers))]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
                 "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen([program, *flags, "about:blank"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL, preexec_fn=pipes, close_fds=False)  # fmt: skip
        os.close(read_in)
        os.close(write_out)
        self._count, self._rest, self.events, self._session = 0, b"", [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters} | ({"sessionId": self._session} if self._session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + 30
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))[0], "Chromium does not answer"
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
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key if text != " " else "Space", windowsVirtualKeyCode=code,
                      **({"text": text} if text and kind == "keyDown" else {}))

    def media(self, scheme: str) -> None:
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def size(self, width: int, height: int) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def page(browser: Browser, make: Make, three: None, tmp_path: Path) -> Browser:
    """The page of six models, opened."""
    models = [PGD, TRADES, ANN, make("strong", protocol="strong@1", correct=(200, 100, 50), checks=[check("noise", "pass")]),
              make("bare", measured=False), hostile_folder(make)]
    write_page(compare(models), tmp_path / "page.html")
    browser.media("light")
    browser.size(1280, 900)
    browser.open(tmp_path / "page.html")
    return browser


NAMES = "[...document.querySelectorAll('tbody tr')].filter(row => !row.hidden).map(row => row.cells[1].textContent)"
SORTED = "[...document.querySelectorAll('thead th')].map(th => th.getAttribute('aria-sort'))"
HEADER = "document.querySelectorAll('thead button')[{}]"


def test_the_page_loads_without_requests_errors_or_foreign_scripts(page: Browser) -> None:
    requests = [event["params"]["request"]["url"] for event in page.events if event.get("method") == "Network.requestWillBeSent"]
    assert [url.split(":")[0] for url in requests if not url.startswith("data:")] == ["file"]
    problems = [event for event in page.events if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert problems == []
    assert page.run("document.documentElement.classList.contains('js')")  # our own script ran
    page.run("{ const s = document.createElement('script'); s.textContent = 'window.injected = 1'; document.body.append(s); }")
    assert page.run("window.injected") is None  # and no other may


def test_columns_sort_by_keyboard_and_pointer(page: Browser) -> None:
    start = page.run(NAMES)
    assert start[:2] == [PGD, TRADES]
    assert page.run(SORTED) == ["ascending"] + ["none"] * 12
    page.run(HEADER.format(5) + ".focus()")
    page.press("Enter", 13, "\r")
    clean = page.run(NAMES)
    assert page.run(SORTED)[5] == "descending"
    assert page.run(SORTED).count("none") == 12
    assert (clean[0], clean[1], clean[-1]) == (ANN, PGD, "bare")
    page.press(" ", 32, " ")
    assert page.run(SORTED)[5] == "ascending"
    assert page.run(NAMES)[-2:] == [ANN, "bare"]  # what was not measured stays last
    assert "ascending" in page.run("document.getElementById('status').textContent")
    page.run(HEADER.format(1) + ".click()")
    names = page.run(NAMES)
    assert [name for name in names if not name.startswith("<")] == ["bare", PGD, TRADES, ANN, "strong"]
    page.run(HEADER.format(0) + ".click()")
    assert page.run(NAMES)[:2] == [PGD, TRADES]


def test_the_filter_hides_rows_and_their_marks(page: Browser) -> None:
    def type_in(text: str) -> None:
        page.run("{ const q = document.getElementById('query'); q.value = " + json.dumps(text) + "; q.dispatchEvent(new Event('input')); }")

    visible = "[...document.querySelectorAll('figure:first-of-type .point')].filter(p => getComputedStyle(p).display !== 'none').length"
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
        if label := page.run("document.activeElement.matches('.point') ? document.activeElement.getAttribute('aria-label') : null"):
            labels.add(label)
            told = page.run("document.activeElement.closest('figure').querySelector('output').textContent")
            assert told == label
            assert page.run("getComputedStyle(document.activeElement.querySelector('.ring')).stroke") != "none"
        elif seen[-1] == "BUTTON":
            assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert any(label.startswith(f"{ANN}, clean: 81.2 %") for label in labels)
    shown = page.run("[...document.querySelectorAll('.point')].filter(p => p.getClientRects().length).length")
    assert len(labels) == shown
    page.run("{ const r = document.getElementById('radius'); r.value = '2/255'; r.dispatchEvent(new Event('change')); }")
    drawn = "[...document.querySelectorAll('g.radius')].filter(g => getComputedStyle(g).display !== 'none')"
    groups = page.run(f"{drawn}.map(g => g.dataset.eps)")
    assert groups == ["2/255"]


def test_light_and_dark_follow_the_system_until_chosen(page: Browser) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.run(paper)
    page.media("dark")
    dark = page.run(paper)
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(18, 23, 29)")
    label = "document.getElementById('theme').textContent"  # it changes in an event, a frame later
    assert page.run(f"new Promise(tell => {{ const look = () => {label} === 'Light mode' ? tell(true) : setTimeout(look, 10); look(); }})")
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
      const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
      const ground = node => {
        for (; node; node = node.parentElement) {
          const colour = getComputedStyle(node).backgroundColor;
          if (colour !== 'rgba(0, 0, 0, 0)') return colour;
        }
      };
      const all = selector => [...document.querySelectorAll(selector)];
      const texts = all('p, td, th, small, .badge, .soft, button, li, dd, output, a').map(e => ratio(getComputedStyle(e).color, ground(e)));
      const marks = all('.marker').map(e => ratio(getComputedStyle(e).stroke, ground(document.body)));
      return [Math.min(...texts), Math.min(...marks)];
    })()""")
    assert found[0] >= 4.5
    assert found[1] >= 3


@pytest.mark.parametrize("width", [1280, 420])
def test_nothing_but_the_table_is_wider_than_the_window(page: Browser, width: int) -> None:
    page.size(width, 900)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.querySelector('.scroll').scrollWidth >= document.querySelector('.scroll').clientWidth")
