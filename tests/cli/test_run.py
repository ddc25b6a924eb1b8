"""A recipe from source to card: stages are kept while nothing changes, and a killed run goes on to
the same weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from sj_robust import demo
from sj_robust.errors import SJRobustError
from sj_robust.recipes.run import RunResult
from sj_robust.recipes.run import run as run_recipe
from sj_robust.recipes.spec import Measurements, Recipe, make_recipe, read_recipe

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
MODEL = "my_networks:make"  # the recipe's own, whose code runs with consent alone
NAME = "tiny-snn-t2.colours_linf_trades"
STAGES = [
    "ann",
    "converted",
    "finetuned",
    "evaluated/ann.json",
    "evaluated/converted.json",
    "evaluated/snn.json",
    NAME,
]


@pytest.fixture(scope="module")
def made(process: Cli, workplace: Path) -> Path:
    done = process("run", "recipe.yaml", "--model", MODEL, "--out", "runs/tiny", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stages"] == dict.fromkeys(STAGES, "made")
    return workplace / "runs/tiny"


@pytest.fixture
def recipe(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(workplace)
    return read_recipe("recipe.yaml")


def run(recipe: Recipe, folder: Path) -> RunResult:
    return run_recipe(recipe, folder, model=recipe.ann.model)


def changed(recipe: Recipe, part: str, **settings: object) -> Recipe:
    fields = recipe.model_dump()
    if settings.get("protocol"):  # says itself which attacks run
        del fields[part]["attacks"]
    return Recipe.model_validate({**fields, part: {**fields[part], **settings}})


# what leaves the choice of attacks and views to a protocol
OPEN = {name: Measurements.model_fields[name].default for name in ("attacks", "views")}


def sums(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_result_is_a_checkpoint_with_both_evaluations_card_and_recipe(
    made: Path, recipe: Recipe
) -> None:
    names = {path.name for path in (made / NAME).iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "evaluation.json",
        "evaluation_source.json",
        "README.md",
        "recipe.yaml",
    } <= names
    snn, ann = (
        json.loads((made / NAME / f"evaluation{part}.json").read_text()) for part in ("", "_source")
    )
    assert (snn["model"]["kind"], ann["model"]["kind"]) == ("snn", "ann")
    assert snn["dataset"] == ann["dataset"]
    card = (made / NAME / "README.md").read_text()
    assert "sj-robust run" in card
    assert "license: mit" in card
    # the recipe beside it is the same recipe, with everything written out
    assert read_recipe(made / NAME / "recipe.yaml") == recipe


def test_a_second_run_keeps_everything(made: Path, recipe: Recipe) -> None:
    before = sums(made)
    again = run(recipe, made)
    assert again.stages == dict.fromkeys(STAGES, "kept")
    assert sums(made) == before
    assert again.snn_report.dataset.evaluated == 8


def test_a_mistake_that_shows_late_puts_nothing_aside_and_lost_records_come_back(
    made: Path, recipe: Recipe, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    before = sums(copy)
    with pytest.raises(SJRobustError, match="my_networks has no mistyped"):
        run(changed(recipe, "ann", model="my_networks:mistyped"), copy)
    assert sums(copy) == before
    for name in ("README.md", "evaluation.json"):  # as where the ANN was made again
        (copy / "ann" / name).unlink()
    assert run(recipe, copy).stages == dict.fromkeys(STAGES, "kept")
    assert sums(copy).keys() == before.keys()


def test_settings_that_came_later_do_not_make_finished_stages_again(made: Path) -> None:
    made_from = json.loads((made / "converted.stage.json").read_text())["made_from"]
    assert made_from["convert"].keys() == {
        "timesteps",
        "percentile",
        "scale",
        "calibration_timesteps",
        "leak",
        "reset",
        "norm",
        "norm_statistics",
        "per_channel",
        "surrogate",
        "batches",
        "batch_size",
    }


def test_a_changed_setting_makes_its_stage_and_what_follows_again(
    made: Path, recipe: Recipe
) -> None:
    stages = run(changed(recipe, "evaluate", max_images=6), made).stages
    assert [name for name, state in stages.items() if state == "made"] == STAGES[3:]
    assert (made / "evaluated/snn.json.previous").exists()
    stages = run(changed(recipe, "convert", scale=0.5), made).stages
    assert [name for name, state in stages.items() if state == "made"] == STAGES[1:]
    # and back: the ANN and its evaluation are still those of the recipe
    stages = run(recipe, made).stages
    assert [name for name, state in stages.items() if state == "kept"] == [
        "ann",
        "evaluated/ann.json",
    ]


def test_a_damaged_output_is_made_again(made: Path, recipe: Recipe) -> None:
    weights = made / "converted/model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    stages = run(recipe, made).stages
    assert stages["converted"] == "made"
    assert stages["finetuned"] == "kept"  # it was made from the same weights as are there again
    assert weights.read_bytes() == original


def start(workplace: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=workplace,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        **pipes,
    )


def saved(folder: Path) -> int:
    """When the state of the ANN's training was last saved."""
    try:
        return (folder / "ann.training/state.safetensors").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def wait(process: subprocess.Popen[str], until: Callable[[], bool]) -> None:
    while process.poll() is None and not until():
        time.sleep(0.01)


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def torchrun(workplace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    port = free_port()
    process = start(
        workplace,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        port,
        "-m",
        "sj_robust",
        *arguments,
    )
    output, messages = process.communicate(timeout=600)
    return subprocess.CompletedProcess(arguments, process.returncode, output, messages)


def same_up_to_rounding(one: Path, other: Path) -> None:
    """The weights of every stage, and which images each evaluation found right and broken."""
    for stage in ("ann", "converted", "finetuned", NAME):
        weights, twins = (
            load_file(folder / stage / "model.safetensors") for folder in (one, other)
        )
        torch.testing.assert_close(weights, twins, rtol=1e-3, atol=1e-5)
    for kind in ("ann", "converted", "snn"):
        report, twin = (
            json.loads((folder / f"evaluated/{kind}.json").read_text()) for folder in (one, other)
        )
        assert (report["per_image"], report["joint"]) == (twin["per_image"], twin["joint"])


def test_an_interrupted_and_then_killed_run_goes_on_to_the_same_weights(
    made: Path, process: Cli, workplace: Path
) -> None:
    folder = workplace / "runs/killed"
    command = [
        "-c",
        "from sj_robust.cli import main; main()",
        "run",
        "recipe.yaml",
        "--model",
        MODEL,
        "--out",
        str(folder),
    ]

    interrupted = start(workplace, *command)
    wait(interrupted, lambda: saved(folder) > 0)
    interrupted.send_signal(signal.SIGINT)
    _, errors = interrupted.communicate()
    assert interrupted.returncode == 1
    assert (
        errors.splitlines()[-1]
        == "sj-robust: interrupted; the same command goes on from the last saved state"
    )
    assert "Traceback" not in errors

    before = saved(folder)
    killed = start(workplace, *command)
    wait(killed, lambda: saved(folder) > before)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "finetuned").exists()

    done = process("run", "recipe.yaml", "--model", MODEL, "--out", "runs/killed", "--json")
    assert done.returncode == 0, done.stderr
    for stage in ("ann", "converted", "finetuned", NAME):
        assert (folder / stage / "model.safetensors").read_bytes() == (
            made / stage / "model.safetensors"
        ).read_bytes()


