"""Put the models of a finished `sj-robust run` into the zoo: the ANN and its spiking network, their
index entries and cards.

    python scripts/add_to_zoo.py runs/zoo-t4

Every fact is read from the checkpoints; running it again refreshes them. The cards are collected in
model_cards/.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sj_robust.card import write_card
from sj_robust.card.write import collect_cards
from sj_robust.checkpoint import zoo
from sj_robust.checkpoint.config import read_config


def main(run: Path) -> None:
    folders = [
        path.parent
        for path in sorted(run.glob("*/evaluation.json"))
        if path.parent.suffix != ".previous"
    ]
    if not folders:
        sys.exit(f"{run} holds no evaluated checkpoint: finish `sj-robust run` first")
    known = {read_config(entry.folder).weights.sha256: entry.name for entry in zoo.list_models()}
    for folder in folders:
        name = read_config(folder).name
        there = known.get(read_config(folder).weights.sha256)
        if there and there != name:
            print(f"{folder} is {there}, which the zoo has")
            continue
        if not name:
            sys.exit(f"{folder} has no name: give the recipe's ann a name")
        entry = zoo.add(folder, name)
        write_card(entry.folder)  # again, under its name in the zoo
        print(f"{name}: {entry.folder}")
    collect_cards("model_cards")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/add_to_zoo.py RUN_FOLDER")
    main(Path(sys.argv[1]))
