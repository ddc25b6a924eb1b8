"""One checkpoint, evaluated under several protocols: each has its file, and all are in card, index,
comparison and on the Hub."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from made_up import outcomes
from typer.testing import CliRunner

from sj_robust import SJRobustError, list_models, pull, push
from sj_robust.card import write_card
from sj_robust.catalog import locate
from sj_robust.checkpoint import record, zoo
from sj_robust.checkpoint.config import STRONGEST_FIRST
from sj_robust.checkpoint.results import headline, results
from sj_robust.cli.app import app
from sj_robust.compare import compare
from sj_robust.evaluation import Report
from sj_robust.evaluation.protocol import PROTOCOLS


def under(report: Report, protocol: str | None, robust: int, first: int = 0) -> Report:
    """`report` as if `protocol` had left `robust` images standing at every eps from the `first`
    on."""
    content, eps = json.loads(report.to_json()), tuple(report.settings.eps)[first:]
    content["settings"]["protocol"] = protocol
    content |= outcomes(
        report.model.kind,
        report.clean.correct,
        (robust,) * len(eps),
        eps,
        report.clean.total,
        content["settings"],
    )
    return Report.from_json(json.dumps(content))


def standing(folder: Path) -> dict[str, str | None]:
    return {
        path.name: Report.from_json(path.read_text()).settings.protocol
        for path in sorted(folder.glob("evaluation*.json"))
        if path.name != "evaluation_source.json"
    }


def test_every_protocol_has_its_place() -> None:
    assert set(STRONGEST_FIRST) == {*PROTOCOLS, "custom", "8bit"}


@pytest.mark.parametrize(
    "order", [("quick@1", None, "strong@1", "paper@1"), ("strong@1", "paper@1", "quick@1", None)]
)
def test_the_strongest_protocol_stands_in_front_and_none_is_lost(
    checkpoint: Path, reports: Any, order: tuple[str | None, ...]
) -> None:
    (checkpoint / "evaluation.json").unlink()
    for protocol in order:
        written = record(checkpoint, report=under(reports[1], protocol, 3))
        assert Report.from_json(written[0].read_text()).settings.protocol == protocol
    assert standing(checkpoint) == {
        "evaluation.json": "strong@1",
        "evaluation_custom.json": None,
        "evaluation_paper.json": "paper@1",
        "evaluation_quick.json": "quick@1",
    }
    record(checkpoint, report=under(reports[1], "paper@1", 5))  # again: in its own place
    assert len(standing(checkpoint)) == 4
    assert (
        Report.from_json((checkpoint / "evaluation_paper.json").read_text())
        .joint[0]
        .accuracy.correct
        == 5
    )


def test_a_damaged_evaluation_and_one_of_other_weights_are_replaced(
    checkpoint: Path, reports: Any
) -> None:
    for text in ("not json", reports[0].to_json()):
        (checkpoint / "evaluation.json").write_text(text)
        record(checkpoint, report=under(reports[1], "quick@1", 3))
        assert standing(checkpoint) == {"evaluation.json": "quick@1"}


@pytest.fixture
def both(checkpoint: Path, reports: Any) -> Path:
    (checkpoint / "evaluation.json").unlink()
    for protocol, robust in (("strong@1", 2), ("paper@1", 4)):
        record(checkpoint, report=under(reports[1], protocol, robust))
    return checkpoint


def test_the_card_has_an_entry_for_every_eps_and_protocol(both: Path) -> None:
    write_card(both)
    text, card = (both / "README.md").read_text(), ModelCard.load(both / "README.md")
    assert str(card) == text
    found = {
        result.dataset_config: result
        for result in card.data.eval_results
        if result.metric_type == "accuracy"
    }
    assert list(found) == [
        "clean",
        "linf-1-255",
        "linf-2-255",
        "linf-8-255",
        "linf-1-255-paper",
        "linf-2-255-paper",
        "linf-8-255-paper",
    ]
    assert [
        (found[config].metric_value, found[config].metric_args["protocol"])
        for config in ("linf-8-255", "linf-8-255-paper")
    ] == [(0.125, "strong@1"), (0.25, "paper@1")]
    assert "| eps (l∞) | this model | this model, paper | ANN source |" in text
    assert any(
        line.startswith("| 8/255 | 12.5 %") and "| 25.0 %" in line for line in text.splitlines()
    )
    assert '"this model, paper": 16 images of sample test, paper@1: ' in text
    (both / "evaluation_paper.json").unlink()
    write_card(both)
    assert "paper" not in (both / "README.md").read_text()


def test_the_lowest_figure_comes_first_whichever_protocol_found_it(
    both: Path, reports: Any
) -> None:
    record(both, report=under(reports[1], "paper@1", 1, first=1))  # strong left 2
    write_card(both)
    text, card = (both / "README.md").read_text(), ModelCard.load(both / "README.md")
    assert "| eps (l∞) | this model | this model, strong | this model, paper | ANN source |" in text
    rows = [
        [cell.strip().split(" [")[0] for cell in line.split("|")[1:5]]
        for line in text.splitlines()
        if re.match(r"\| \d+/255 ", line)
    ]
    assert rows == [
        ["1/255", "12.5 %", "12.5 %", "not measured"],
        *([f"{eps}/255", "6.2 %", "12.5 %", "6.2 %"] for eps in (2, 8)),
    ]
    assert '"this model" is the lowest accuracy that any of its evaluations found' in text
    assert (
        "Robust means: strong@1: fgsm, 2 gradient views, worst case per image, linf; paper@1: fgsm"
        in text
    )
    found = {
        one.dataset_config: one.metric_args["protocol"]
        for one in card.data.eval_results
        if "protocol" in (one.metric_args or {})
    }
    assert found == {
        "linf-1-255": "strong@1",
        "linf-2-255": "paper@1",
        "linf-8-255": "paper@1",
        "linf-2-255-strong": "strong@1",
        "linf-8-255-strong": "strong@1",
    }


def test_what_breaks_at_a_smaller_eps_counts_at_a_larger_one(reports: Any) -> None:
    strong, paper = (
        results(under(reports[1], protocol, robust))
        for protocol, robust in (("strong@1", 2), ("paper@1", 3))
    )
    small = strong.model_copy(update={"robust": strong.robust[:1]})
    found = headline([small, paper])
    assert [(point.eps, point.value) for point in found.robust] == [
        (point.eps, 2 / 16) for point in paper.robust
    ]
    assert headline([strong, paper]) is strong


def gridded(report: Report) -> Report:
    content = json.loads(report.to_json())
    content["settings"]["grid"] = "8bit"
    return Report.from_json(json.dumps(content))


def test_a_figure_of_8_bit_images_stands_beside_another_and_never_first(
    both: Path, reports: Any, tmp_path: Path
) -> None:
    lower = gridded(under(reports[1], "strong@1", 1))  # by chance: it would be the lowest
    written = record(both, report=lower)
    assert [path.name for path in written] == ["evaluation_8bit.json"]
    write_card(both)
    text = (both / "README.md").read_text()
    assert (
        "| eps (l∞) | this model | this model, paper | this model, 8-bit images | ANN source |"
        in text
    )
    assert any(line.startswith("| 8/255 | 12.5 %") for line in text.splitlines())
    configs = [
        result.dataset_config for result in ModelCard.load(both / "README.md").data.eval_results
    ]
    assert "linf-8-255" in configs and "linf-8-255-8bit" in configs
    assert compare([both]).rows[0].robust[-1].value == 0.125
    files = compare([both, both / "evaluation_8bit.json"])
    assert files.footnotes == ["Other images: of 8 bits, as a file holds them."]
    for name in ("evaluation.json", "evaluation_paper.json"):
        (both / name).unlink()
    with pytest.raises(SJRobustError, match="8-bit images alone"):
        write_card(both)
    with pytest.raises(SJRobustError, match="record one without --grid first"):
        record(both, report=lower)
    (both / "evaluation_8bit.json").rename(both / "evaluation.json")
    for read in (write_card, lambda folder: compare([folder])):
        with pytest.raises(
            SJRobustError, match="is an evaluation of 8-bit images: only evaluation_8bit"
        ):
            read(both)


def test_index_and_comparison_know_both(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sj_robust.checkpoint.zoo.root", lambda: tmp_path / "zoo")
    entry = zoo.add(both, "snn")
    assert [results.named for results in entry.results] == ["strong@1", "paper@1"]
    assert list_models() == [entry]
    entry.verify()
    strong = Report.from_json((both / "evaluation.json").read_text())
    locate(entry.folder).record(report=under(strong, "quick@1", 9))
    assert [results.named for results in zoo.find("snn").results] == [
        "strong@1",
        "paper@1",
        "quick@1",
    ]
    zoo.find("snn").verify()
    shown = CliRunner().invoke(app, ["info", str(both)])
    assert "under strong" in shown.output and "joint robust 25.0 %" in shown.output
    rows = {
        protocol: compare([both], protocol=protocol).rows[0]
        for protocol in (None, "strong", "paper", "quick", "paper@1")
    }
    assert {
        protocol: (row.setup and row.setup.named, row.robust[-1].value)
        for protocol, row in rows.items()
    } == {
        None: ("strong@1", 0.125),
        "strong": ("strong@1", 0.125),
        "paper": ("paper@1", 0.25),
        "quick": ("strong@1", 0.125),
        "paper@1": ("paper@1", 0.25),
    }
    with pytest.raises(
        SJRobustError,
        match="unknown protocol 'best': expected one of strong, autoattack, paper, quick, custom",
    ):
        compare([both], protocol="best")


def test_both_travel_over_the_hub(hub: Any, both: Path, tmp_path: Path) -> None:
    write_card(both)
    push(both, "alice/snn")
    assert standing(pull("alice/snn", to=tmp_path / "to")) == standing(both)
    (row,) = compare([], ["alice/snn"], protocol="paper").rows  # the weights are not fetched for it
    assert row.setup is not None and row.setup.named == "paper@1"
    shutil.copyfile(both / "evaluation_source.json", both / "evaluation_paper.json")
    with pytest.raises(SJRobustError, match="the evaluation is of another model"):
        push(both, "alice/snn", force=True)
