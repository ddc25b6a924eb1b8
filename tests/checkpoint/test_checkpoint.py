"""Saving and loading: what comes back is what was saved, whole or not at all."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import sj_robust.model
from sj_robust import SJRobustError, convert, evaluate, load, save
from sj_robust.checkpoint import record
from sj_robust.model import NormalizedClassifier, SpikingClassifier, create_ann
from sj_robust.training.precision import round_weights


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


class OwnNetwork(nn.Module):
    """A user's class, unknown to timm."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv, self.bn, self.act, self.fc = (
            nn.Conv2d(3, width, 3),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Linear(width, 4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.bn(self.conv(x))).mean((2, 3)))


def test_loaded_models_are_bit_equal_in_eval_mode(
    saved: Path, ann: Any, snn: Any, dataset: Any
) -> None:
    images = dataset.floats()
    for name, original in (("ann", ann), ("snn", snn)):
        loaded = load(saved / name)
        assert torch.equal(logits(loaded, images), logits(original, images))
        assert not any(module.training for module in loaded.modules())
    assert isinstance(loaded, SpikingClassifier)
    assert (loaded.timesteps, loaded.thresholds(), loaded.settings, loaded.source) == (
        3,
        snn.thresholds(),
        snn.settings,
        snn.source,
    )
    assert not isinstance(load(saved / "ann"), SpikingClassifier)


@pytest.mark.parametrize(
    "options",
    [{"norm": "fuse"}, {"norm": "omit"}, {"per_channel": True}, {"reset": "soft", "leak": 0.9}],
)
def test_every_kind_of_conversion_comes_back(
    options: dict[str, Any], ann: Any, dataset: Any, tmp_path: Path
) -> None:
    model = convert(ann, dataset.floats()[None, :4], 2, calibration_timesteps=3, **options)
    save(model, tmp_path / "m")
    assert torch.equal(
        logits(load(tmp_path / "m"), dataset.floats()), logits(model, dataset.floats())
    )


@pytest.mark.parametrize(
    ("build", "architecture", "model_args"),
    [
        (
            lambda: create_ann("cifar_resnet20", 7, shortcut="identity"),
            "cifar_resnet20",
            {"shortcut": "identity"},
        ),
        (
            lambda: timm.create_model("resnet10t", num_classes=5, stem_width=16),
            "resnet10t",
            {"stem_width": 16},
        ),
        (
            lambda: create_ann("cifar_resnet20", 10).to(memory_format=torch.channels_last),
            "cifar_resnet20",
            {},
        ),
    ],
)
def test_arguments_and_layout_of_a_timm_network_survive(
    build: Any, architecture: str, model_args: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    backbone = build()
    if not hasattr(backbone, "_model_args"):
        pytest.skip("this timm does not note the arguments of a network; 1.0.31 does")
    model = NormalizedClassifier(backbone, (0.5,) * 3, (0.25,) * 3).eval()
    config = save(model, tmp_path / "m", input_size=(3, 32, 32))
    assert (config.architecture, config.model_args) == (architecture, model_args)
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(logits(load(tmp_path / "m"), images), logits(model, images))


def test_timm_reads_the_folder_of_an_ann(saved: Path, ann: Any, dataset: Any) -> None:
    assert sj_robust.model  # registers cifar_resnet20
    network = timm.create_model(f"local-dir:{saved / 'ann'}", pretrained=True).eval()
    images = ann.normalize(dataset.floats())
    assert torch.equal(logits(network, images), logits(ann.backbone, images))
    assert network.pretrained_cfg["mean"] == pytest.approx((0.5, 0.4, 0.5))


def test_a_network_changed_after_timm_built_it_is_not_taken_for_the_original(
    tmp_path: Path,
) -> None:
    """Names and shapes agree, the function does not: loading the timm network instead would be
    silently wrong."""
    torch.manual_seed(0)
    backbone = create_ann("cifar_resnet20", 10)
    backbone.act1 = nn.Tanh()
    model = NormalizedClassifier(backbone, (0.5,) * 3, (0.25,) * 3).eval()
    with pytest.warns(UserWarning, match="load will need model="):
        config = save(model, tmp_path / "m")
    assert config.architecture is None
    with pytest.raises(SJRobustError, match="name the function that builds it"):
        load(tmp_path / "m")


def test_own_network_is_named_but_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_module_of_a_user.py").write_text(
        "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    own, images = OwnNetwork().eval(), torch.rand(2, 3, 9, 9)
    spiking = convert(
        own, torch.rand(2, 4, 3, 9, 9), 3, mean=(0.5,) * 3, std=(0.25,) * 3, calibration_timesteps=4
    )
    with pytest.warns(UserWarning, match="OwnNetwork cannot be rebuilt from a timm name"):
        save(spiking, tmp_path / "unknown", input_size=(3, 9, 9))
    save(spiking, tmp_path / "m", builder="own_module_of_a_user:build", input_size=(3, 9, 9))
    with pytest.raises(SJRobustError, match="own_module_of_a_user:build"):
        load(tmp_path / "m")
    assert not (tmp_path / "own_module_of_a_user.ran").exists()
    for given in (OwnNetwork(), OwnNetwork):
        assert torch.equal(
            logits(load(tmp_path / "m", model=given), images), logits(spiking, images)
        )
    with pytest.raises(
        SJRobustError, match=r"backbone\.bn\.bias is \[6\], expected \[8\].*and 2 more"
    ):
        load(tmp_path / "m", model=OwnNetwork(8))


def test_loading_and_saving_leave_random_state_and_model_alone(checkpoint: Path, snn: Any) -> None:
    before, flags = torch.get_rng_state(), [module.training for module in snn.modules()]
    save(load(checkpoint), checkpoint)
    save(snn, checkpoint)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in snn.modules()] == flags


