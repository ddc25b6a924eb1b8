"""What README.md and the pages of docs/ show is true: Python runs on the embedded sample, commands
have the options that are named, the quick ones run, and what is referred to exists."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from sj_robust.checkpoint import list_models
from sj_robust.cli.app import app
from sj_robust.evaluation import PROTOCOLS
from sj_robust.evaluation.settings import EvaluationSettings
from sj_robust.recipes.spec import make_recipe
from sj_robust.training import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")

# In place of downloads and long work: the same code, on the embedded images and for a moment.
IN_SECONDS = {
    '"cifar10"': '"sample"',
    "epochs=5": "epochs=0.1, validation=64",
    "max_images=500": "max_images=2, check_images=0, roughness_images=2",
    "max_images=16": "max_images=4, roughness_images=2",
    "max_images=64": "max_images=4, roughness_images=2",
}
# Commands that run to their end where they name nothing but zoo networks.
QUICK = ("list", "info", "compare")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """(line, text) of the page's blocks in that language."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match[1] == language:
            yield text.count("\n", 0, match.start()) + 1, match[2]


def spans(page: Path) -> list[str]:
    """What stands in backticks within the prose, each on one line."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(span.split()) for span in SPAN.findall(prose)]


every_page = pytest.mark.parametrize("page", PAGES, ids=named)


@every_page
def test_each_block_is_of_a_kind_that_is_checked_here(page: Path) -> None:
    languages = {match[1] for match in FENCE.finditer(page.read_text(encoding="utf-8"))}
    assert languages <= {"python", "sh", "yaml", "text"}  # text: formulas


@pytest.mark.slow
def test_the_python_of_all_pages_runs(tmp_path: Path) -> None:
    """In one process, a page after the other, each with names of its own. A traceback has the lines
    of the page."""
    pages = []
    for page in PAGES:
        lines: list[str] = []
        for line, code in blocks(page, "python"):
            lines += [""] * (line - len(lines)) + code.splitlines()
        code = "\n".join(lines)
        for long, short in IN_SECONDS.items():
            code = code.replace(long, short)
        pages += [(named(page), code)] if code else []
    file = tmp_path / "pages.py"
    file.write_text(
        f"for page, code in {pages!r}:\n"
        "    exec(compile(code, page, 'exec'), {'__name__': '__main__'})\n",
        encoding="utf-8",
    )
    expected = "ignore:Sequential cannot be rebuilt from a timm name"  # as the pages say
    done = subprocess.run(
        [sys.executable, "-W", expected, file], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")


COMMANDS: Any = typer.main.get_command(app)
_ROOT = COMMANDS.make_context("sj-robust", [], resilient_parsing=True)


def lines_of(block: str) -> Iterator[list[str]]:
    """The words of every command line, without comments."""
    for line in block.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def our_words(words: list[str]) -> list[str] | None:
    """What follows `sj-robust`, also in `torchrun … -m sj_robust`; None for other programs."""
    if words[0] == "sj-robust":
        return words[1:]
    if words[0] == "torchrun":
        return words[words.index("sj_robust") + 1 :]
    return None


def check_other(words: list[str]) -> None:
    match words:
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["pip", "install", what]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            extra = re.fullmatch(r"\.(?:\[(\w+)\])?", what)
            assert extra and extra[1] in (None, *project["optional-dependencies"])
        case ["python", script, *options]:
            source = (ROOT / script).read_text(encoding="utf-8")
            if "from stages import" in source:  # which have some options in common
                source += (ROOT / "scripts/stages.py").read_text(encoding="utf-8")
            for option in options:
                assert not option.startswith("--") or f'"{option}"' in source, option
        case _:
            pytest.fail(f"nobody knows how to check {words[0]}")


@every_page
def test_commands_have_the_options_they_are_shown_with(page: Path) -> None:
    for _, block in blocks(page, "sh"):
        for words in lines_of(block):
            ours = our_words(words)
            if ours is None:
                check_other(words)
            elif ours[0].startswith("-"):
                assert any(ours[0] in parameter.opts for parameter in COMMANDS.get_params(_ROOT))
            else:  # raises UsageError for a wrong option, and for a value that it does not take
                COMMANDS.commands[ours[0]].make_context(ours[0], ours[1:], parent=_ROOT)


@every_page
def test_options_in_the_prose_exist(page: Path) -> None:
    """There, commands are shown in part: what they need beside may be missing."""
    scripts = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("scripts/*.py"))
    known = {
        option
        for group in (COMMANDS, *COMMANDS.commands.values())
        for parameter in group.get_params(_ROOT)
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    for span in spans(page):
        words = shlex.split(span) if span.startswith(("sj-robust ", "torchrun ", "python ")) else []
        ours = our_words(words) if words else None
        if ours and not ours[0].startswith("-"):
            command = COMMANDS.commands[ours[0]]
            context = command.make_context(ours[0], [], parent=_ROOT, resilient_parsing=True)
            command.make_parser(context).parse_args(ours[1:])  # raises UsageError
        elif words and ours is None and words[1] != "-c":
            check_other(words)
        elif option := re.fullmatch(r"(--[a-z][a-z-]+)(?: .*)?", span):
            assert option[1] in known or f'"{option[1]}"' in scripts, span


def quick_commands() -> list[str]:
    zoo = {entry.name for entry in list_models()}
    found: dict[str, None] = {}
    for page in PAGES:
        for _, block in blocks(page, "sh"):
            for words in lines_of(block):
                names = [word for word in words[2:] if not word.startswith("-")]
                if words[0] == "sj-robust" and words[1] in QUICK and zoo.issuperset(names):
                    found[shlex.join(words[1:])] = None
    return list(found)


@pytest.mark.parametrize("command", quick_commands())
def test_quick_commands_run(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sj_robust", *shlex.split(command)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@every_page
def test_recipes_are_valid(page: Path) -> None:
    for _, block in blocks(page, "yaml"):
        assert make_recipe(yaml.safe_load(block))


@every_page
def test_names_and_files_in_the_prose_exist(page: Path) -> None:
    for span in spans(page):
        if re.fullmatch(r"sj_robust(\.\w+)+", span):
            *modules, last = span.split(".")
            home = ".".join(modules)
            assert importlib.util.find_spec(home) is not None, span
            if importlib.util.find_spec(span) is None:
                assert hasattr(importlib.import_module(home), last), span
        folder = span.partition("/")[0]
        if folder in ("sj_robust", "scripts", "tests", "docs", "zoo", "model_cards"):
            path = re.sub(r"/NAME\b.*", "", span)
            assert (ROOT / path).exists() or " " in path, span


def test_the_protocols_are_those_of_this_version() -> None:
    text = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(\w+@\d+)` \|", text, re.MULTILINE)
    assert shown == [str(protocol) for protocol in PROTOCOLS.values()]


def test_the_checks_are_those_of_this_version() -> None:
    text = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    table = text.partition("| check |")[2].partition("\n\n")[0]
    shown = re.findall(r"^\| ([a-z ]+) \| .*\? \|$", table, re.MULTILINE)
    source = (ROOT / "sj_robust" / "evaluation" / "checks.py").read_text(encoding="utf-8")
    assert set(shown) == set(re.findall(r'^\s+"([a-z ]+)": lambda', source, re.MULTILINE)) | set(
        re.findall(r'\["([a-z ]+)"\] = lambda', source)
    )


@pytest.fixture(scope="module")
def generated() -> Any:
    """The script that writes pages when the site is built."""
    spec = importlib.util.spec_from_file_location("docs_pages", ROOT / "scripts" / "docs_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_on_the_command_line_has_every_option(generated: Any) -> None:
    sections = dict(part.split("\n", 1) for part in generated.command_line().split("\n## ")[1:])
    assert list(sections) == list(COMMANDS.commands)
    for name, command in COMMANDS.commands.items():
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert re.search(rf"^\| `[^`]*{option}\b", sections[name], re.MULTILINE), option


def test_the_page_on_settings_has_every_field_by_preset(generated: Any) -> None:
    text = generated.settings()
    fields = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert {*TrainConfig.model_fields, *EvaluationSettings.model_fields} < set(fields)
    presets = "train-ann, paper | train-ann, default | finetune, paper | finetune, default"
    assert f"| setting | {presets} | meaning |" in text
    assert "| `eps` | 2/255 | 4/255 | 2/255 | 4/255 |" in text
    assert "| `eps` | 2/255, 4/255, 8/255 |" in text


def test_the_pages_on_examples_have_them_all(generated: Any) -> None:
    text = generated.examples()
    for path in (ROOT / "examples").glob("*.py"):
        assert path.read_text(encoding="utf-8").split('"""', 2)[2].strip() in text, path.name
    story, pictures = generated.story()
    assert pictures
    for name, content in pictures.items():
        assert f"![]({name})" in story
        assert content.startswith(b"\x89PNG")


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    head, _, rest = text.partition("| model |")  # the table is generated, and as wide as it is
    written = head + rest.partition("<!-- /zoo table -->")[2]
    assert len(text.splitlines()) <= 120
    assert all(len(line) <= 100 for line in written.splitlines())
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link
