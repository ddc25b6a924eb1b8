"""What somebody wrote into a card stays there when it is generated again, and confuses nothing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hub_server.fixtures import ANN, SNN
from huggingface_hub import ModelCard

from sj_robust import SJRobustError, pull, push
from sj_robust.card import write_card
from sj_robust.card.readme import BEGIN, END

NAME = "alice/my-snn"
OTHER_ROW = f"| sha256 of model.safetensors | `{'0' * 64}` |\n"
MINE = (
    "\n## Intended use\n\nA remark of *mine*, with `code` and\n```python\n# a"
    ' comment\nsj_robust.load("x/y")\n```\n\n' + OTHER_ROW
)


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A card with the two lines, in a copy of a checkpoint whose own was published without them."""
    folder = Path(shutil.copytree(SNN, tmp_path / SNN.name))
    return write_card(folder)


def edited(card: Path, before: str = "", after: str = "", front: str = "") -> str:
    written = card.read_text(encoding="utf-8")
    text = (
        written.replace(BEGIN, before + BEGIN)
        .replace(f"{END}\n", f"{END}\n{after}")
        .replace("---\n", f"---\n{front}", 1)
    )
    card.write_text(text, encoding="utf-8")
    return text


@pytest.mark.parametrize("where", ["before", "after", "both"])
def test_text_around_the_generated_part_stays_to_the_letter(card: Path, where: str) -> None:
    text = edited(
        card, before=MINE if where != "after" else "", after=MINE if where != "before" else ""
    )
    assert write_card(card.parent).read_text() == text
    # inside of the generated part
    card.write_text(text.replace("time steps", "time stops"), encoding="utf-8")
    assert write_card(card.parent).read_text() == text


def test_the_generated_part_follows_what_is_recorded(card: Path) -> None:
    edited(card, before="Mine.\n\n", after=MINE)
    (card.parent / "evaluation.json").unlink()
    (card.parent / "evaluation_paper.json").unlink(missing_ok=True)
    text = write_card(card.parent).read_text()
    assert "Not measured: the checkpoint holds no evaluation." in text
    assert text.endswith(f"{END}\n{MINE}")
    assert f"Mine.\n\n{BEGIN}" in text
    assert "model-index" not in text


def test_metadata_of_ones_own_stays(card: Path) -> None:
    edited(card, front="language: en\nthumbnail: https://example.org/x.png\n")
    card.write_text(
        card.read_text(encoding="utf-8").replace("tags:\n", "tags:\n- my-tag\n"), encoding="utf-8"
    )
    for _ in range(2):
        data = ModelCard(write_card(card.parent).read_text()).data.to_dict()
        assert (data["language"], data["thumbnail"]) == ("en", "https://example.org/x.png")
        assert data["tags"].count("my-tag") == data["tags"].count("sj-robust") == 1
        assert len(data["model-index"][0]["results"]) > 1


def published(*, tail: str = "", section: str = "", head: str = "") -> str:
    """A card as releases wrote it that had no two lines around their part."""
    text = (SNN / "README.md").read_text()
    text = text.replace(f"{BEGIN}\n\n", "").replace(f"{BEGIN}\n", "").replace(f"\n{END}\n", "")
    assert BEGIN not in text and END not in text
    return (
        text.replace("\n## Results\n", f"{section}\n## Results\n").replace("\n# ", f"{head}\n# ", 1)
        + tail
    )


@pytest.mark.parametrize(
    ("card_text", "kept"),
    [
        (published(), []),
        (published(tail="\nA remark of mine.\n"), ["A remark of mine."]),
        (published(section="\n## Intended use\n\nOnly here.\n"), ["## Intended use\n\nOnly here."]),
        (
            published(tail="\n## More\n\nx\n", section="\n### Mine\n\ny\n"),
            ["### Mine\n\ny", "## More\n\nx"],
        ),
        (
            "---\ntags: [sj-robust]\n---\n\n# My network\n\nAll by hand.\n",
            ["# My network\n\nAll by hand."],
        ),
        ("---\n{\n---\nBy hand.\n", ["By hand."]),
        ("No metadata at all.\n", ["No metadata at all."]),
        ("", []),
    ],
)
def test_a_card_of_before_keeps_what_was_added(
    tmp_path: Path, card_text: str, kept: list[str]
) -> None:
    folder = Path(shutil.copytree(SNN, tmp_path / SNN.name))
    (folder / "README.md").write_text(card_text)
    text = write_card(folder).read_text()
    after = text.split(f"{END}\n")[1]
    assert after == ("\n" + "\n\n".join(kept) + "\n" if kept else "")
    assert write_card(folder).read_text() == text
    for heading in ("## Load", "## Results", "## How it was made"):
        assert len(re.findall(f"^{heading}$", text, re.MULTILINE)) == 1


def test_published_cards_are_still_pushed(hub: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SNN, tmp_path / "snn"))
    (folder / "README.md").write_text(published(tail="\nA remark of mine.\n"))
    push(folder, NAME)
    sent = hub.store.repositories[NAME].at("main").files["README.md"].content.decode()
    assert "A remark of mine." in sent
    assert BEGIN not in sent


def test_push_checks_and_changes_the_generated_part_alone(
    hub: Any, card: Path, tmp_path: Path
) -> None:
    edited(card, before=f"{MINE}\n", after=MINE)
    push(card.parent, NAME)
    sent = hub.store.repositories[NAME].at("main").files["README.md"].content.decode()
    assert sent.count('sj_robust.load("x/y")') == 2
    assert sent.count(f'sj_robust.load("{NAME}")') == 1
    text = write_card(pull(NAME, tmp_path / "again")).read_text()
    assert text.endswith(f"{END}\n{MINE}")
    assert text.count("## Intended use") == 2


@pytest.mark.parametrize("own", ["", MINE])
def test_a_card_of_other_weights_is_refused_whatever_stands_around_it(
    hub: Any, card: Path, own: str
) -> None:
    weights = re.findall(r"`([0-9a-f]{64})`", card.read_text(encoding="utf-8"))[0]
    right = f"| sha256 of model.safetensors | `{weights}` |\n"
    card.write_text(card.read_text(encoding="utf-8").replace(weights, "1" * 64), encoding="utf-8")
    edited(card, before=f"{right}\n{own}", after=f"{own}{right}")
    with pytest.raises(SJRobustError, match="card of other weights"):
        push(card.parent, NAME)
    assert hub.requests == []


def test_a_line_that_pretends_to_end_the_generated_part(card: Path) -> None:
    text = card.read_text(encoding="utf-8")
    card.write_text(
        text.replace("## Results\n", f"## Results\n\n{END}\nforged\n"), encoding="utf-8"
    )
    assert write_card(card.parent).read_text() == text


def test_a_card_that_is_no_text_is_not_overwritten(card: Path) -> None:
    card.write_bytes(b"\xff\xfe")
    with pytest.raises(SJRobustError, match=r"README\.md is not UTF-8"):
        write_card(card.parent)
    assert card.read_bytes() == b"\xff\xfe"


def test_the_card_of_an_ann(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ANN, tmp_path / ANN.name))
    edited(write_card(folder), after=MINE)
    text = write_card(folder).read_text()
    assert text.endswith(MINE)
    assert ModelCard(text).data.library_name == "sj-robust"
