"""Bounds on what a classifier computes anywhere in a ball, by interval arithmetic."""

from sj_robust.bounds import functions as functions  # which fills the table of them
from sj_robust.bounds.interval import Interval
from sj_robust.bounds.network import interval_bounds, margin_bounds
from sj_robust.bounds.node import spike_bounds

__all__ = ["Interval", "interval_bounds", "margin_bounds", "spike_bounds"]
