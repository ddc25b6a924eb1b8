"""Names of a package that are imported when they are first asked for, so that what needs none of
them stays light."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def imported_on_use(package: str, home: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names lie in its modules: {module: names}."""
    modules = {name: module for module, names in home.items() for name in names}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(modules))}"
            )
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return get
