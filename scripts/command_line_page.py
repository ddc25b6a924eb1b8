"""The documentation's page on the command line, made from the commands themselves: a hook of
mkdocs, which is asked for it whenever the site is built."""

from __future__ import annotations

from typing import Any

import typer

from sj_robust.cli.app import app

NAME = "command-line.md"


def page() -> str:
    """Every command with its arguments and options, as Markdown."""
    group: Any = typer.main.get_command(app)
    root = group.make_context(group.name, [], resilient_parsing=True)
    parts = ["# Command line", group.help, group.epilog]
    for name, command in group.commands.items():
        context = command.make_context(name, [], parent=root, resilient_parsing=True)
        usage = f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"
        rows = [
            f"| `{names}` | {_cell(text)} |"
            for parameter in command.get_params(context)
            for names, text in [parameter.get_help_record(context)]
        ]
        parts += [
            f"## {name}",
            command.help,
            f"```\n{usage}\n```",
            "\n".join(["| | |", "|---|---|", *rows]),
            f"Example: `{command.epilog.removeprefix('Example: ')}`",
        ]
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def on_files(files: Any, config: Any) -> Any:
    """mkdocs calls this with the files of the site, before it reads them."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, NAME, content=page()))
    return files
