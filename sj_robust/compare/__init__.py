"""Models side by side, from what their checkpoints record: figures of one setup are ranked, all
others say what differs.

Nothing is measured here and torch is not imported. The checkpoints may come from strangers: every
text is cut down to one printable line when it is read, and escaped again by whatever prints it.
"""

from sj_robust.compare.page import write_page
from sj_robust.compare.paired import Pair, compare_paired, paired
from sj_robust.compare.rank import compare
from sj_robust.compare.rows import Cell, Row, checks_word, energy, percent
from sj_robust.compare.table import Comparison

__all__ = [
    "Cell",
    "Comparison",
    "Pair",
    "Row",
    "checks_word",
    "compare",
    "compare_paired",
    "energy",
    "paired",
    "percent",
    "write_page",
]