@pytest.mark.slow
def test_two_processes_go_on_with_the_killed_run_of_one_to_what_one_makes(
    made: Path, workplace: Path
) -> None:
    folder = workplace / "runs/two"
    killed = start(
        workplace, "-m", "sj_robust", "run", "recipe.yaml", "--model", MODEL, "--out", str(folder)
    )
    wait(killed, lambda: saved(folder) > 0)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert saved(folder)
    assert not (folder / "ann").exists()
    done = torchrun(
        workplace, "run", "recipe.yaml", "--model", MODEL, "--out", "runs/two", "--json"
    )
    assert done.returncode == 0, done.stderr
    # one result, though each process has it
    assert json.loads(done.stdout)["stages"] == dict.fromkeys(STAGES, "made")
    said = [line for line in done.stderr.splitlines() if not line.startswith("sj-robust: warning")]
    assert [line for line in said if ": making" in line] == [f"{stage}: making" for stage in STAGES]
    same_up_to_rounding(made, folder)
    assert {path.relative_to(folder) for path in folder.rglob("*")} == {
        path.relative_to(made) for path in made.rglob("*") if ".previous" not in str(path)
    }


@pytest.mark.slow
def test_one_process_goes_on_where_a_killed_one_ended_the_run_of_two(
    made: Path, process: Cli, workplace: Path
) -> None:
    folder, port = workplace / "runs/pair", free_port()
    first, second = (
        start(
            workplace,
            "-m",
            "sj_robust",
            "run",
            "recipe.yaml",
            "--model",
            MODEL,
            "--out",
            str(folder),
            RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(2)
    )
    wait(first, lambda: saved(folder) > 0)
    second.send_signal(signal.SIGKILL)
    _, messages = first.communicate(timeout=600)
    output, silence = second.communicate(timeout=600)
    assert (first.returncode, second.returncode) == (1, -signal.SIGKILL)
    assert (output, silence) == ("", "")
    making, failure = messages.splitlines()
    assert making == "ann: making"
    assert failure.startswith("sj-robust: another process has ended or does not answer")
    assert not (folder / "ann").exists()
    done = process("run", "recipe.yaml", "--model", MODEL, "--out", "runs/pair")
    assert done.returncode == 0, done.stderr
    same_up_to_rounding(made, folder)


@pytest.mark.slow
def test_of_two_processes_one_says_what_is_wrong(workplace: Path) -> None:
    failed = torchrun(
        workplace,
        "run",
        "recipe.yaml",
        "--model",
        MODEL,
        "--data",
        "nowhere",
        "--out",
        "runs/nowhere",
    )
    assert failed.returncode != 0
    assert failed.stdout == ""
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("sj-robust: ")]
    assert line.startswith("sj-robust: no dataset 'nowhere'")


