"""The oldest versions that pyproject.toml permits, one `name==version` a line: constraints for pip
(`make test-lowest`).

Those of the package itself; the extras bring what is new.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def lowest(requirements: list[str]) -> list[str]:
    """Each requirement at its lower bound. Exits where one has none."""
    found = []
    for requirement in requirements:
        match = re.match(r"([A-Za-z0-9_.\-]+)>=([0-9.]+)(?:,|$)", requirement)
        if match is None:
            sys.exit(f"{requirement!r} in pyproject.toml has no lower bound: write name>=version")
        found.append("==".join(match.groups()))
    return found


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    print(*lowest(project["dependencies"]), sep="\n")
