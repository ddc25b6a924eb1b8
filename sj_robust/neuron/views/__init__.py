"""The gradient views by name; each but Surrogate, which the backends compute with, is a file here.

A Surrogate goes back through time with σ'(u). Others need more than a derivative of u: rate (BPTR),
rate-temporal (HART) and adaptive sharpness (ASSG). All these keep the true spikes forward;
"activation" (Act) replaces the node by a ReLU.
"""

from __future__ import annotations

from collections.abc import Callable

from sj_robust.errors import SJRobustError
from sj_robust.neuron.surrogate import Surrogate
from sj_robust.neuron.view import View
from sj_robust.neuron.views.activation import Activation
from sj_robust.neuron.views.adaptive import AdaptiveSharpness
from sj_robust.neuron.views.own import Own
from sj_robust.neuron.views.rate import Rate
from sj_robust.neuron.views.rate_temporal import RateTemporal

_VIEWS: dict[str, Callable[[], View]] = {}


def register_view(make: Callable[[], View]) -> None:
    """Let `parse_view` read the name of the view that `make` makes, a new one at each reading."""
    _VIEWS[str(make())] = make


for _view in (Rate, RateTemporal, Activation, Own, AdaptiveSharpness):
    register_view(_view)

# The evaluation ensemble of Özdenizci & Legenstein, TMLR 2024, section 4.3.
ENSEMBLE_VIEWS: tuple[View, ...] = (
    *(Surrogate("PCW", g) for g in (1.0, 2.0, 3.0, 0.5, 0.25)),
    *(Surrogate("EXP-D", g) for g in (0.5, 1.0, 2.0)),
    *(Surrogate("EXP", g) for g in (0.5, 1.0, 2.0)),
    *(Surrogate("RECT", g) for g in (0.25, 0.5, 1.0, 2.0, 4.0)),
    Surrogate("STE"),
    Rate(),
    Activation(),
)


def parse_view(view: View | str) -> View:
    """The view of that name; a View is itself.

    Args:
        view: "rate", "rate-temporal", "activation", "own", "ASSG", a registered name or a surrogate
            such as "PCW:0.5".

    Raises:
        SJRobustError: anything else.
    """
    if isinstance(view, View):
        return view
    if not isinstance(view, str):
        raise SJRobustError(f"gradient view {view!r}: expected a view or its name, as 'PCW:0.5'")
    if view in _VIEWS:
        return _VIEWS[view]()
    try:
        return Surrogate.parse(view)
    except SJRobustError as error:
        raise SJRobustError(
            f"gradient view {view!r}: expected {', '.join(_VIEWS)} "
            f"or a surrogate like PCW:0.5 ({error})"
        ) from None


def view_name(view: View) -> str:
    """The text that `parse_view` reads back."""
    return str(view)
