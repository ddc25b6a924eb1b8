"""Draw the README's figure from the zoo: robust accuracy at 8/255 against energy.

python scripts/readme_figure.py            # rewrite docs/energy.png
python scripts/readme_figure.py --check    # change nothing; fail where it is out of date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from sj_robust.checkpoint.zoo import Entry, list_models

FIGURE = Path(__file__).resolve().parent.parent / "docs" / "energy.png"
EPS, DATASET, PROTOCOL = 8 / 255, "cifar10", "strong@2"
Row = tuple[str, str, float, float, float, float]


def rows() -> list[Row]:
    """Name, kind, µJ, and accuracy with its interval in percent, of what was measured so."""
    found = []
    for entry in list_models():
        for results in entry.results:
            if (results.dataset, results.named) != (DATASET, PROTOCOL) or not results.microjoules:
                continue
            for point in results.robust:
                if abs(point.eps - EPS) < 1e-6:
                    shares = (100 * part for part in (point.value, point.low, point.high))
                    found.append((_label(entry), entry.kind, results.microjoules, *shares))
    return found


def _label(entry: Entry) -> str:
    """The name without its data set, which all of them share."""
    steps = f", T={entry.timesteps}" if entry.kind == "snn" else ""
    shape, _, rest = entry.name.partition(".")
    return f"{shape.partition('-snn')[0]} {rest.removeprefix('cifar10_linf_')}{steps}"


def drawn_from() -> str:
    """What the picture says of itself, to see whether it is out of date."""
    return "; ".join(
        f"{row[0]} {row[1]} " + " ".join(f"{x:.1f}" for x in row[2:]) for row in rows()
    )


def draw(path: Path) -> None:
    """Write the picture: filled marks are spiking networks, open ones ANNs."""
    figure, axes = plt.subplots(figsize=(7, 2.8))
    for place, (name, kind, energy, value, low, high) in enumerate(rows()):
        axes.errorbar(
            energy,
            value,
            yerr=[[value - low], [high - value]],
            marker="os^DvPX"[place % 7],
            fillstyle="full" if kind == "snn" else "none",
            linestyle="none",
            capsize=2,
            label=name,
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(
        xlim=(0, None),
        ylim=(-1, None),
        xlabel="energy of one inference (estimate), µJ",
        ylabel=f"accuracy at 8/255 under {PROTOCOL}, %",
    )
    axes.yaxis.label.set_size(8)
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120, bbox_inches="tight", metadata={"Description": drawn_from()})


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the README's figure from the zoo.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    if not parser.parse_args().check:
        draw(FIGURE)
    elif Image.open(FIGURE).info.get("Description") != drawn_from():
        sys.exit(f"{FIGURE} is out of date: python scripts/readme_figure.py")


if __name__ == "__main__":
    main()
