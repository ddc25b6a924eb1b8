"""Docstrings of the public interface: Google style, as generators of an API reference read them."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cached_property
from types import FunctionType, ModuleType
from typing import Any

import pytest

import sj_robust
from sj_robust import SJRobustError

PACKAGES = [
    name
    for _, name, is_package in pkgutil.iter_modules(sj_robust.__path__)
    if is_package and name not in ("cli", "recipes")
] + ["catalog", "recipes.run", "recipes.spec"]
NAMED = ("Args", "Attributes", "Raises")  # sections whose entries begin with a name
SECTIONS = (*NAMED, "Returns", "Yields")


def sections(doc: str) -> tuple[str, dict[str, list[str]]]:
    """The text before the sections, and the lines of each section."""
    text: list[str] = []
    found: dict[str, list[str]] = {}
    lines = text
    for line in doc.splitlines():
        if line.removesuffix(":") in SECTIONS and line.endswith(":"):
            lines = found.setdefault(line[:-1], [])
        elif lines is text or line.startswith(" "):
            lines.append(line)
        elif line:  # text behind a section would be left out of a reference
            text.append(line)
    return "\n".join(text), found


def faults(doc: str | None, known: Callable[[str, str], bool], raises: bool = False) -> list[str]:
    """What is wrong with a docstring. `known(section, name)`: whether there is such an argument or
    attribute; `raises`: whether the code raises SJRobustError."""
    if not doc:
        return ["no docstring"]
    doc = inspect.cleandoc(doc)
    first, *rest = doc.splitlines()
    text, found = sections(doc)
    wrong = []
    if not first.endswith(".") or (rest and rest[0]):
        wrong.append(f"the first line is no sentence by itself: {first}")
    if heading := re.search(rf"^({'|'.join(SECTIONS)}):.+", text, re.MULTILINE):
        wrong.append(f"a section is a line by itself: {heading[0]}")
    if "SJRobustError" in text:
        wrong.append("SJRobustError is named outside of Raises")
    for section, lines in found.items():
        entries = [line[4:] for line in lines if not line.startswith(" " * 8)]
        names = [re.match(r"\*{0,2}(\w+): ", entry) for entry in entries]
        if not entries or (section in NAMED and not all(names)):
            wrong.append(f"{section} has an entry without a name, or none")
        wrong += [
            f"{section} names {name[1]}, which there is not"
            for name in names
            if name and section in ("Args", "Attributes") and not known(section, name[1])
        ]
    if raises and not any("SJRobustError: " in line for line in found.get("Raises", ())):
        wrong.append("it raises SJRobustError, and has it not under Raises")
    return wrong


def raises(*functions: Any) -> bool:
    """Whether one of the functions raises SJRobustError by itself."""
    return any(
        isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and getattr(node.exc.func, "id", "") == "SJRobustError"
        for function in functions
        if isinstance(function, FunctionType) and function.__code__.co_filename[0] != "<"
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function))))
    )


def of_function(function: Any, doc: str | None) -> list[str]:
    parameters = inspect.signature(function).parameters
    return faults(doc, lambda _, name: name in parameters, raises(inspect.unwrap(function)))


def of_class(kind: type) -> dict[str, list[str]]:
    """The faults of a class and of each of its own public methods and properties."""
    arguments = inspect.signature(kind).parameters
    annotated = {name for base in kind.__mro__ for name in inspect.get_annotations(base)}
    source = inspect.getsource(kind)

    def known(section: str, name: str) -> bool:
        kept = name in annotated or hasattr(kind, name) or f"self.{name} = " in source
        return name in arguments or (section == "Attributes" and kept)

    made = (vars(kind).get(name) for name in ("__init__", "__post_init__"))
    found = {kind.__name__: faults(vars(kind).get("__doc__"), known, raises(*made))}
    for name, member in vars(kind).items():
        if name.startswith("_") and name != "__call__":
            continue
        where = f"{kind.__name__}.{name}"
        # where it overrides another, that one says what it does, perhaps in the style of a library
        doc = member.__doc__ or (inspect.getdoc(getattr(kind, name)) and "As the other.")
        if isinstance(member, property):
            found[where] = faults(doc, lambda *_: False, raises(member.fget, member.fset))
        elif isinstance(member, cached_property):
            found[where] = faults(doc, lambda *_: False, raises(member.func))
        elif isinstance(member, FunctionType | classmethod | staticmethod):
            found[where] = of_function(getattr(member, "__func__", member), doc)
    return found


def interface(module: ModuleType) -> Iterator[Any]:
    """The public functions and classes of a module: of `__all__`, else those defined in it."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    for name in getattr(module, "__all__", own):
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            yield value


@pytest.mark.parametrize("package", ["", *PACKAGES])
def test_the_public_interface_is_documented_in_one_form(package: str) -> None:
    module = importlib.import_module(f"sj_robust.{package}".rstrip("."))
    found: dict[str, list[str]] = {}
    for value in interface(module):
        if inspect.isclass(value):
            found |= of_class(value)
        else:
            found[value.__name__] = of_function(value, value.__doc__)
    assert found
    assert {where: wrong for where, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("doc", "fault"),
    [
        (None, "no docstring"),
        ("Add one number\n    to another.", "first line"),
        ("Add.\n\nRaises: SJRobustError: it cannot.", "a section is a line by itself"),
        ("Add.\n\nRaises SJRobustError where it cannot.", "outside of Raises"),
        ("Add.\n\nRaises:\n    SJRobustError: a.\n\nSJRobustError else.", "outside of Raises"),
        ("Add.\n\nArgs:\n    other: a number.\n    third: one more.", "names third"),
        ("Add.\n\nArgs:\n    number, other: both.", "without a name"),
        ("Add.\n\nArgs:\n    other: a number,\n    or none.", "without a name"),
        ("Add.", "has it not under Raises"),
    ],
)
def test_another_form_is_found(doc: str | None, fault: str) -> None:
    right = "Add.\n\nArgs:\n    other: a number.\n\nRaises:\n    SJRobustError: it cannot."
    assert faults(right, lambda _, name: name in ("number", "other"), raises=True) == []
    wrong = faults(doc, lambda _, name: name in ("number", "other"), raises=True)
    assert any(fault in found for found in wrong)


class Adder:
    """Adds a number.

    Args:
        number: the one.

    Attributes:
        total: so far.
        other: is not there.
    """

    def __init__(self, number: int) -> None:
        self.total = number
        if number < 0:
            raise SJRobustError("number is below 0")

    def add(self, number: int) -> None:
        """Add one more.

        Args:
            amount: is not there.
        """

    @property
    def half(self) -> int:
        """Half of it.

        Raises SJRobustError where it is odd.
        """
        raise SJRobustError("odd")

    @property
    def twice(self) -> int:
        return 2 * self.total


def test_it_is_found_in_classes_and_their_methods() -> None:
    raised = "it raises SJRobustError, and has it not under Raises"
    assert of_class(Adder) == {
        "Adder": ["Attributes names other, which there is not", raised],
        "Adder.add": ["Args names amount, which there is not"],
        "Adder.half": ["SJRobustError is named outside of Raises", raised],
        "Adder.twice": ["no docstring"],
    }