def test_saving_again_is_byte_equal_and_drops_what_was_measured_on_other_weights(
    checkpoint: Path,
) -> None:
    weights, config = (
        (checkpoint / "model.safetensors").read_bytes(),
        json.loads((checkpoint / "config.json").read_text()),
    )
    model = load(checkpoint)
    save(
        model,
        checkpoint,
        training=config["training"],
        classes=config["classes"],
        license="mit",
        base_model=config["base_model"],
    )
    assert (checkpoint / "model.safetensors").read_bytes() == weights
    assert json.loads((checkpoint / "config.json").read_text()) == config
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_report_of_another_model_is_refused(
    checkpoint: Path, ann_checkpoint: Path, reports: Any, snn: Any, dataset: Any
) -> None:
    for action in (
        lambda: record(checkpoint, report=reports[0]),
        lambda: save(snn, checkpoint, report=reports[0]),
    ):
        with pytest.raises(SJRobustError, match="evaluation is of another model"):
            action()
    longer = load(checkpoint)
    longer.timesteps = 5  # the same weights, another network
    with pytest.raises(SJRobustError, match="T=5"):
        record(
            checkpoint, report=evaluate(longer, dataset, eps=(), attacks=(), show_progress=False)
        )
    record(ann_checkpoint, report=reports[0])
    assert (ann_checkpoint / "evaluation.json").read_text() == reports[0].to_json()


def test_somebody_elses_folder_is_never_overwritten(
    tmp_path: Path, checkpoint: Path, ann: Any
) -> None:
    thesis = tmp_path / "work" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("chapter one")
    (checkpoint / "notes.txt").write_text("mine")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"architecture": "resnet18"}')
    refused = {
        thesis.parent: "thesis.tex",
        checkpoint: "notes.txt",
        foreign: "not written by sj-robust",
        thesis: "is a file",
    }
    for folder, named in refused.items():
        with pytest.raises(SJRobustError, match=named):
            save(ann, folder)
    assert thesis.read_text() == "chapter one"
    assert load(checkpoint).timesteps == 3
    (tmp_path / "empty").mkdir()
    save(ann, tmp_path / "empty")
    assert load(tmp_path / "empty")


def test_what_cannot_be_saved_says_so(ann: Any, tmp_path: Path) -> None:
    with pytest.raises(
        SJRobustError,
        match="expected what convert or from_spikingjelly returned, or NormalizedClassifier",
    ):
        save(ann.backbone, tmp_path / "m")
    broken = NormalizedClassifier(create_ann("cifar_resnet20"), (0.5,) * 3, (0.25,) * 3)
    with torch.no_grad():
        broken.backbone.fc.bias[3] = float("nan")
    with pytest.raises(SJRobustError, match=r"NaN or infinite weights \(fc\.bias\)"):
        save(broken, tmp_path / "m")
    with pytest.raises(SJRobustError, match="training: loss is nan"):
        save(ann, tmp_path / "m", training={"loss": float("nan")})
    with pytest.raises(SJRobustError, match="3 names for 10 classes"):
        save(ann, tmp_path / "m", classes=("a", "b", "c"))
    assert not list(tmp_path.iterdir())


