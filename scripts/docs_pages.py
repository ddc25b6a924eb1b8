"""The documentation's pages on commands, settings and examples, made from the commands, settings
and examples themselves: a hook of mkdocs, which asks for them whenever the site is built."""

from __future__ import annotations

import ast
import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from sj_robust.cli.app import app
from sj_robust.evaluation.settings import EvaluationSettings
from sj_robust.evaluation.words import RADII, eps_name
from sj_robust.recipes.spec import CalibratedConversion
from sj_robust.training.config import PRESETS, TrainConfig

EXAMPLES = Path(__file__).parent.parent / "examples"


def command_line() -> str:
    """Every command with its arguments and options, as Markdown."""
    group: Any = typer.main.get_command(app)
    root = group.make_context(group.name, [], resilient_parsing=True)
    parts = ["# Command line", group.help, group.epilog]
    for name, command in group.commands.items():
        context = command.make_context(name, [], parent=root, resilient_parsing=True)
        usage = f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"
        records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
        parts += [
            f"## {name}",
            command.help,
            f"```\n{usage}\n```",
            _table(["option", "meaning"], [[f"`{names}`", _cell(text)] for names, text in records]),
            f"Example: `{command.epilog.removeprefix('Example: ')}`",
        ]
    return "\n\n".join(parts) + "\n"


def settings() -> str:
    """The fields of conversions, trainings and evaluations with their defaults, as Markdown."""
    presets = {
        f"{'train-ann' if kind == 'ann' else kind}, {name}": config
        for kind, named in PRESETS.items()
        for name, config in named.items()
    }
    parts = [
        "# Settings",
        "What a [recipe](train.md#all-stages-from-one-file) holds, an argument in Python, and, with"
        " dashes, an option on the [command line](command-line.md). – stands for none.",
        "## convert",
        _fields(CalibratedConversion, {"default": CalibratedConversion()}),
        "## train-ann and finetune",
        "By preset, which the other settings change.",
        _fields(TrainConfig, presets),
        "## evaluate",
        _fields(EvaluationSettings, {"default": EvaluationSettings()}),
    ]
    return "\n\n".join(parts) + "\n"


def examples() -> str:
    """The scripts of examples/ under what each says of itself, as Markdown."""
    parts = [
        "# Examples",
        "Each runs by itself on the embedded images: `python examples/NAME.py`. With pictures:"
        " [the story](story.md), a notebook.",
    ]
    for path in sorted(EXAMPLES.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        title = path.stem.replace("_", " ").capitalize()
        about = ast.get_docstring(ast.parse(source)) or ""
        code = source.split('"""', 2)[2].strip()
        parts += [f"## {title}", about, f"```python\n{code}\n```"]
    return "\n\n".join(parts) + "\n"


def story() -> tuple[str, dict[str, bytes]]:
    """The notebook with what it printed, as Markdown, and its pictures by their file names."""
    cells = json.loads((EXAMPLES / "story.ipynb").read_text(encoding="utf-8"))["cells"]
    parts, pictures = [], {}
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"story-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![]({name})")
            elif printed := "".join(output.get("text", data.get("text/plain", ""))).strip():
                parts.append(f"```text\n{printed}\n```")
    return "\n\n".join(parts) + "\n", pictures


def _fields(model: type[BaseModel], values: Mapping[str, BaseModel]) -> str:
    rows = [
        [
            f"`{name}`",
            *(_value(name, getattr(chosen, name)) for chosen in values.values()),
            _cell(field.description or ""),
        ]
        for name, field in model.model_fields.items()
    ]
    return _table(["setting", *values, "meaning"], rows)


def _value(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_value(name, one) for one in value)
    if value is None:
        return "–"
    return eps_name(value) if name in RADII else _cell(str(value))


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def _cell(text: str) -> str:
    for sign in "|<*_":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text


def on_files(files: Any, config: Any) -> Any:
    """mkdocs calls this with the files of the site, before it reads them."""
    from mkdocs.structure.files import File

    text, pictures = story()
    pages = {
        "command-line.md": command_line(),
        "settings.md": settings(),
        "examples.md": examples(),
        "story.md": text,
        **pictures,
    }
    for name, content in pages.items():
        if stub := files.get_file_from_path(name):  # for who reads docs/ as it lies there
            files.remove(stub)
        files.append(File.generated(config, name, content=content))
    return files
