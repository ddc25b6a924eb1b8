"""Wilson intervals and reports as JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sj_robust import list_models
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import Accuracy, EnergyEstimate, Report, eps_name, evaluate, wilson


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (score without continuity
        # correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_published_values(
    correct: int, total: int, low: float, high: float
) -> None:
    found = wilson(correct, total)
    assert found == pytest.approx((low, high), abs=5e-5)
    assert wilson(total - correct, total) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for total in (1, 7, 500, 10_000):
        for correct in {0, 1, total // 3, total - 1, total}:
            interval = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
            assert wilson(correct, total) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize(("correct", "total"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_proportion(correct: int, total: int) -> None:
    with pytest.raises(SJRobustError, match=f"{correct} correct of {total}"):
        wilson(correct, total)


def test_accuracy_is_printed_in_percent() -> None:
    assert str(Accuracy.of(81, 263)) == "30.8 % [25.5, 36.6]"
    assert str(Accuracy.of(20, 20)) == "100.0 % [83.9, 100.0]"


def test_eps_is_printed_in_grey_levels() -> None:
    assert [eps_name(value) for value in (2 / 255, 8 / 255, 0.3, 0.0)] == [
        "2/255",
        "8/255",
        "0.3",
        "0/255",
    ]


@pytest.fixture(scope="module")
def report(trained_snn, dataset) -> Report:
    return evaluate(
        trained_snn,
        dataset,
        max_images=12,
        eps=(4 / 255, 16 / 255),
        attacks=("fgsm", "pgd2"),
        views=("PCW:1", "rate"),
    )


def test_a_report_of_before_energies_were_estimated_loads(report: Report) -> None:
    content = json.loads(report.to_json())
    assert content.pop("energy")["images"] == 12
    old = Report.from_json(json.dumps(content))
    assert old == report.model_copy(update={"energy": None})
    assert old.summary().splitlines()[-1] == "energy  not measured"


def test_an_energy_is_one_line() -> None:
    costs = dict(
        images=64, acs=31.34e6, macs=442_640, microjoules=30.242, picojoules={"MAC": 4.6, "AC": 0.9}
    )
    spiking = EnergyEstimate(**costs, ann_macs=40_551_040, ann_microjoules=186.535)
    assert str(spiking) == "30.2 µJ per image (estimate: 31.3 M ACs, 0.4 M MACs; its ANN 186.5 µJ)"
    ann = EnergyEstimate(
        images=1,
        acs=0,
        macs=580,
        microjoules=580 * 4.6e-6,
        ann_macs=None,
        ann_microjoules=None,
        picojoules={"MAC": 4.6},
    )
    assert str(ann) == "0.0027 µJ per image (estimate: 580 MACs)"


def test_a_report_is_read_without_torch(report: Report) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\nfrom sj_robust.evaluation import Report\n"
        "print(Report.from_json(sys.stdin.read()).summary(), end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=report.to_json(), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (report.summary(), "")


def test_json_round_trip(report: Report) -> None:
    text = report.to_json()
    assert Report.from_json(text) == report
    assert Report.from_json(text.encode()) == report


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text[:-20], "not an evaluation report of this version: Invalid JSON"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format"),
        (lambda text: text.replace('"seconds"', '"minutes"'), "seconds|minutes"),
        (lambda text: text.replace('"total": 12', '"total": "twelve"'), "clean.total"),
        (lambda text: "[]", "not an evaluation report"),
    ],
)
def test_a_text_that_is_no_report_is_named(report: Report, edit, message: str) -> None:
    with pytest.raises(SJRobustError, match=message):
        Report.from_json(edit(report.to_json()))


def test_summary_prints_the_numbers_of_the_report(report: Report) -> None:
    lines = report.summary().splitlines()
    assert "SNN, T=4" in lines[0]
    assert "first 12 of 160 images" in lines[0]
    assert lines[1] == f"clean accuracy  {report.clean}"
    rows = {line.split()[0]: line for line in lines if line[:1].isdigit()}
    assert list(rows) == ["4/255", "16/255"]
    for joint in report.joint:
        assert str(joint.accuracy) in rows[eps_name(joint.eps)]
        for result in report.robust:
            if result.eps == joint.eps:
                assert str(result.joint) in rows[eps_name(joint.eps)]
    assert lines[-1] == f"energy  {report.energy}"
    header = next(line for line in lines if line.startswith("eps"))
    assert [column.strip() for column in header.split("  ") if column.strip()] == [
        "eps",
        "after fgsm",
        "after pgd2",
        "joint",
        "broke most",
    ]


def at(*path: str | int, value: object) -> object:
    """Another value (or what `value` makes of the one there) at a place of a report."""

    def change(content: dict) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value(content[path[-1]]) if callable(value) else value

    return pytest.param(change, id=".".join(map(str, path)))


def swap_first_outcomes(content: dict) -> None:
    """A right image that was broken by nothing is said to have been, and at the larger eps not any
    more."""
    outcome = content["per_image"]
    right = next(
        i
        for i, (label, predicted) in enumerate(
            zip(outcome["label"], outcome["predicted"], strict=True)
        )
        if label == predicted
    )
    outcome["broken_by"][0][right], outcome["broken_by"][1][right] = "fgsm PCW:1", None


@pytest.mark.parametrize(
    "change",
    [
        at("clean", "value", value=0.999),
        at("clean", "correct", value=lambda n: n - 1),
        at("clean", "total", value=1000),
        at("clean", "low", value=0.0),
        at("clean", "high", value=1.03),
        at("clean", "high", value=float("nan")),
        at("joint", 1, "accuracy", "value", value=0.999),
        at("joint", 0, "accuracy", "correct", value=10**400),
        at("joint", 1, "carried", value=7),
        at("joint", 0, "eps", value=0.5),
        at("joint", 0, "eps", value=-1.0),
        at("joint", value=[]),
        at("settings", "eps", value=[0.1]),
        at("settings", "attacks", value=["fgsm", "pgd100"]),
        at("settings", "views", value=["ASSG"]),
        at("robust", value=[]),
        at("robust", 0, "joint", "low", value=0.9),
        at("robust", 1, "eps", value=0.3),
        at("robust", 0, "attack", value="pgd2"),
        at("robust", 0, "per_view", "PCW:1", "broken", value=lambda n: n + 1),
        at("robust", 0, "per_view", "PCW:1", "attempted", value=0),
        at("robust", 0, "per_view", "PCW:1", "alone", "correct", value=lambda n: n - 1),
        at("robust", 0, "alone", "correct", value=lambda n: n - 1),
        at("robust", 0, "per_view", value={}),
        at("robust", 0, "settings", "eps", value=0.3),
        at("per_image", "label", value=lambda labels: labels[1:]),
        at("per_image", "label", 0, value=-1),
        at("per_image", "predicted", value=lambda classes: [*classes[1:], 99]),
        at("per_image", "predicted", value=lambda classes: [(k + 1) % 10 for k in classes]),
        at("per_image", "broken_by", value=lambda rows: rows[:1]),
        at("per_image", "broken_by", 0, value=lambda row: ["magic"] * len(row)),
        at("per_image", "broken_by", 1, value=lambda row: [None] * len(row)),
        pytest.param(swap_first_outcomes, id="outcomes that heal"),
        at("dataset", "evaluated", value=13),
        at("dataset", "size", value=3),
        at("model", "timesteps", value=8),
        at("model", "kind", value="ann"),
        at("model", "num_classes", value=1),
        at("model", "settings", "timesteps", value=3),
        at("forward_images", value=10**9),
        at("backward_images", value=-1),
        at("energy", "microjoules", value=1.0),
        at("energy", "ann_microjoules", value=1.0),
        at("energy", "acs", value=0.0),
        at("energy", "macs", value=10**400),
        at("energy", "images", value=10**6),
        at("activity", "spikes_per_image", value=1.0),
        at("activity", "neurons", value=1),
        at("activity", "spikes_per_neuron", value=0.0),
        at("settings", "protocol", value="strong@2"),
        at("settings", "protocol", value="quick@1"),
        at("verdict", value="No sign of masked gradients: can be trusted."),
        at("checks", value=[]),
    ],
)
def test_figures_that_contradict_each_other_are_refused(report: Report, change) -> None:
    content = json.loads(report.to_json())
    change(content)
    with pytest.raises(
        SJRobustError,
        match=r"the evaluation contradicts itself: |not an evaluation report of this version: ",
    ) as error:
        Report.from_json(json.dumps(content))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_a_protocol_is_believed_by_its_attacks_and_views(kind: str) -> None:
    entry = next(one for one in list_models() if one.kind == kind and one.results)
    content = json.loads((entry.folder / "evaluation.json").read_text())
    assert content["settings"]["protocol"] == "strong@2"
    for taken_for in ("quick@1", "paper@1", "autoattack@1"):
        content["settings"]["protocol"] = taken_for
        with pytest.raises(SJRobustError, match=f"contradicts itself: {taken_for} runs"):
            Report.from_json(json.dumps(content))
    # a version that this release does not have, and attacks of no protocol
    for taken_for in ("strong@1", None):
        content["settings"]["protocol"] = taken_for
        Report.from_json(json.dumps(content))


def test_names_of_a_stranger_print_as_one_line(report: Report) -> None:
    content = json.loads(report.to_json())
    content["dataset"]["name"] = "cifar10\nclean accuracy  99.9 %\x1b[8m"
    content["limits"] = content["checks"][0]["found"] = "\x1b]0;owned\x07\u202e"
    content["limits"] = []
    text = Report.from_json(json.dumps(content)).summary()
    assert text.replace("\n", "").isprintable()
    assert sum(line.startswith("clean accuracy") for line in text.split("\n")) == 1
