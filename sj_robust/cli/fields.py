"""Options made from the fields of a settings model, where name, type, bounds, default and help
stand once. Imports no torch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from sj_robust.evaluation.words import RADII, eps_name


def takes(
    model: type[BaseModel],
    *,
    leave_out: tuple[str, ...] = (),
    preset: BaseModel | None = None,
    flags: Mapping[str, tuple[str, ...]] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for every field of `model` but those in `leave_out`, in the place of
    its parameter `settings`, which gets {field: value}.

    preset: the options have no defaults of their own, `settings` only holds what was typed, and
        the help shows the values of this one.
    flags: names of options other than --field-name.
    """

    def expand(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        made = [
            _parameter(name, field, preset, (flags or {}).get(name, ()))
            for name, field in model.model_fields.items()
            if name not in leave_out
        ]
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            parameters += made if parameter.name == "settings" else [parameter]

        @functools.wraps(function)
        def command(**given: Any) -> None:
            typed = {option.name: given.pop(option.name) for option in made}
            if preset:
                typed = {name: value for name, value in typed.items() if value is not None}
            function(**given, settings=typed)

        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return expand


def _parameter(
    name: str, field: FieldInfo, preset: BaseModel | None, flags: tuple[str, ...]
) -> inspect.Parameter:
    kind, rules = _plain(field)
    default = None if preset else field.get_default(call_default_factory=True)
    dashed = f"--{name.replace('_', '-')}"
    more: dict[str, Any] = {}
    annotation: Any = kind
    if kind is bool:
        # of a preset, what it switches on can be switched off
        flags = flags or ((f"{dashed}/--no-{dashed[2:]}",) if preset else ())
    elif kind in (int, float) and not _converts(rules) and not _exclusive(rules):
        more = _bounds(rules)
    elif kind is not str and get_origin(kind) is not Literal:
        annotation = Any
        shown = (
            kind.__name__.upper() if kind in (int, float) and not _converts(rules) else name.upper()
        )
        more |= {"parser": _parser(field), "metavar": shown + _interval(rules)}
    text = field.description or ""
    if preset and (chosen := getattr(preset, name)) is not None:
        more["show_default"] = _shown(name, chosen)
    option = typer.Option(*(flags or (dashed,)), help=text[:1].upper() + text[1:] + ".", **more)
    if default is None:
        annotation = annotation | None if annotation is not Any else Any
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, option],
    )


def _shown(name: str, value: Any) -> str:
    """As an option takes it."""
    if isinstance(value, bool):
        return name.replace("_", "-") if value else f"no-{name.replace('_', '-')}"
    return eps_name(value) if name in RADII else str(value)


def _plain(field: FieldInfo) -> tuple[Any, list[Any]]:
    """The type of a field without None, and the rules on it."""
    kind, rules = field.annotation, list(field.metadata)
    if get_origin(kind) in (Union, UnionType):
        inner = [part for part in get_args(kind) if part is not type(None)]
        kind = inner[0] if len(inner) == 1 else Any
    if get_origin(kind) is Annotated:
        kind, *inner_rules = get_args(kind)
        for rule in inner_rules:
            rules += rule.metadata if isinstance(rule, FieldInfo) else [rule]
    return kind, rules


def _converts(rules: list[Any]) -> bool:
    """Whether something else than a plain number is read: "8/255", or auto."""
    return any(type(rule).__name__.endswith("Validator") for rule in rules)


def _exclusive(rules: list[Any]) -> bool:
    """Whether a bound is not among the values, as typer has them."""
    return any(getattr(rule, bound, None) is not None for rule in rules for bound in ("gt", "lt"))


def _interval(rules: list[Any]) -> str:
    """The bounds as typer writes them: [0<x<=10]; empty where there are none."""
    ends = {"gt": "", "ge": "", "lt": "", "le": ""}
    for rule in rules:
        for bound in ends:
            if (value := getattr(rule, bound, None)) is not None:
                ends[bound] = f"{value:g}"
    low = f"{ends['gt']}<" if ends["gt"] else f"{ends['ge']}<=" if ends["ge"] else ""
    high = f"<{ends['lt']}" if ends["lt"] else f"<={ends['le']}" if ends["le"] else ""
    return f" [{low}x{high}]" if low or high else ""


def _bounds(rules: list[Any]) -> dict[str, Any]:
    """For typer, where both are among the values."""
    found: dict[str, Any] = {}
    for rule in rules:
        for bound in ("ge", "le"):
            if (value := getattr(rule, bound, None)) is not None:
                found["min" if bound[0] == "g" else "max"] = value
    return found


def _parser(field: FieldInfo) -> Callable[[Any], Any]:
    kind: Any = field.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(
        Annotated[kind, *field.metadata] if field.metadata else kind
    )

    def parse(text: Any) -> Any:
        try:
            return adapter.validate_python(text)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise typer.BadParameter(f"{text!r}: {reason}") from None

    return parse
