"""Model cards: README.md of a checkpoint, written from what its folder records."""

from sj_robust.card.write import collect_cards, write_card

__all__ = ["collect_cards", "write_card"]
