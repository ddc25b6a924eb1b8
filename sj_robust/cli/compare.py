"""compare: models side by side, by what was recorded of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sj_robust.cli.common import (
    Json,
    command,
    console,
    print_json,
    print_table,
    say,
    show,
    show_json,
    usage,
)
from sj_robust.cli.hub import calm
from sj_robust.cli.options import zoo_names
from sj_robust.files import check_file

if TYPE_CHECKING:
    from sj_robust.compare import Cell, Comparison


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    again = "run it again: what arrived is not fetched twice"
    command(
        app,
        "compare",
        "sj-robust compare resnet20-snn-t4.cifar10_linf_pgd runs/snn --html compare.html",
        again=again,
    )(compare)


def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help=(
                "Checkpoint folders, zoo names, Hub ids (owner/name), or reports (.json) of"
                " evaluate --out."
            ),
            metavar="NAME",
            autocompletion=zoo_names,
        ),
    ] = None,
    hub: Annotated[
        bool, typer.Option("--hub", help="Add every model on the Hub that is tagged sj-robust.")
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", help="Of the Hub, only models for this data set, such as cifar10."
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help=(
                "Which of a model's evaluations: strong (first by default), autoattack, paper,"
                " quick, custom."
            ),
        ),
    ] = None,
    paired: Annotated[
        bool,
        typer.Option(
            "--paired",
            help="Of two models: images that hold on one alone, and the exact McNemar test.",
        ),
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown table instead of text.")
    ] = False,
    as_json: Json = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Also write one self-contained page with charts."
        ),
    ] = None,
) -> None:
    """Compare models by their recorded evaluations; nothing is measured.

    Models evaluated alike (same images, norm, attacks and views, or the same named protocol) are
    ranked. Where anything differs, the figure carries a footnote that says what. Of the Hub's
    models only the evaluation is fetched, and verified; one that cannot be read is named on stderr
    and left out.
    """
    from sj_robust.compare import compare as compare_models
    from sj_robust.compare import write_page
    from sj_robust.hub import list_hub

    if markdown and as_json:
        usage("--markdown and --json exclude each other: choose one")
    if not names and not hub:
        usage("expected NAME..., or --hub for every model on the Hub")
    if hub or any("/" in name and not os.path.isdir(name) for name in names or ()):
        calm()
    if paired:
        if len(names or ()) != 2 or hub or dataset or markdown or html:
            usage("--paired takes two models, and --protocol and --json alone beside them")
        _paired(*(names or ()), protocol=protocol, as_json=as_json)
        return
    if dataset and not hub:
        usage("--dataset chooses among the models of --hub")
    if html is not None:
        check_file(html)
    on_hub = [model.name for model in list_hub(dataset)] if hub else []
    comparison = compare_models(names or [], on_hub, left_out=say, protocol=protocol)
    if html is not None:
        write_page(comparison, html)
        say(f"page: {html}")
    if as_json:
        show_json(comparison.to_json())
    elif markdown:
        print(comparison.to_markdown(), end="")
    else:
        _print(comparison)


def _paired(first: str, second: str, *, protocol: str | None, as_json: bool) -> None:
    from sj_robust.compare import compare_paired
    from sj_robust.evaluation.report import eps_name

    pairs = compare_paired(first, second, protocol)
    if as_json:
        print_json([pair.model_dump(mode="json") for pair in pairs])
        return
    rows = [
        [
            eps_name(pair.eps) if pair.eps else "clean",
            str(pair.first),
            str(pair.second),
            str(pair.first_alone),
            str(pair.second_alone),
            f"{pair.p:.2g}",
        ]
        for pair in pairs
    ]
    print_table(None, ["eps", first, second, "first alone", "second alone", "p"], rows)
    show(f"The first {pairs[0].images} images; p of the exact McNemar test.")


def _print(comparison: Comparison) -> None:
    """As much as fits the terminal; protocol and images of the ranked models are told once below,
    those of others in their footnotes."""
    wide = console().width
    for extent in ("all", "fewer columns", "no intervals"):
        table = _table(comparison, extent)
        if (
            sum(
                max(len(line) for row in table for line in row[at].split("\n")) + 3
                for at in range(len(table[0]))
            )
            < wide
        ):
            break
    columns, *rows = table
    print_table(None, columns, rows)
    for line in comparison.about():
        show(line)
    for number, note in enumerate(comparison.footnotes, 1):
        show(f"{_raised([number])} {note}")


def _table(comparison: Comparison, extent: str) -> list[list[str]]:
    """The header and the rows; `extent` says what of them."""
    from sj_robust.compare import checks_word, energy

    details = extent == "all"
    radii = [f"{eps.label} {eps.sign}" for eps in comparison.columns]
    table = [
        [
            "rank",
            "model",
            *["architecture"] * details,
            "T",
            *["parameters"] * details,
            "clean",
            *radii,
            "µJ",
            "checks",
        ]
    ]
    for row in comparison.rows:
        architecture, parameters = (
            [row.architecture or "own network"] * details,
            [f"{row.parameters:,}"] * details,
        )
        cells = [
            (row.clean, row.marks.clean),
            *((row.at(eps), row.marks.robust) for eps in comparison.columns),
        ]
        accuracies = [
            _cell(cell, marks, interval=extent != "no intervals") for cell, marks in cells
        ]
        table.append(
            [
                "–" if row.rank is None else str(row.rank),
                row.name,
                *architecture,
                str(row.timesteps or ""),
                *parameters,
                *accuracies,
                "–" if row.microjoules is None else energy(row),
                checks_word(row),
            ]
        )
    return table


def _cell(cell: Cell | None, marks: list[int], *, interval: bool) -> str:
    """The accuracy, and its interval below it."""
    if cell is None:
        return "not measured"
    return f"{100 * cell.value:.1f} %{_raised(marks)}" + (
        f"\n[{100 * cell.low:.1f}, {100 * cell.high:.1f}]" if interval else ""
    )


def _raised(marks: list[int]) -> str:
    return ",".join(str(mark) for mark in marks).translate(
        str.maketrans("0123456789,", "⁰¹²³⁴⁵⁶⁷⁸⁹˒")
    )
