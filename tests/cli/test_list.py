"""`sj-robust list`: the zoo as a table that fits the terminal, filtered, at once and without
torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from sj_robust import list_models

COLUMNS = [
    "model",
    "kind",
    "dataset",
    "threat",
    "T",
    "parameters",
    "clean",
    "2/255",
    "4/255",
    "8/255",
    "protocol",
    "images",
    "energy, µJ",
]
IN_A_TERMINAL = """
import os, pty, sys
os.environ["COLUMNS"] = sys.argv[1]
pid, terminal = pty.fork()
if pid == 0:
    sys.modules["torch"] = sys.modules["spikingjelly"] = None  # importing them is now an error
    sys.argv = ["sj-robust", "list"]
    from sj_robust.cli import main
    main()
text = b""
try:
    while more := os.read(terminal, 1 << 16):
        text += more
except OSError:  # the end of a terminal, on Linux
    pass
assert os.waitpid(pid, 0)[1] == 0, text
sys.stdout.write(text.decode().replace("\\r", ""))
"""

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def test_a_line_says_what_the_index_does(cli: Cli) -> None:
    done = cli("list")
    assert (done.returncode, done.stderr) == (0, "")
    header, rule, *lines = done.stdout.splitlines()
    assert header.replace("energy, µJ", "energy,µJ").split() == [
        name.replace(" ", "") for name in COLUMNS
    ]
    assert len(lines) == len(list_models())
    for line, entry in zip(lines, list_models(), strict=True):
        assert len(line) <= len(rule)
        found = entry.strongest
        facts = [
            entry.name,
            entry.kind,
            entry.dataset,
            entry.threat,
            entry.timesteps,
            entry.parameters and f"{entry.parameters:,}",
        ]
        at = {round(255 * point.eps, 6): point.value for point in found.robust} if found else {}
        accuracies = [
            percent(found and found.clean.value),
            *(percent(at.get(radius)) for radius in (2, 4, 8)),
        ]
        for word in (*(str(fact or "–") for fact in facts), *accuracies):
            assert word in line.split()
        if found:
            assert found.short_protocol in line
            assert f"{found.n:,}" in line.split()
            assert line.split()[-1] == (
                "–" if found.microjoules is None else f"{found.microjoules:.1f}"
            )


@pytest.mark.parametrize("width", [100, 80])
def test_it_fits_a_terminal_and_imports_no_torch(width: int) -> None:
    command, environment = (
        [sys.executable, "-c", IN_A_TERMINAL, str(width)],
        os.environ | {"NO_COLOR": "1"},
    )
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    text = re.sub(r"\x1b\[\d*m", "", done.stdout)  # bold headers
    assert max(map(len, text.splitlines())) <= width
    joined = "".join(line.split(" ")[0] for line in text.splitlines())
    for entry in list_models():
        assert entry.name in joined  # whole, if on several lines
        assert all(f"{100 * results.clean.value:.1f}" in text for results in entry.results[:1])
    assert "…" not in text
    assert ("protocol" in text) == (width == 100)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--kind", "ann"), lambda entry: entry.kind == "ann"),
        (
            ("--threat", "linf", "--dataset", "cifar10"),
            lambda entry: (entry.threat, entry.dataset) == ("linf", "cifar10"),
        ),
        (("--threat", "none"), lambda entry: entry.threat == "none"),
        (("--timesteps", 4), lambda entry: entry.timesteps == 4),
        (("--timesteps", 4, "--kind", "ann"), lambda entry: False),
    ],
)
def test_filters(cli: Cli, options: tuple[object, ...], wanted: Callable[[Any], bool]) -> None:
    listed = json.loads(cli("list", *options, "--json").stdout)
    expected = [entry.name for entry in list_models() if wanted(entry)]
    assert [entry["name"] for entry in listed] == expected
    if not expected:
        assert cli("list", *options).stdout == "There are no such models.\n"


CARD = """---
tags: [sj-robust, spiking-neural-network]
datasets: [uoft-cs/cifar10]
sj_robust: {facts}
model-index:
- name: x
  results:
  - dataset: {{type: uoft-cs/cifar10, config: clean}}
    metrics: [{{type: accuracy, value: 0.7}}, {{type: energy, value: {energy}}}]
  - dataset: {{type: uoft-cs/cifar10, config: l2-0.5}}
    metrics: [{{type: accuracy, value: 0.6, args: {{eps: 0.5, {args}}}}}]
  - dataset: {{type: uoft-cs/cifar10, config: linf-8-255}}
    metrics: [{{type: accuracy, value: 0.5, args: {{eps: 0.03137254901960784}}}}]
---
"""


def test_what_cards_on_the_hub_say_and_what_strangers_write(hub: Any, cli: Cli) -> None:
    def publish(name: str, facts: str, energy: str, args: str) -> None:
        hub.create(name).put(
            {"README.md": CARD.format(facts=facts, energy=energy, args=args).encode()}
        )

    publish(
        "alice/good",
        "{timesteps: 4, parameters: 1234567, threat: linf}",
        "30.26",
        "attacks: [pgd10], views: 19, protocol: quick@1",
    )
    publish(
        "bob/odd", '{timesteps: 4, threat: "[red]\\e[31m"}', ".inf", "attacks: [7], views: many"
    )
    publish("bob/list", "[1, 2]", "[]", "attacks: [fgsm, pgd10], views: 1")
    lines = {
        line.split()[0]: " ".join(line.split())
        for line in cli("list", "--hub").stdout.splitlines()
        if "/" in line.split()[0]
    }
    assert lines == {
        "alice/good": "alice/good snn cifar10 linf 4 1,234,567 70.0 – – 50.0 quick@1 – 30.3",
        "bob/odd": "bob/odd snn cifar10 – – – 70.0 – – 50.0 – – –",
        "bob/list": "bob/list snn cifar10 – – – 70.0 – – 50.0 fgsm + pgd10, 1 view – –",
    }
    shown = cli("list", "--hub", "--timesteps", 4, "--threat", "linf").stdout
    assert "alice/good" in shown and "bob/" not in shown
