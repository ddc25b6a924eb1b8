"""Comparisons of recorded evaluations: of the zoo's models, and of made-up ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_up import ANN, PGD, SETTINGS, TRADES, VIEWS, Make, check

from sj_robust import SJRobustError, list_models
from sj_robust.compare import Comparison, compare
from sj_robust.evaluation.report import Changed
from sj_robust.evaluation.words import verdict


def row_of(comparison: Comparison, name: str) -> Any:
    return next(row for row in comparison.rows if row.name == name)


def notes_of(comparison: Comparison, name: str, figure: str = "robust") -> list[str]:
    return [
        comparison.footnotes[number - 1]
        for number in getattr(row_of(comparison, name).marks, figure)
    ]


def test_the_zoo_is_compared_by_what_its_index_says() -> None:
    comparison = compare([entry.name for entry in list_models()])
    assert len(comparison.rows) == len(list_models())
    for entry in list_models():
        row, results = row_of(comparison, entry.name), entry.strongest
        assert (row.kind, row.architecture, row.timesteps) == (
            entry.kind,
            entry.architecture,
            entry.timesteps,
        )
        if results is None:
            assert (row.setup, row.clean, row.rank) == (None, None, None)
            continue
        assert (row.clean.value, row.clean.low, row.clean.high) == (
            results.clean.value,
            results.clean.low,
            results.clean.high,
        )
        assert [(cell.eps, cell.value, cell.low, cell.high) for cell in row.robust] == [
            (point.eps, point.value, point.low, point.high) for point in results.robust
        ]
        assert (row.spikes_per_neuron is None) == (entry.kind == "ann")
        assert (row.microjoules, row.ann_microjoules) == (
            results.microjoules,
            results.ann_microjoules,
        )
    ranks = [row.rank for row in comparison.rows if row.rank is not None]
    assert ranks[:1] == [1]
    assert ranks == sorted(ranks)


def test_a_spiking_network_beside_its_ann_says_what_it_keeps() -> None:
    snn, ann = "resnet20-snn-t4.cifar10_linf_pgd", "resnet20.cifar10_linf_pgd"
    other = "resnet20.cifar10_linf_pgd_eps8"
    rows = {row.name: row for row in compare([snn, ann, other]).rows}
    assert [share.eps for share in rows[snn].kept] == [cell.eps for cell in rows[snn].robust]
    for share, cell, of_ann in zip(rows[snn].kept, rows[snn].robust, rows[ann].robust, strict=True):
        assert share.value == pytest.approx(cell.value / of_ann.value)
    assert rows[ann].kept == rows[other].kept == []
    assert compare([snn, other]).rows[1].kept == []  # another network's ANN
    assert all(row.rank for row in rows.values())  # one protocol, which attacks ANNs in its own way
    markdown = compare([snn, ann]).to_markdown()
    assert f"\\], {100 * rows[snn].kept[0].value:.0f} % of its ANN's | " in markdown


@pytest.mark.usefixtures("three")
def test_an_ann_beside_spiking_networks_says_that_its_gradient_is_another() -> None:
    comparison = compare([ANN, PGD, TRADES])
    assert [row.rank for row in comparison.rows] == [1, 2, None]
    assert "19 views" in comparison.setup.protocol  # type: ignore[union-attr]
    assert notes_of(comparison, ANN) == [
        "Other gradients: the exact gradient, an ANN has no other; the ranked models were attacked"
        " through 19 views."
    ]
    assert notes_of(comparison, ANN, "clean") == []  # the clean accuracy is of the same images
    assert notes_of(comparison, PGD) == notes_of(comparison, TRADES) == []


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("change", "note", "clean_too"),
    [
        (
            {"dataset": {"name": "svhn"}},
            "Other data: 500 images of svhn test, not 500 of cifar10 test.",
            True,
        ),
        (
            {"dataset": {"split": "train"}},
            "Other data: 500 images of cifar10 train, not 500 of cifar10 test.",
            True,
        ),
        ({"total": 400}, "Other images: 400 of cifar10 test, not 500.", True),
        (
            {"dataset": {"fingerprint": "f" * 64}},
            "Other images under the same name, cifar10 test (fingerprint ffffffffffff, not",
            True,
        ),
        ({"norm": "l2"}, "Other norm: l2, not linf.", False),
        ({"protocol": "strong@1"}, "Other protocol: strong@1, not fgsm + pgd10, 19 views.", False),
        ({"attacks": ["fgsm", "pgd20"]}, "Other attacks: fgsm + pgd20, not fgsm + pgd10.", False),
        ({"views": ["PCW:1", "rate"]}, "Other gradients: 2 views, not 19 views.", False),
        ({"restarts": 5}, "Other number of restarts: 5, not 1.", False),
        (
            {"attacks": [], "correct": (), "eps": ()},
            "Clean accuracy only: nothing was attacked.",
            False,
        ),
        (
            {"stopped": "after 9 s (time_limit)"},
            (
                "The evaluation was stopped after 9 s (time_limit); what was not attacked counts as"
                " robust."
            ),
            False,
        ),
    ],
)
def test_what_differs_is_marked_and_not_ranked(
    make: Make, change: dict[str, Any], note: str, clean_too: bool
) -> None:
    comparison = compare([make("odd", **{"correct": (390, 380, 370), **change}), PGD, TRADES])
    assert [(row.name, row.rank) for row in comparison.rows] == [
        (PGD, 1),
        (TRADES, 2),
        ("odd", None),
    ]
    assert [found.startswith(note) for found in notes_of(comparison, "odd")] == [True]
    assert bool(notes_of(comparison, "odd", "clean")) is clean_too
    assert len(comparison.footnotes) == 1
    if norm := change.get("norm"):  # its figures must not share a column with l∞ of the same number
        assert {eps.norm for eps in comparison.columns} == {"linf", norm}
        assert all(
            row_of(comparison, "odd").at(eps) is None
            for eps in comparison.columns
            if eps.norm == "linf"
        )


@pytest.mark.usefixtures("three")
def test_several_differences_are_all_told(make: Make) -> None:
    comparison = compare(
        [
            PGD,
            TRADES,
            make("odd", norm="l2", attacks=["fgsm"], restarts=2, total=400, correct=(1, 1, 1)),
        ]
    )
    assert [note.split(":")[0] for note in notes_of(comparison, "odd")] == [
        "Other images",
        "Other norm",
        "Other attacks",
        "Other number of restarts",
    ]


def test_a_named_protocol_is_the_same_for_an_ann(make: Make) -> None:
    ann = make("ann", kind="ann", protocol="quick@1", correct=(400, 300, 100))
    snn, other = (
        make("snn", protocol="quick@1", correct=(90, 80, 70)),
        make("other", protocol="paper@1", correct=(99, 98, 97)),
    )
    comparison = compare([ann, snn, other])
    assert [(row.name, row.rank) for row in comparison.rows] == [
        ("ann", 1),
        ("snn", 2),
        ("other", None),
    ]
    assert notes_of(comparison, "other") == ["Other protocol: paper@1, not quick@1."]


def test_views_chosen_under_a_protocol_that_lets_them_are_marked(make: Make) -> None:
    shared = {"protocol": "autoattack@1", "correct": (3, 2, 1)}
    folders = [
        make("ann", kind="ann", **shared),
        make("a", views=["ASSG", "black-box"], **shared),
        make("b", views=["PCW:1", "black-box"], **shared),
        make("c", views=["ASSG", "black-box"], **shared),
    ]
    comparison = compare(folders)
    # equal figures share a rank
    assert {row.name: row.rank for row in comparison.rows} == {"ann": 1, "a": 1, "c": 1, "b": None}
    assert notes_of(comparison, "b") == ["Other gradients: PCW:1, not ASSG."]


def test_transfer_from_another_source_is_still_transfer(make: Make) -> None:
    folders = [
        make(name, protocol="strong@1", views=["ASSG", f"transfer:{name}"], correct=(3, 2, 1))
        for name in ("a", "b")
    ]
    assert compare(folders).footnotes == []


@pytest.mark.usefixtures("three")
def test_figures_share_a_column_at_equal_eps_alone(make: Make) -> None:
    few = make("few", eps=(8 / 255, 16 / 255), correct=(90, 5), energy=25.0)
    none_shared = make("other", eps=(1 / 255,), correct=(400,))
    comparison = compare([PGD, few, none_shared, TRADES])
    assert [eps.label for eps in comparison.columns] == [
        "1/255",
        "2/255",
        "4/255",
        "8/255",
        "16/255",
    ]
    assert [(row.name, row.rank) for row in comparison.rows] == [
        ("few", 1),
        (PGD, 2),
        (TRADES, 3),
        ("other", None),
    ]
    assert notes_of(comparison, "few") == [
        "Other eps: 8/255, 16/255, not 2/255, 4/255, 8/255; an image that a smaller eps broke"
        " counts as broken at larger ones."
    ]
    assert row_of(comparison, PGD).at(comparison.columns[0]) is None
    # 1/255, 2/255, 4/255 of "few", noise
    assert comparison.to_markdown().splitlines()[2].count("not measured") == 4


@pytest.mark.usefixtures("three")
def test_a_checkpoint_without_evaluation_is_not_measured(make: Make) -> None:
    comparison = compare([make("bare", measured=False), PGD])
    bare = row_of(comparison, "bare")
    assert (bare.rank, bare.setup, bare.clean, bare.robust) == (None, None, None, [])
    assert comparison.rows[-1] is bare
    # clean, three eps, energy, protocol, images, checks, noise
    assert comparison.to_markdown().splitlines()[3].count("not measured") == 9
    # both have no roughness
    assert comparison.to_html().count('<td class="missing">not measured</td>') == 9
    alone = compare([make("alone", measured=False)])
    assert (alone.setup, alone.columns, alone.about()) == (
        None,
        [],
        ["No model has a recorded evaluation."],
    )
    assert "<figure" not in alone.to_html()


def test_clean_accuracies_are_ranked_where_nothing_was_attacked(make: Make) -> None:
    folders = [
        make(name, clean=clean, attacks=[], views=[], correct=(), eps=())
        for name, clean in (("a", 317), ("b", 341))
    ]
    comparison = compare(folders)
    assert [(row.rank, row.name) for row in comparison.rows] == [(1, "b"), (2, "a")]
    assert comparison.ranked_by is None
    assert "Ranked by clean accuracy" in comparison.to_markdown()
    assert "<figure" not in comparison.to_html()


@pytest.mark.parametrize(
    ("statuses", "status", "word"),
    [
        (["pass", "pass"], "pass", "pass"),
        (["pass", "warn"], "warn", "with reservations"),
        (["warn", "not run"], "not run", "incomplete"),
        (["warn", "not run", "fail"], "fail", "do not trust"),
        (["pass", "too few"], "too few", "too few to tell"),
    ],
)
def test_the_word_for_the_checks_is_that_of_their_verdict(
    make: Make, statuses: list[Any], status: str, word: str
) -> None:
    checks = [check(f"check {number}", status) for number, status in enumerate(statuses)]
    said = verdict(checks, SETTINGS["attacks"], VIEWS, True)
    comparison = compare([make("checked", checks=checks)])
    found = comparison.rows[0].checks
    assert found is not None
    assert (found.status, found.count, found.verdict) == (status, len(statuses), said)
    assert comparison.to_markdown().splitlines()[2].endswith(f"| {word} |")
    assert said in comparison.to_html()
    assert "not checked" in compare([make("unchecked")]).to_markdown()


def test_a_verdict_is_said_anew_from_checks_that_could_fail(make: Make) -> None:
    folder = make("edited", checks=[check("noise", "pass")])
    file = folder / "evaluation.json"
    file.write_text(
        file.read_text().replace(
            "No sign of masked gradients", "No sign of masked gradients. Certified"
        )
    )
    found = compare([folder]).rows[0].checks
    assert found is not None
    assert found.verdict == verdict([check("noise", "pass")], SETTINGS["attacks"], VIEWS, True)
    assert (
        "not checked"
        in compare([make("old", checks=[check("inside the ball", "pass")])]).to_markdown()
    )


@pytest.mark.usefixtures("three")
def test_roughness_is_shown_where_it_was_measured(make: Make) -> None:
    changed = [
        Changed.of(eps, count, 64).model_dump() for eps, count in ((1 / 255, 2), (8 / 255, 20))
    ]
    rough = {"points": 100, "others": {}, "model": changed}
    comparison = compare([make("rough", roughness=rough), PGD])
    assert row_of(comparison, "rough").roughness[1].value == 20 / 64
    assert "3.1 % at 1/255, 31.2 % at 8/255" in comparison.to_markdown()
    assert "3.1 % at 1/255, 31.2 % at 8/255" in comparison.to_html()


@pytest.mark.usefixtures("three")
def test_the_same_checkpoints_give_the_same_json(make: Make) -> None:
    names = [PGD, ANN, make("odd", restarts=3)]
    text = compare(names).to_json()
    assert compare(names).to_json() == text
    assert Comparison.model_validate_json(text).to_json() == text
    content = json.loads(text)
    assert list(content) == ["format", "setup", "ranked_by", "columns", "rows", "footnotes"]
    assert list(content["rows"][0]) == [
        "name",
        "kind",
        "architecture",
        "timesteps",
        "parameters",
        "rank",
        "setup",
        "clean",
        "robust",
        "kept",
        "spikes_per_neuron",
        "spikes_per_image",
        "microjoules",
        "ann_microjoules",
        "checks",
        "roughness",
        "marks",
    ]
    assert (content["rows"][0]["microjoules"], content["rows"][0]["ann_microjoules"]) == (
        30.3,
        186.5,
    )


@pytest.mark.usefixtures("three")
def test_a_model_named_twice_counts_once_and_equal_names_are_told_apart(
    make: Make, tmp_path: Path
) -> None:
    assert [row.name for row in compare([PGD, f"./{PGD}", tmp_path / PGD]).rows] == [PGD]
    first = make("one")
    (tmp_path / "elsewhere").mkdir()
    second = Path(shutil.copytree(first, tmp_path / "elsewhere" / "one"))
    assert [row.name for row in compare([first, second]).rows] == [
        f"one ({first})",
        f"one ({second})",
    ]


def test_an_evaluation_of_other_weights_or_damaged_is_named(make: Make) -> None:
    folder = make("a")
    config = json.loads((folder / "config.json").read_text())
    config["weights"]["state_sha256"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SJRobustError, match="evaluation is of another model"):
        compare([folder])
    text = (make("b") / "evaluation.json").read_text()
    for place, (old, new) in enumerate(
        [
            ('"value": 0.634', '"value": 63.4'),
            ('"low": 0.59', '"low": NaN, "_": 0.59'),
            ('"format": 1', '"format": 2'),
            ('"dataset"', '"data"'),
            ("{", "["),
        ]
    ):
        damaged = make(f"damaged{place}")
        assert old in text
        (damaged / "evaluation.json").write_text(text.replace(old, new, 1))
        with pytest.raises(
            SJRobustError,
            match=(
                r"evaluation.json: not an evaluation report of this version: .*evaluate the"
                r" checkpoint"
            ),
        ):
            compare([damaged])


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\nfrom sj_robust.checkpoint import zoo\nfrom"
        " sj_robust.compare import compare\nc"
        " = compare([entry.name for entry in zoo.list_models()]); c.to_json(); c.to_markdown();"
        " print(len(c.to_html()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10_000
