"""The index: facts read from checkpoints, files verified against it, no torch needed to list it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from sj_robust import SJRobustError, list_models, load
from sj_robust.card import write_card
from sj_robust.card.write import collect_cards
from sj_robust.checkpoint import zoo

NAME = "resnet20-snn-t3.sample_linf_trades"


@pytest.fixture
def empty_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "zoo"
    (root / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(zoo, "zoo_root", lambda: root)
    return root


@pytest.fixture
def filled_zoo(empty_zoo: Path, saved: Path) -> Path:
    zoo.add(saved / "snn", NAME)
    zoo.add(saved / "ann", "resnet20.sample_natural")
    return empty_zoo


def test_an_entry_holds_the_facts_of_its_checkpoint(
    filled_zoo: Path, reports: tuple, saved: Path
) -> None:
    assert [entry.name for entry in list_models()] == [NAME, "resnet20.sample_natural"]
    entry = zoo.find(NAME)
    assert (entry.kind, entry.architecture, entry.timesteps) == ("snn", "cifar_resnet20", 3)
    assert (entry.dataset, entry.threat, entry.method) == ("sample", "linf", "trades-rfgsm")
    assert entry.recipe == f"checkpoints/{NAME}/recipe.yaml"
    (results,) = entry.results
    assert entry.strongest == results
    assert results.n == 16
    assert results.clean.value == reports[1].clean.value
    assert (results.microjoules, results.ann_microjoules) == (
        reports[1].energy.microjoules,
        reports[0].energy.microjoules,
    )
    assert (entry.parameters, results.short_protocol) == (
        reports[1].model.parameters,
        "fgsm, 2 views",
    )
    assert [(p.eps, p.value, p.low, p.high) for p in results.robust] == [
        (j.eps, j.accuracy.value, j.accuracy.low, j.accuracy.high) for j in reports[1].joint
    ]
    plain = zoo.find("resnet20.sample_natural")
    # no training was recorded
    assert (plain.timesteps, plain.threat, plain.method, plain.recipe) == (None, None, None, None)
    assert set(yaml.safe_load((filled_zoo / f"{NAME}.yaml").read_text())["files"]) == {
        path.name for path in (saved / "snn").iterdir()
    }


def test_an_entry_of_before_parameters_and_energy_is_read(filled_zoo: Path) -> None:
    path = filled_zoo / f"{NAME}.yaml"
    content = yaml.safe_load(path.read_text())
    del content["parameters"]
    del content["results"][0]["microjoules"], content["results"][0]["ann_microjoules"]
    path.write_text(yaml.safe_dump(content))
    entry = zoo.find(NAME)
    (results,) = entry.results
    assert (entry.parameters, results.microjoules, results.ann_microjoules) == (None, None, None)


def test_load_by_name_is_the_saved_model(filled_zoo: Path, saved: Path) -> None:
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load(NAME)(images), load(saved / "snn")(images))


def test_a_folder_of_that_name_comes_first(
    filled_zoo: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved)
    assert zoo.resolve("snn") == Path("snn")
    assert zoo.resolve(NAME) == filled_zoo / "checkpoints" / NAME


def test_near_names_are_offered(filled_zoo: Path) -> None:
    with pytest.raises(SJRobustError, match=f"did you mean {NAME}"):
        load("resnet20-snn-t4.sample_linf_trades")
    with pytest.raises(SJRobustError, match="the zoo has"):
        load("xyzzy")


def test_an_empty_zoo_lists_nothing(empty_zoo: Path) -> None:
    assert list_models() == []
    with pytest.raises(SJRobustError, match="the zoo is empty"):
        load(NAME)


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "evaluation.json", "recipe.yaml"]
)
def test_a_file_that_differs_from_the_index_is_refused(filled_zoo: Path, file: str) -> None:
    path = filled_zoo / "checkpoints" / NAME / file
    content = path.read_bytes()
    # a consistent change of config and weights together would pass the config's own hash
    path.write_bytes(content + b" ")
    with pytest.raises(SJRobustError, match=f"{file} of zoo model .* differs from the index"):
        load(NAME)
    path.unlink()
    with pytest.raises(SJRobustError, match=f"{file} of zoo model .* is missing"):
        load(NAME)


def test_adding_again_refreshes_and_the_card_is_free_to_change(filled_zoo: Path) -> None:
    folder = filled_zoo / "checkpoints" / NAME
    write_card(folder)
    assert load(NAME)
    (folder / "recipe.yaml").write_text("name: other\n")
    zoo.add(folder, NAME)
    assert load(NAME)
    assert (folder / "README.md").exists()


def test_collected_cards_are_those_of_the_checkpoints(filled_zoo: Path, tmp_path: Path) -> None:
    cards = collect_cards(tmp_path / "model_cards")
    assert [card.name for card in cards] == [f"{NAME}.md", "resnet20.sample_natural.md"]
    text = cards[0].read_text()
    plot = re.findall(r"!\[[^]]*\]\((.*?)\)", text)[0]
    assert (cards[0].parent / plot).resolve() == (
        filled_zoo / "checkpoints" / NAME / "figures" / "accuracy.png"
    ).resolve()
    assert f'sj_robust.load("{NAME}")' in text
    assert load(NAME)  # the index does not cover what is derived


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint", "../../etc"),
        ("checkpoint", "/etc"),
        ("checkpoint", "checkpoints/.."),
        ("name", "other"),
        ("surprise", 1),
        ("format_version", 2),
        ("files", {"../x": {"sha256": "0" * 64, "bytes": 1}}),
    ],
)
def test_a_damaged_entry_is_named(filled_zoo: Path, key: str, value: object) -> None:
    path = filled_zoo / f"{NAME}.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), key: value}))
    for action in (list_models, lambda: load(NAME)):
        with pytest.raises(SJRobustError, match=f"{NAME}.yaml"):
            action()


@pytest.mark.parametrize(
    "text", ["a: [", "", "- 1", "!!python/object/apply:os.system ['true']", "\x00"]
)
def test_an_entry_that_is_no_yaml_mapping(filled_zoo: Path, text: str) -> None:
    (filled_zoo / f"{NAME}.yaml").write_text(text)
    with pytest.raises(SJRobustError, match=f"{NAME}.yaml"):
        zoo.find(NAME)


def test_what_is_no_checkpoint_does_not_enter(
    empty_zoo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(SJRobustError, match=r"config\.json"):
        zoo.add(tmp_path, NAME)
    with pytest.raises(SJRobustError, match="name"):
        zoo.add(checkpoint, "../escape")
    (checkpoint / "model.safetensors").write_bytes(b"other")
    with pytest.raises(SJRobustError, match="does not hold the model"):
        zoo.add(checkpoint, NAME)
    assert list_models() == []


def test_listing_imports_no_torch() -> None:
    code = "import sys, sj_robust; sj_robust.list_models(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_shipped_model_is_intact_and_loads() -> None:
    for entry in list_models():
        model = load(entry.name)
        assert getattr(model, "timesteps", None) == entry.timesteps
