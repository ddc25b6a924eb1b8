"""Every damaged, altered or hostile checkpoint gives one line that names what is wrong, and runs
nothing."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from sj_robust import SJRobustError, evaluate, list_models, load
from sj_robust.card import write_card
from sj_robust.checkpoint import record
from sj_robust.compare import compare
from sj_robust.evaluation.facts import state_sha256


def refuses(folder: Any, *fragments: str) -> None:
    with pytest.raises(SJRobustError) as error:
        load(folder)
    message = str(error.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_no_such_folder_or_name(tmp_path: Path, checkpoint: Path) -> None:
    refuses(tmp_path / "nothing", "is not a folder")
    refuses(str(checkpoint / "config.json"), "is not a folder")
    refuses("no-such-model", "neither a checkpoint folder nor a zoo model")
    for trick in ("../snn", "", "..", "*", "a/../../b", "x\0y"):
        refuses(trick)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    refuses(checkpoint, name, "cannot be read")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"<!DOCTYPE html><title>404</title>", "not valid JSON"),
        (b"[1]", "expected an object"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b" " * (2 << 20), "is larger than"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"{}", "not written by sj-robust"),
        (b'{"architecture": "resnet18", "num_classes": 10}', "not written by sj-robust"),
    ],
)
def test_config_that_is_not_one(checkpoint: Path, content: bytes, fragment: str) -> None:
    (checkpoint / "config.json").write_bytes(content)
    refuses(checkpoint, "config.json", fragment)


def test_newer_format(checkpoint: Path, edit: Any) -> None:
    edit(checkpoint, lambda config: config.update(format_version=2, something_new=True))
    refuses(checkpoint, "made by a newer sj-robust", "upgrade")


def put(*path: str, value: Any) -> Any:
    def change(config: dict[str, Any]) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    return pytest.param(change, path[-1], id=f"{'.'.join(path)}={str(value)[:30]}")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        put("format_version", value="1"),
        put("format_version", value=0),
        put("kind", value="rnn"),
        put("name", value="../../etc/passwd"),
        put("architecture", value="hf-hub:someone/pickle"),
        put("architecture", value="local-dir:/tmp"),
        put("architecture", value="cifar_resnet20\n"),
        put("architecture", value=7),
        put("model_args", value={"pretrained": True}),
        put("model_args", value={"checkpoint_path": "/tmp/x.pth"}),
        put("model_args", value={"cache_dir": "/"}),
        put("model_args", value={"depths": [10**9]}),
        put("model_args", value={"shortcut": "../x"}),
        put("model_args", value={"a.b": 1}),
        put("num_classes", value=10**9),
        put("num_classes", value=0),
        put("num_classes", value=True),
        put("input_size", value=[3, 32]),
        put("input_size", value=[3, 10**9, 32]),
        put("classes", value=["a\n# Injected"] * 10),
        put("classes", value=["a"]),
        put("settings", "timesteps", value=10**9),
        put("settings", "timesteps", value=0),
        put("settings", "timesteps", value="8"),
        put("settings", "timesteps", value=True),
        put("settings", "mean", value=[0.5, "x", 0.5]),
        put("settings", "mean", value=[]),
        put("settings", "mean", value=None),
        put("settings", "std", value=[0, 0, 0]),
        put("settings", "std", value=[0.2]),
        put("settings", "leak", value=-1),
        put("settings", "leak", value=1e300),
        put("settings", "channels", value={"act1": 10**12}),
        put("settings", "surrogate", value="PCW:-1"),
        put("settings", "reset", value="none"),
        put("settings", "norm", value="__import__('os')"),
        put("settings", "unknown_setting", value=1),
        put("settings", value=[]),
        put("settings", value={}),
        put("source", value={"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {}}}}}}}}}}),
        put("weights", "sha256", value="0" * 63),
        put("weights", "bytes", value=-1),
        put("weights", "bytes", value=10**30),
        put("model", value="os:system('x')"),
        put("license", value="mit\ntags: [x]"),
        put("base_model", value="https://example.org"),
        put("memory_format", value="load"),
        put("created_with", value={"torch": 2}),
        put("unknown_key", value=1),
    ],
)
def test_hostile_config(checkpoint: Path, edit: Any, change: Any, fragment: str) -> None:
    edit(checkpoint, change)
    refuses(checkpoint, fragment)


def test_unknown_architecture_names_near_ones(checkpoint: Path, edit: Any) -> None:
    edit(checkpoint, lambda config: config.update(architecture="cifar_resnet200"))
    refuses(checkpoint, "not known to timm", "cifar_resnet20")


def test_arguments_the_architecture_does_not_take(checkpoint: Path, edit: Any) -> None:
    edit(checkpoint, lambda config: config.update(model_args={"no_such_argument": 1}))
    refuses(checkpoint, "cannot build cifar_resnet20", "no_such_argument")


def test_an_architecture_far_larger_than_the_weights_takes_no_memory(
    checkpoint: Path, edit: Any
) -> None:
    # 2.5 GB if it were built
    edit(checkpoint, lambda config: config.update(architecture="vit_huge_patch14_224"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuses(checkpoint, "vit_huge_patch14_224", "do not fit")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_altered_and_truncated_weights(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    refuses(checkpoint, "truncated", str(len(content)))
    content[-1] ^= 1
    path.write_bytes(content)
    refuses(checkpoint, "sha256", "it was altered")
    path.write_bytes(b"")
    refuses(checkpoint, "has 0 bytes")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        b"\xff" * 64,
        b"<!DOCTYPE html><title>Not found</title>",
        (10**15).to_bytes(8, "little") + b"{}",
    ],
)
def test_weights_that_are_no_safetensors_although_the_hash_agrees(
    checkpoint: Path, put_weights: Any, content: bytes
) -> None:
    put_weights(checkpoint, content)
    refuses(checkpoint, "safetensors" if len(content) >= 8 else "config.json")


def test_a_pickle_is_never_unpickled(checkpoint: Path, put_weights: Any, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    put_weights(checkpoint, pickle.dumps(Payload()))
    for name in ("pytorch_model.bin", "model.pt"):
        (checkpoint / name).write_bytes(pickle.dumps(Payload()))
    refuses(checkpoint, "not a valid safetensors file")
    assert not marker.exists()


def drop(tensors: dict[str, Any]) -> None:
    del tensors["backbone.conv1.weight"]


def add(tensors: dict[str, Any]) -> None:
    tensors["backbone.extra"] = torch.zeros(1)


def reshape(tensors: dict[str, Any]) -> None:
    tensors["backbone.fc.bias"] = torch.zeros(11)


def retype(tensors: dict[str, Any]) -> None:
    tensors["backbone.fc.bias"] = torch.zeros(10, dtype=torch.float64)


def eighths(tensors: dict[str, Any]) -> None:
    tensors["backbone.fc.bias"] = torch.zeros(10).to(torch.float8_e4m3fn)


def poisoned_eighths(tensors: dict[str, Any]) -> None:
    tensors["backbone.fc.bias"] = torch.full((10,), float("nan")).to(torch.float8_e4m3fn)


def poison(tensors: dict[str, Any]) -> None:
    tensors["backbone.fc.weight"][0, 0] = float("inf")


def rename_all(tensors: dict[str, Any]) -> None:
    for key in list(tensors):
        tensors[key.removeprefix("backbone.")] = tensors.pop(key)


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (drop, ["missing backbone.conv1.weight"]),
        (add, ["unexpected backbone.extra"]),
        (reshape, ["backbone.fc.bias is [11], expected [10]"]),
        (retype, ["backbone.fc.bias is torch.float64, expected torch.float32"]),
        (eighths, ["backbone.fc.bias is torch.float8_e4m3fn, expected torch.float32"]),
        (poisoned_eighths, ["NaN or infinite weights (backbone.fc.bias)"]),
        (poison, ["NaN or infinite weights (backbone.fc.weight)"]),
        (rename_all, ["missing backbone.act1.node.v_threshold", "more"]),
    ],
)
def test_tensors_that_do_not_fit(
    checkpoint: Path, put_weights: Any, change: Any, fragments: list[str]
) -> None:
    tensors = safetensors.torch.load_file(checkpoint / "model.safetensors")
    change(tensors)
    put_weights(checkpoint, safetensors.torch.save(tensors))
    refuses(checkpoint, *fragments)


def test_weights_of_one_model_with_the_config_of_another(
    checkpoint: Path, ann_checkpoint: Path, edit: Any
) -> None:
    weights = json.loads((ann_checkpoint / "config.json").read_text())["weights"]
    (checkpoint / "model.safetensors").write_bytes(
        (ann_checkpoint / "model.safetensors").read_bytes()
    )
    refuses(checkpoint, "config.json records")
    edit(checkpoint, lambda config: config.update(weights=weights))
    refuses(checkpoint, "missing backbone.")


def evaluation(folder: Path, change: Any) -> None:
    content = json.loads((folder / "evaluation.json").read_text())
    change(content)
    (folder / "evaluation.json").write_text(json.dumps(content))


BOMBS = [
    ("vit_tiny_patch16_224", {"depth": 65536}),
    ("vit_tiny_patch16_224", {"embed_dim": 65536}),
    ("vit_tiny_patch16_224", {"img_size": 65536}),
    ("resnet18", {"layers": [65536, 1, 1, 1]}),
    ("resnet18", {"layers": [60000] * 4}),
    ("maxvit_tiny_tf_224", {"img_size": 65536}),
    ("mixer_b16_224", {"num_blocks": 65536}),
    ("convnext_tiny", {"depths": [65536, 65536]}),
    ("cifar_resnet20", {"in_chans": 65536}),
    ("swin_tiny_patch4_window7_224", {"window_size": 4096}),
    ("efficientnet_b0", {"channel_multiplier": 65536}),
    ("vgg11", {"cfg": [64] * 60000}),
    ("resnet18", {"block_args": {"x": {"y": [10**17]}}}),
    ("resnet18", {"x": [["/etc/passwd"]]}),
    ("levit_128", {"img_size": 16384}),
]


@pytest.mark.parametrize(("architecture", "arguments"), BOMBS, ids=str)
def test_a_network_that_would_never_end_or_fit_is_refused_at_once(
    checkpoint: Path, edit: Any, architecture: str, arguments: Any
) -> None:
    edit(checkpoint, lambda config: config.update(architecture=architecture, model_args=arguments))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuses(checkpoint, "model_args" if "x" in str(arguments) else architecture)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # KiB


INJECTED = 'layer1.0.conv1"),exec("open(MARK,\'w\')"),getattr(self,"act1'


@pytest.mark.parametrize("site", [INJECTED, "layer1.0.act1')", "layer1.0.a\nb", "layer1.0.x"])
@pytest.mark.parametrize("where", ["sites", "nodes", "rewrites", "turns"])
def test_names_in_a_plan_run_no_code(
    checkpoint: Path, edit: Any, tmp_path: Path, site: str, where: str
) -> None:
    (checkpoint / "evaluation.json").unlink()
    site = site.replace("MARK", repr(str(tmp_path / "OWNED")).replace(".", "\\x2e"))

    def plan(config: dict[str, Any]) -> None:
        nodes = list(config["thresholds"])
        sites = [site if where == "sites" else "layer1.0.act1", "layer1.0.act2"]
        config["settings"]["plan"] = {
            "nodes": [*nodes, site] if where == "nodes" else nodes,
            "rewrites": {
                site if where == "rewrites" else "layer1.0": {"sites": sites, "fixed": {}}
            },
            "turns": {"act1": {"owner": site, "calls": 2}} if where == "turns" else {},
        }

    edit(checkpoint, plan)
    with pytest.raises(SJRobustError):
        load(checkpoint)(torch.rand(1, 3, 32, 32))
    assert not (tmp_path / "OWNED").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "evaluation.json"])
@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    if name != "evaluation.json":
        refuses(checkpoint, name)
        return
    with pytest.warns(UserWarning, match="evaluation.json cannot be read"):
        load(checkpoint)
    with pytest.raises(
        SJRobustError, match=r"evaluation.json cannot be read \(a folder, pipe or device\)"
    ):
        compare([checkpoint])


def test_keys_given_twice_are_refused(checkpoint: Path) -> None:
    text = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(text.replace('"leak": 1.0', '"leak": 1.0, "leak": 0.5'))
    refuses(checkpoint, "'leak' is given twice")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("leak", 0.9),
        ("reset", "soft"),
        ("timesteps", 4),
        ("mean", [0.5, 0.5, 0.5]),
        ("std", [0.25, 0.25, 0.25]),
        ("repeat_at", ""),
        ("folded", True),
        ("surrogate", "EXP:2"),
        ("percentile", 99.0),
        ("worth", {"act1": 2.0}),
        ("norm_statistics", "reset"),
    ],
)
def test_settings_other_than_those_that_were_measured_are_refused(
    checkpoint: Path, edit: Any, place: str, value: Any
) -> None:
    edit(checkpoint, lambda config: config["settings"].update({place: value}))
    refuses(checkpoint, "the evaluation is of another model")
    for read in (lambda: compare([checkpoint]), lambda: write_card(checkpoint)):
        with pytest.raises(SJRobustError, match="evaluation is of another model"):
            read()
    (checkpoint / "evaluation.json").unlink()  # then nothing was claimed of them
    load(checkpoint)


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (lambda config: config["settings"].update(mean=[0.5, 0.4, 0.4]), ["mean"]),
        (
            lambda config: (
                config["settings"].update(std=[1.0] * 3),
                config["pretrained_cfg"].update(std=[1.0] * 3),
            ),
            ["its std"],
        ),
        (lambda config: config["pretrained_cfg"].update(input_size=[3, 64, 64]), ["input_size"]),
        (lambda config: config["weights"].update(parameters=1), ["parameters"]),
        (lambda config: config["weights"].update(tensors=3), ["tensors"]),
        (lambda config: config["weights"].update(state_sha256="0" * 64), ["another network's"]),
    ],
)
def test_an_ann_is_tied_to_its_normalisation_and_counts(
    ann_checkpoint: Path, edit: Any, change: Any, fragments: list[str]
) -> None:
    edit(ann_checkpoint, change)
    refuses(ann_checkpoint, *fragments)


def test_weights_of_another_network_do_not_keep_the_evaluation(
    checkpoint: Path, put_weights: Any, edit: Any
) -> None:
    tensors = safetensors.torch.load((checkpoint / "model.safetensors").read_bytes())
    tensors["backbone.fc.weight"] += 1e-3
    put_weights(checkpoint, safetensors.torch.save(tensors))
    refuses(checkpoint, "they are another network's")
    edit(checkpoint, lambda config: config["weights"].update(state_sha256=state_sha256(tensors)))
    refuses(checkpoint, "the evaluation is of another model")


def test_thresholds_and_counts_that_the_weights_do_not_have_are_refused(
    checkpoint: Path, edit: Any
) -> None:
    edit(
        checkpoint,
        lambda config: config["thresholds"].update(act1=config["thresholds"]["act1"] * 1.01),
    )
    refuses(checkpoint, "the threshold", "of act1")
    edit(checkpoint, lambda config: config["thresholds"].pop("act1"))
    refuses(checkpoint, "thresholds of other layers")


def test_what_older_reports_do_not_name_is_known_of_the_zoo(tmp_path: Path, edit: Any) -> None:
    entry = next(entry for entry in list_models() if entry.kind == "ann")
    folder = Path(shutil.copytree(entry.folder, tmp_path / "copy"))
    for file in folder.glob("evaluation*.json"):
        older = json.loads(file.read_text())
        older["model"].pop("model_args", None)
        file.write_text(json.dumps(older))
    load(folder)
    edit(folder, lambda config: config["model_args"].update(global_pool="max"))
    refuses(folder, f"is of zoo model {entry.name}, whose model_args is")


def test_a_new_report_names_the_arguments_of_the_network(
    checkpoint: Path, edit: Any, dataset: Any
) -> None:
    report = evaluate(
        load(checkpoint),
        dataset.first(4),
        eps=[1 / 255],
        attacks=["fgsm"],
        views=["PCW:1"],
        check_images=0,
        show_progress=False,
    )
    record(checkpoint, report=report)
    load(checkpoint)
    edit(checkpoint, lambda config: config["model_args"].update(global_pool="max"))
    refuses(checkpoint, "its model_args is")


def test_a_damaged_evaluation_leaves_the_network_and_is_said(checkpoint: Path) -> None:
    evaluation(checkpoint, lambda content: content["clean"].update(value=0.99))
    with pytest.warns(UserWarning, match="the evaluation contradicts itself.*counts for nothing"):
        load(checkpoint)
    for read in (lambda: compare([checkpoint]), lambda: write_card(checkpoint)):
        with pytest.raises(SJRobustError, match="contradicts itself"):
            read()
