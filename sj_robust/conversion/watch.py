"""Watching one forward pass: which function of torch is called in which module, and which module is
called by which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from sj_robust.model.classifier import SpikingActivation


class Watch(TorchFunctionMode):
    """Keeps the stack of running modules while it is entered. Subclasses say what to do with a
    call.

    Modules go by the name they have in `network`, which is itself "". Functions that run inside a
    spiking node are not shown.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.stack: list[str] = [""]
        self.calls: Counter[str] = Counter()  # of modules
        self._spiking = 0
        self._handles: list[Any] = []

    def __enter__(self) -> Any:
        for name, module in self.network.named_modules():
            if name:
                self._handles.append(
                    module.register_forward_pre_hook(self._enter(name), with_kwargs=True)
                )
                self._handles.append(
                    module.register_forward_hook(self._leave(name), always_call=True)
                )
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.on_enter(name, module, args, kwargs)
            self.calls[name] += 1
            self.stack.append(name)
            self._spiking += isinstance(module, SpikingActivation)

        return hook

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            self.stack.pop()
            self._spiking -= isinstance(module, SpikingActivation)
            return self.on_leave(name, module, inputs, output)

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        return (
            output
            if self._spiking
            else self.on_function(getattr(func, "__name__", ""), args, kwargs or {}, output)
        )

    def on_enter(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """A module is called; the stack still ends with its caller."""

    def on_leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> Any:
        """A module returned; what is returned here, unless None, takes the place of its output."""

    def on_function(self, name: str, args: Any, kwargs: Any, output: Any) -> Any:
        """A function was called by the module at the end of the stack; what is returned here takes
        the place of its output."""
        return output


@contextmanager
def recorded_calls(network: nn.Module) -> Iterator[Counter[str]]:
    """Count, while the block runs, the calls of every submodule by name, in the order of their
    first calls."""
    with Watch(network) as watch:
        yield watch.calls
