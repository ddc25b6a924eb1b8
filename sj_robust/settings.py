"""What all settings share: a strict base, and what is wrong with given ones in one line."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from sj_robust.errors import SJRobustError
from sj_robust.text import visible


class Strict(BaseModel):
    """Frozen, and refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Growing(Strict):
    """Settings to which some were added after the first were recorded: those in `LATE` are left out
    of what is dumped where they are the default, so that records and keys stay what they were."""

    LATE: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        fields = type(self).model_fields
        return {
            name: value
            for name, value in dump(self).items()
            if name not in self.LATE or getattr(self, name) != fields[name].default
        }


Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], fields: Any, what: str = "") -> Model:
    """`fields` as a `model`. Raises SJRobustError: `what`, and the first thing wrong."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise SJRobustError(what + first_error(error)) from None
    except SJRobustError as error:
        raise SJRobustError(f"{what}{error}") from None


def first_error(error: ValidationError) -> str:
    """The first problem of a pydantic error in one line: where, what, and the value found."""
    first, count = error.errors(include_url=False)[0], error.error_count()
    where = visible(".".join(str(part) for part in first["loc"]), 120)
    reason = visible(first["msg"].removeprefix("Value error, "), 400)
    # which say what they found, and of a whole text it would be the text
    said = first["type"] in ("missing", "value_error") or not where
    value = "" if said else f" (found {visible(repr(first['input']), 80)})"
    more = f"; {count - 1} more" if count > 1 else ""
    return f"{where}{': ' if where else ''}{reason}{value}{more}"