KILL = """
import os, pathlib, shutil, signal, sys, torch
import sj_robust.files
from sj_robust import save
from sj_robust.model import NormalizedClassifier, create_ann

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def half(path, content, write=pathlib.Path.write_bytes):
    write(path, content[:len(content) // 2])
    die()

for moment, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    child = os.fork()
    if child:
        print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    if moment == "writing":
        pathlib.Path.write_bytes = half
    elif moment == "written":
        sj_robust.files._exchange = die  # before the new folder takes the old one's place
    elif moment == "replaced":
        shutil.rmtree = die
    torch.manual_seed(99)
    save(NormalizedClassifier(create_ann("cifar_resnet20"), (0.5,) * 3, (0.25,) * 3), folder)
    os._exit(0)
"""


def test_kill_during_save_leaves_one_complete_version(saved: Path, tmp_path: Path) -> None:
    survivors = {"writing": "old", "written": "old", "replaced": "new", "never": "new"}
    folders = {moment: shutil.copytree(saved / "snn", tmp_path / moment) for moment in survivors}
    arguments = [str(part) for item in folders.items() for part in item]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILL, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    expected = [f"{moment} {0 if moment == 'never' else -signal.SIGKILL}" for moment in survivors]
    assert done.stdout.splitlines() == expected, done.stderr
    for moment, folder in folders.items():
        assert isinstance(load(folder), SpikingClassifier) == (survivors[moment] == "old"), moment


def test_an_interrupted_save_leaves_no_litter(
    checkpoint: Path, ann: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(ann, checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    assert load(checkpoint).timesteps == 3


def test_weights_that_float16_holds_take_half_the_bytes_and_come_back_whole(
    saved: Path, ann: Any, snn: Any, dataset: Any, tmp_path: Path
) -> None:
    images = dataset.floats()
    for name, model in (("ann", copy.deepcopy(ann)), ("snn", copy.deepcopy(snn))):
        round_weights(model)
        config = save(model, tmp_path / name)
        whole = (saved / name / "model.safetensors").stat().st_size
        assert config.weights.bytes < 0.6 * whole
        back = load(tmp_path / name)
        assert all(
            torch.equal(tensor, model.state_dict()[key]) and tensor.dtype != torch.float16
            for key, tensor in back.state_dict().items()
        )
        assert torch.equal(logits(back, images), logits(model, images))
        # saved again, it is the same file
        assert save(back, tmp_path / "again").weights == config.weights
    network = timm.create_model(f"local-dir:{tmp_path / 'ann'}", pretrained=True).eval()
    rounded = load(tmp_path / "ann")
    assert torch.equal(logits(network, ann.normalize(images)), logits(rounded, images))
    large = copy.deepcopy(ann)
    with torch.no_grad():
        next(large.parameters()).view(-1)[0] = 1e6
    before = copy.deepcopy(large.state_dict())
    with pytest.warns(UserWarning, match="too large for float16"):
        round_weights(large)
    assert all(torch.equal(tensor, before[key]) for key, tensor in large.state_dict().items())


class OwnHalves(nn.Module):
    """A network that keeps a table in float16, as its own code wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("table", torch.tensor([0.5, 2.0, 0.1], dtype=torch.float16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mean((2, 3)) * self.table.float())


@pytest.mark.parametrize("rounded", [False, True])
def test_float16_of_a_network_itself_comes_back_as_float16(tmp_path: Path, rounded: bool) -> None:
    model = NormalizedClassifier(OwnHalves(), [0.5] * 3, [0.25] * 3)
    if rounded:
        round_weights(model)
    with pytest.warns(UserWarning, match="load will need model="):
        save(model, tmp_path / "own", input_size=(3, 8, 8))
    back = load(tmp_path / "own", model=OwnHalves)
    assert {key: tensor.dtype for key, tensor in back.state_dict().items()} == {
        "backbone.linear.weight": torch.float32,
        "backbone.linear.bias": torch.float32,
        "backbone.table": torch.float16,
    }
    assert all(
        torch.equal(value, model.state_dict()[key]) for key, value in back.state_dict().items()
    )