def test_the_demo_shows_all_three_networks(
    made: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(recipe, made)
    Console(width=160).print(demo.table(result))
    shown = capsys.readouterr().out
    assert result.converted_report is not None
    for name, report in {
        "robust ANN": result.ann_report,
        "SNN as converted": result.converted_report,
        "SNN finetuned": result.snn_report,
    }.items():
        row = next(line for line in shown.splitlines() if name in line)
        assert str(report.clean) in row
        assert str(report.joint[0].accuracy) in row
    assert "eps 4/255" in shown
    assert demo.demo_recipe().evaluate.eps == pytest.approx([2 / 255, 4 / 255, 8 / 255])


def test_foreign_files_in_the_way_are_not_touched(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann/notes.txt").write_text("mine")
    with pytest.raises(SJRobustError, match="was not made by"):
        run(recipe, tmp_path)
    assert (tmp_path / "ann/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../up"}, "name"),
        ({"typo": 1}, "typo"),
        ({"ann": {}}, "exactly one of architecture, model and checkpoint"),
        ({"ann": {"architecture": "cifar_resnet20"}}, "random weights"),
        (
            {"ann": {"architecture": "cifar_resnet20", "scratch": True, "pretrained": True}},
            "scratch keeps the random weights",
        ),
        ({"ann": {"checkpoint": "x", "weights": "y"}}, "brings its own weights"),
        ({"finetune": {"eps": "8"}}, "eps"),
        ({"finetune": {"preset": "papr"}}, "papr"),
        ({"evaluate": {"eps": ["4/0"]}}, "4/0"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(
    workplace: Path, change: dict[str, object], message: str
) -> None:
    fields = yaml.safe_load((workplace / "recipe.yaml").read_text())
    with pytest.raises(SJRobustError, match=message) as caught:
        make_recipe({**fields, **change}, "recipe.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("recipe.yaml: ")


def test_a_recipe_may_name_a_protocol_and_attacks_with_the_ann_too(
    made: Path, recipe: Recipe, workplace: Path
) -> None:
    settings = {"protocol": "quick", **OPEN, "check_images": 4, "converted": False}
    result = run(changed(recipe, "evaluate", **settings), made)
    assert result.snn_report.settings.protocol == result.ann_report.settings.protocol == "quick@1"
    card = (result.checkpoint / "README.md").read_text()
    assert "quick@1: fgsm + pgd10, 4 gradient views" in card
    assert result.snn_report.verdict is not None and result.snn_report.verdict.split(":")[0] in card
    assert "| same result twice | pass |" in card


def test_further_protocols_are_recorded_beside_the_first(made: Path, recipe: Recipe) -> None:
    result = run(
        changed(recipe, "evaluate", further=["quick"], check_images=0, converted=False), made
    )
    for kind, folder in (("snn", result.checkpoint), ("ann", result.ann)):
        assert result.stages[f"evaluated/{kind}-quick.json"] == "made"
        # without a protocol's name the first is weaker, and makes room
        assert (folder / "evaluation.json").read_text() == (
            made / f"evaluated/{kind}-quick.json"
        ).read_text()
        assert (folder / "evaluation_custom.json").read_text() == (
            made / f"evaluated/{kind}.json"
        ).read_text()
    assert (
        "| eps (l∞) | this model | this model, custom | ANN source |"
        in (result.checkpoint / "README.md").read_text()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "fast", **OPEN}, "unknown protocol 'fast'"),
        ({"further": ["fast"]}, "unknown protocol 'fast'"),
        ({"attacks": ["pgdx"]}, "unknown attack 'pgdx'"),
        ({"views": ["PCW:0"]}, "gradient view 'PCW:0'"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused_before_any_work(
    recipe: Recipe, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(SJRobustError, match=message):
        run(changed(recipe, "evaluate", **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("convert", {"surrogate": "PCV"}, "surrogate"),
        ("convert", {"scale": 11}, "scale"),
        ("convert", {"calibration_timesteps": 5000}, "calibration_timesteps"),
        ("convert", {"batches": 10**6}, "calibration batches"),
        ("finetune", {"validation": 10**4}, "cannot hold out"),
        ("evaluate", {"max_images": 10**6}, "max_images"),
    ],
)
def test_what_a_later_stage_cannot_do_is_refused_before_the_training(
    recipe: Recipe,
    workplace: Path,
    tmp_path: Path,
    part: str,
    change: dict[str, object],
    message: str,
) -> None:
    fields = recipe.model_dump(mode="json")
    with pytest.raises(SJRobustError, match=message):
        run(make_recipe({**fields, part: {**fields[part], **change}}), tmp_path / "run")
    assert (
        not (tmp_path / "run" / "ann").exists() and not (tmp_path / "run" / "ann.training").exists()
    )


def test_the_seed_of_a_recipe_is_that_of_its_trainings(workplace: Path) -> None:
    fields = yaml.safe_load((workplace / "recipe.yaml").read_text())
    made = make_recipe({**fields, "seed": 7})
    assert made.ann.train is not None
    assert made.finetune is not None
    assert (made.ann.train.seed, made.finetune.seed) == (7, 7)
    assert make_recipe({**fields, "seed": 7, "finetune": {"seed": 3}}).finetune.seed == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("named", "given", "fragment"),
    [
        ("os:system", [], "consent to it was not given"),
        ("os:system", ["--model", MODEL], "consent to it 'my_networks:make' was given"),
        ("os:system", ["--model", "os"], "consent to it 'os' was given"),
        ("my_networks:mark", [], "say so with --model my_networks:mark"),
        ("antigravity:x", ["--model", ""], "consent to it '' was given"),
        (None, ["--model", "my_networks:mark"], "names no code"),
    ],
)
def test_code_that_a_recipe_names_runs_with_consent_alone(
    cli: Cli, workplace: Path, tmp_path: Path, named: str | None, given: list[str], fragment: str
) -> None:
    mark, module = tmp_path / "OWNED", workplace / "my_networks.py"
    module.write_text(module.read_text() + "\n\ndef mark(**args):\n    open(args['at'], 'w')\n")
    code = {"model": named, "args": {"command": f"touch {mark}", "at": str(mark)}}
    source = code if named else {"architecture": "cifar_resnet20", "scratch": True}
    for strangers in (
        source,
        {**source, "checkpoint": "resnet20.cifar10_linf_pgd"} if named else source,
    ):
        (tmp_path / "recipe.yaml").write_text(
            yaml.safe_dump({"name": "x", "dataset": "colours", "ann": strangers})
        )
        done = cli("run", tmp_path / "recipe.yaml", "--out", tmp_path / "out", *given)
        assert (done.returncode, done.stdout) == (1, "")
        assert fragment in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not mark.exists()
        assert not (tmp_path / "out").exists()
    with pytest.raises(SJRobustError, match=r"consent|names no code"):
        run_recipe(
            read_recipe(tmp_path / "recipe.yaml"),
            tmp_path / "out",
            model=given[1] if given else None,
        )


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint_path",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "cache_dir",
        "pretrained",
        "scriptable",
        "exportable",
        "features_only",
        "device",
        "num_classes",
    ],
)
def test_arguments_that_load_files_are_none_of_an_architecture(name: str) -> None:
    with pytest.raises(SJRobustError, match=f"args may not set '{name}'"):
        make_recipe(
            {
                "name": "x",
                "dataset": "sample",
                "ann": {"architecture": "resnet18", "scratch": True, "args": {name: "evil.pth"}},
            }
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"finetune": {1: 2}},
        {"finetune": {"preset": [1]}},
        {"finetune": {"kind": "ann"}},
        {"finetune": {"name": "x"}},
        {"finetune": [1]},
        {"ann": 7},
        {"ann": {"train": {"\x1b[31m\nok": 1}}},
        {"seed": 10**40},
        {"evaluate": {"eps": [float("nan")]}},
        {"convert": {"leak": float("inf")}},
        {"": 1},
        {"ann": {"architecture": "resnet18", "scratch": True, "mean": ["x"]}},
        {"name": "a\nb"},
        {"finetune": {"preset": "\u202e"}},
        {"A" * 10**5: 1},
    ],
)
def test_a_damaged_recipe_is_one_line(fields: dict[str, object]) -> None:
    good = {
        "name": "x",
        "dataset": "sample",
        "ann": {"architecture": "cifar_resnet20", "scratch": True},
    }
    assert make_recipe(good).name == "x"
    with pytest.raises(SJRobustError) as error:
        make_recipe({**good, **fields}, "recipe.yaml")
    assert str(error.value).startswith("recipe.yaml: ")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000
