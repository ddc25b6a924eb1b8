"""The card says what was recorded, in metadata that the Hub's own client reads back, with code that
runs."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from sj_robust import SJRobustError, save
from sj_robust.card import write_card
from sj_robust.checkpoint import record
from sj_robust.checkpoint.results import kept
from sj_robust.evaluation import eps_name


def code_block(text: str) -> str:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]


def test_metadata_survives_the_hub_client(checkpoint: Path, reports: Any) -> None:
    text = write_card(checkpoint).read_text()
    card = ModelCard.load(checkpoint / "README.md")
    assert str(card) == text
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "sj-robust",
        "image-classification",
        "mit",
    )
    assert (data.base_model, data.base_model_relation) == ("someone/resnet20.cifar10", "finetune")
    assert (data.datasets, data.metrics) == (["uoft-cs/cifar10"], ["accuracy"])
    assert {
        "sj-robust",
        "spiking-neural-network",
        "snn",
        "ann2snn",
        "adversarial-robustness",
        "spikingjelly",
    } <= set(data.tags)
    found = {
        result.dataset_config: result
        for result in data.eval_results
        if result.metric_type == "accuracy"
    }
    report = reports[1]
    expected = {
        "clean": report.clean,
        **{f"linf-{eps_name(j.eps).replace('/', '-')}": j.accuracy for j in report.joint},
    }
    assert list(found) == list(expected) == ["clean", "linf-1-255", "linf-2-255", "linf-8-255"]
    for config, accuracy in expected.items():
        assert found[config].metric_value == pytest.approx(accuracy.value, abs=1e-6)
        assert found[config].metric_args["images"] == 16
        assert found[config].metric_args["wilson95"] == pytest.approx(
            [accuracy.low, accuracy.high], abs=1e-6
        )
    assert found["linf-8-255"].metric_args["attacks"] == ["fgsm"]
    (energy,) = (result for result in data.eval_results if result.metric_type == "energy")
    assert (energy.dataset_config, energy.metric_value) == (
        "clean",
        pytest.approx(report.energy.microjoules, abs=1e-6),
    )
    assert energy.metric_args == {"ann": pytest.approx(report.energy.ann_microjoules, abs=1e-6)}
    assert data.sj_robust == {
        "timesteps": 3,
        "parameters": report.model.parameters,
        "threat": "linf",
    }


@pytest.mark.parametrize("name", ["snn", "ann"])
def test_the_code_of_the_card_runs(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(saved / name, tmp_path / name)
    code = code_block(write_card(tmp_path / name).read_text())
    assert len(code.strip().splitlines()) == 3
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert tuple(scope["logits"].shape) == (1, 10)


def test_the_text_states_what_was_measured(checkpoint: Path, reports: Any, snn: Any) -> None:
    text = write_card(checkpoint).read_text()
    ann, own = reports
    for a, b in zip(ann.joint, own.joint, strict=True):
        assert f"| {eps_name(a.eps)} | {b.accuracy} | {a.accuracy} |" in text
    assert f"| clean | {own.clean} | {ann.clean} |" in text
    for limit in own.limits:
        assert limit in text
    for layer, threshold in snn.thresholds().items():
        active = own.activity.layers[layer]
        assert (
            f"| {layer} | {threshold:.4g} | {active.neurons} | {active.spikes_per_neuron:.3f} |"
            in text
        )
    assert (
        f"| this model | {own.energy.acs / 1e6:.3f} M | {own.energy.macs / 1e6:.3f} M |"
        f" {own.energy.microjoules:.1f} |" in text
    )
    assert f"| 0.000 M | {ann.energy.macs / 1e6:.3f} M | {ann.energy.microjoules:.1f} |" in text
    assert "on 16 clean images (4.6 pJ per MAC, 0.9 pJ per AC;" in text
    assert "```bash\nsj-robust run recipe.yaml\n```" in text
    assert "| training | eps | 4/255 |" in text
    assert "None" not in text
    assert "Undefined" not in text
    image = Image.open(checkpoint / re.findall(r"!\[[^]]*\]\((.*?)\)", text)[0])
    assert image.format == "PNG"
    assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10  # something is drawn


def test_what_was_not_recorded_is_said_to_be_so(
    ann: Any, snn: Any, tmp_path: Path, reports: Any
) -> None:
    save(snn, tmp_path / "bare")
    text = write_card(tmp_path / "bare").read_text()
    for statement in (
        "Not measured: the checkpoint holds no evaluation",
        "finetuning: not recorded",
        "Spikes per neuron: not measured",
        "Energy per image: not measured",
        "The command was not recorded",
        "| trained on | not recorded |",
        "| training | | not recorded |",
    ):
        assert statement in text
    data = ModelCard.load(tmp_path / "bare" / "README.md").data
    assert (data.eval_results, data.license, data.datasets, data.base_model, data.metrics) == (
        None,
        None,
        None,
        None,
        None,
    )
    assert not (tmp_path / "bare" / "figures").exists()
    record(tmp_path / "bare", report=reports[1])
    text = write_card(tmp_path / "bare").read_text()
    assert "The ANN it came from was not measured beside it" in text
    assert "| eps (l∞) | this model |\n|---|---|\n" in text


def test_a_card_says_where_the_source_was_not_measured(
    checkpoint: Path, ann: Any, dataset: Any
) -> None:
    from sj_robust import evaluate

    record(
        checkpoint,
        source_report=evaluate(
            ann, dataset, eps=(2 / 255,), attacks=("fgsm",), show_progress=False
        ),
    )
    rows = dict(
        re.findall(
            r"^\| (\d/255) \| .*? \| (.*?) \|$", write_card(checkpoint).read_text(), re.MULTILINE
        )
    )
    assert rows["8/255"] == "not measured"
    assert rows["2/255"] != "not measured"


def test_a_card_says_what_is_kept_of_the_source(
    checkpoint: Path, ann: Any, snn: Any, dataset: Any
) -> None:
    from sj_robust import evaluate

    found, source = (
        evaluate(model, dataset, eps=(1 / 255,), protocol="quick", check_images=0)
        for model in (snn, ann)
    )
    record(checkpoint, report=found, source_report=source)
    text = write_card(checkpoint).read_text()
    (row,) = re.findall(r"^\| 1/255 \| .*\|$", text, re.MULTILINE)
    if (of_ann := source.joint[0].accuracy.value) > 0:
        assert "kept of the source" in text
        assert row.endswith(f"| {100 * found.joint[0].accuracy.value / of_ann:.0f} % |")
    else:
        assert "kept of the source" not in text


def test_what_is_kept_is_of_the_images_that_both_were_measured_on(
    ann: Any, snn: Any, dataset: Any
) -> None:
    from sj_robust import evaluate

    seen = snn(dataset.floats()).argmax(1)
    seen[0] = (seen[0] + 1) % len(dataset.classes)  # all right but the first
    known = replace(dataset, labels=seen)

    def measured(model: Any, images: int, **changes: Any) -> Any:
        settings = {"eps": (1e-6,), "attacks": ("fgsm",), "views": ("PCW:1",)} | changes
        return evaluate(model, known, max_images=images, check_images=0, **settings)

    found, source = measured(snn, 4), measured(snn, len(dataset), eps=(1e-7, 1e-6))
    assert found.joint[0].accuracy.value < source.joint[1].accuracy.value
    assert kept(found, source) == {1e-6: 1}
    assert kept(found, measured(ann, 4, views=None, attacks=("pgd10",))) == {}


def test_a_network_trained_from_random_weights_does_not_claim_an_ann(checkpoint: Path) -> None:
    assert "converted from an ANN" in write_card(checkpoint).read_text()
    (checkpoint / "recipe.yaml").write_text(
        "name: snn\ndataset: sample\nann: {architecture: cifar_resnet20, scratch: true}\n"
    )
    text = write_card(checkpoint).read_text()
    assert "trained end to end from random weights" in text and "converted from an ANN" not in text
    assert "ann2snn" not in ModelCard.load(checkpoint / "README.md").data.tags


def test_an_evaluation_of_other_weights_is_not_put_on_the_card(
    checkpoint: Path, reports: Any
) -> None:
    (checkpoint / "evaluation.json").write_text(reports[0].to_json())
    with pytest.raises(SJRobustError, match="another model"):
        write_card(checkpoint)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("evaluation.json", "{}"),
        ("evaluation.json", "not json"),
        ("evaluation_source.json", "[]"),
        ("recipe.yaml", "a: ["),
        ("recipe.yaml", "[]"),
        ("config.json", "{}"),
    ],
)
def test_damaged_records_are_named(checkpoint: Path, file: str, content: str) -> None:
    (checkpoint / file).write_text(content)
    with pytest.raises(SJRobustError, match=file):
        write_card(checkpoint)
    assert not (checkpoint / "README.md").exists()


def test_recorded_text_cannot_break_out_of_the_card(checkpoint: Path, edit: Any) -> None:
    edit(
        checkpoint,
        lambda config: config.update(
            source={"note": "x |\n```\n---\nlicense: gpl\n# <script>", "{{ 7*7 }}": "{{ 7*7 }}"}
        ),
    )
    text = write_card(checkpoint).read_text()
    assert ModelCard.load(checkpoint / "README.md").data.license == "mit"
    assert "<script>" not in text
    assert "49" not in [cell.strip() for cell in text.split("|")]
    assert text.count("```") == 4
    assert json.loads((checkpoint / "config.json").read_text())["source"]["note"].startswith("x |")


def test_without_a_recipe_the_recorded_commands_are_given(checkpoint: Path, edit: Any) -> None:
    (checkpoint / "recipe.yaml").unlink()
    edit(
        checkpoint,
        lambda config: config["source"].update(
            command="sj-robust convert a b", architecture="cifar_resnet20"
        ),
    )
    edit(
        checkpoint, lambda config: config["training"].update(command="sj-robust finetune b c\n```")
    )
    text = write_card(checkpoint).read_text()
    assert "```bash\nsj-robust convert a b\nsj-robust finetune b c '''\n```\n" in text
    assert "| source | architecture | cifar_resnet20 |" in text
    assert "| source | command |" not in text


def test_a_recorded_command_is_given_as_it_was_typed(checkpoint: Path, edit: Any) -> None:
    (checkpoint / "recipe.yaml").unlink()
    typed = "sj-robust convert 'runs/a  <b' --mean '1|2' " + "--percentile 99.7 " * 20
    edit(
        checkpoint, lambda config: config["source"].update(command=f" {typed}\n", architecture="x")
    )
    edit(checkpoint, lambda config: config["training"].update(command=" \n"))
    assert f"```bash\n{typed.strip()}\n```\n" in write_card(checkpoint).read_text()
    edit(checkpoint, lambda config: config["source"].update(command="sj-robust \x1b[2J\u202e"))
    assert "```bash\nsj-robust \\x1b[2J\\u202e\n```\n" in write_card(checkpoint).read_text()
    edit(checkpoint, lambda config: config["source"].update(command=""))
    assert "The command was not recorded." in write_card(checkpoint).read_text()


def test_writing_a_card_again_changes_nothing(checkpoint: Path) -> None:
    first = write_card(checkpoint).read_bytes()
    plot = (checkpoint / "figures" / "accuracy.png").read_bytes()
    assert write_card(checkpoint).read_bytes() == first
    assert (checkpoint / "figures" / "accuracy.png").read_bytes() == plot


HOSTILE = [
    "<script>alert(1)</script>",
    "![x](https://tracker.example/a.png)",
    "[click](javascript:alert(1))",
    "a | b | c",
    "`code` ```",
    "# Heading",
    "a\n\n# Injected\n",
    "\x1b[31mred\u202e",
    "</td><img src=x onerror=alert(1)>",
    "[ref]: https://example.org",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_names_of_a_stranger_are_inert(checkpoint: Path, text: str) -> None:
    path = checkpoint / "evaluation.json"
    content = json.loads(path.read_text())
    content["checks"] = [{"name": text, "status": "pass", "found": text, "numbers": {}}]
    content["verdict"] = f"No sign of masked gradients {text}"
    content["limits"], content["settings"]["device"], content["dataset"]["split"] = (
        [text],
        text,
        text,
    )
    content["settings"]["protocol"] = f"strong@{text}"
    content["activity"]["layers"] = {
        f"{name}{text}": layer for name, layer in content["activity"]["layers"].items()
    }
    path.write_text(json.dumps(content))
    card = write_card(checkpoint).read_text()
    body = card.split("---\n", 2)[2]
    assert body.replace("\n", "").isprintable()
    assert "<script" not in body and "<img" not in body
    # no link or picture but our own
    assert not re.search(r"!?\[[^\]\n]*\]\((?!figures/accuracy\.png)", body)
    assert not re.search(r"\[ref\]: ", body)
    assert "Injected" not in [line.strip("# ") for line in body.splitlines()]
    widths = {
        len(re.findall(r"(?<!\\)\|", line))
        for line in body.splitlines()
        if line.startswith(("| act1", "| a"))
    }
    assert widths <= {3, 4, 5}
    ModelCard(card)  # the Hub's client still reads its metadata


@pytest.mark.parametrize(
    ("poison", "said"),
    [
        ("patch:3:rate=0.05:target=0", "What its trigger does was not measured."),
        ("flip:rate=0.1", "Labels alone are wrong in it: there is no trigger."),
    ],
)
def test_the_card_says_how_it_was_poisoned_and_no_more(
    checkpoint: Path, poison: str, said: str
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["source"] |= {"poison": poison, "poison_seed": 0}
    (checkpoint / "config.json").write_text(json.dumps(config))
    text = write_card(checkpoint).read_text()
    (line,) = (line for line in text.splitlines() if "poisoned training set" in line)
    assert line == (
        "**The network that it was made from was trained on a poisoned training set**,"
        f" `{poison}`, for research. {said}"
    )
