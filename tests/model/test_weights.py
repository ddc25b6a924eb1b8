"""Checkpoints as they are found in the wild: what is understood, and what each kind of wrong file
is answered with."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.model.normalized import NormalizedClassifier
from sj_robust.model.weights import create_ann, load_weights, read_state_dict

SHARED = Path(__file__).parents[3] / "shared"
FOREIGN = SHARED / "models" / "resnet20_cifar10_natural.th"
needs_foreign = pytest.mark.skipif(not FOREIGN.is_file(), reason=f"{FOREIGN} is not there")


class Custom:
    """Something that weights_only must refuse."""


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A network whose every tensor, buffers included, differs from a fresh one."""
    torch.manual_seed(1)
    model = create_ann("cifar_resnet20", num_classes=4)
    model.train()(torch.rand(8, 3, 32, 32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    return model.eval()


def same(model: nn.Module, other: nn.Module) -> bool:
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def fresh() -> nn.Module:
    return create_ann("cifar_resnet20", num_classes=4)


LAYOUTS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"lr": 0.1}},
    "model": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)},
    "net": lambda s: {"net": s, "acc": 91.0},
    "model_state_dict": lambda s: {"model_state_dict": prefixed(s, "module."), "epoch": 1},
    "parallel": lambda s: {"state_dict": prefixed(s, "module.")},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "ours": lambda s: prefixed(s, "backbone."),
    "sequential": lambda s: prefixed(s, "1."),
    "robustness": lambda s: {
        "model": prefixed(s, "module.attacker.model.") | prefixed(s, "module.model.")
    },
    "kuangliu": lambda s: {key.replace("fc.", "linear."): value for key, value in s.items()},
    "nested twice": lambda s: {"state_dict": {"net": s, "best": 0.9}, "epoch": 3},
    "averaged": lambda s: {
        "model": {"conv1.weight": torch.zeros(1)},
        "ema": prefixed(s, "module."),
    },
    "lightning": lambda s: {
        "state_dict": prefixed(s, "net._orig_mod."),
        "pytorch-lightning_version": "2",
        "callbacks": {},
    },
    "timm resnet": lambda s: {
        key.replace("shortcut", "downsample"): value for key, value in s.items()
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_checkpoints(trained, tmp_path, layout):
    path = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](trained.state_dict()), path)
    model = fresh()
    load_weights(model, path)
    assert same(model, trained)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".tar"])
def test_suffixes_and_the_old_file_format(trained, tmp_path, suffix):
    torch.save(
        trained.state_dict(),
        tmp_path / f"w{suffix}",
        _use_new_zipfile_serialization=suffix != ".th",
    )
    assert same(
        create_ann("cifar_resnet20", num_classes=4, weights=tmp_path / f"w{suffix}"), trained
    )


def test_safetensors_into_a_normalized_classifier(trained, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(prefixed(trained.state_dict(), "backbone."), path)
    model = NormalizedClassifier(fresh(), (0.5,) * 3, (0.5,) * 3)
    load_weights(model, path)
    assert same(model.backbone, trained)


def test_averaged_weights_win_as_in_timm(trained, tmp_path):
    torch.save(
        {"state_dict": fresh().state_dict(), "state_dict_ema": trained.state_dict()},
        tmp_path / "w.pth",
    )
    assert same(create_ann("cifar_resnet20", num_classes=4, weights=tmp_path / "w.pth"), trained)
    assert same(
        timm.create_model("cifar_resnet20", num_classes=4, checkpoint_path=tmp_path / "w.pth"),
        trained,
    )


def test_wide_resnet_names_of_trades(tmp_path):
    torch.manual_seed(2)
    theirs = create_ann("cifar_wrn16_4")
    state = {}
    for key, value in theirs.state_dict().items():
        stage, _, rest = key.partition(".")
        state[f"{stage}.layer.{rest}" if stage.startswith("block") else key] = value
    torch.save(
        {key.replace("shortcut.", "convShortcut."): value for key, value in state.items()},
        tmp_path / "w.pt",
    )
    assert same(create_ann("cifar_wrn16_4", weights=tmp_path / "w.pt"), theirs)


def test_batch_counters_may_be_missing(trained, tmp_path):
    state = {key: value for key, value in trained.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "w.pt")
    model = create_ann("cifar_resnet20", num_classes=4, weights=tmp_path / "w.pt")
    assert model.bn1.num_batches_tracked == 0
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), trained(x))


MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.4, 0.3]
NORMALISERS = {
    "robustness": (
        "module.model.",
        "module.normalizer.new_mean",
        "module.normalizer.new_std",
        (3, 1, 1),
        1,
    ),
    "its attacker": (
        "module.attacker.model.",
        "module.attacker.normalize.new_mean",
        "module.attacker.normalize.new_std",
        (3, 1, 1),
        1,
    ),
    "robustbench": ("model.", "normalize.mean", "normalize.std", (1, 3, 1, 1), 1),
    "attributes": ("", "mu", "sigma", (3,), 1),
    "two in a row": ("1.", "0.mean", "0.std", (1, 3, 1, 1), 1),
    "images up to 255": ("model.", "mean", "std", (3,), 255),
}


@pytest.mark.parametrize("wrapper", NORMALISERS)
def test_mean_and_std_stored_by_wrappers(trained, tmp_path, wrapper):
    prefix, mean, std, shape, scale = NORMALISERS[wrapper]
    stored = {
        mean: torch.tensor(MEAN).view(shape) * scale,
        std: torch.tensor(STD).view(shape) * scale,
    }
    torch.save({"state_dict": prefixed(trained.state_dict(), prefix) | stored}, tmp_path / "w.ckpt")
    model = fresh()
    assert load_weights(model, tmp_path / "w.ckpt") == (pytest.approx(MEAN), pytest.approx(STD))
    assert same(model, trained)
    load_weights(NormalizedClassifier(fresh(), MEAN, STD), tmp_path / "w.ckpt")
    other = NormalizedClassifier(fresh(), MEAN, [0.5, 0.4, 0.31])
    before = {key: value.clone() for key, value in other.backbone.state_dict().items()}
    with pytest.raises(
        SJRobustError,
        match=r"w.ckpt has the std \[0.5, 0.4, 0.3\], but \[0.5, 0.4, 0.31\] was given",
    ):
        load_weights(other, tmp_path / "w.ckpt")
    assert all(
        torch.equal(value, before[key]) for key, value in other.backbone.state_dict().items()
    )
    with pytest.warns(UserWarning, match=r"mean \[0.1, 0.2, 0.3\] and std \[0.5, 0.4, 0.3\]"):
        create_ann("cifar_resnet20", num_classes=4, weights=tmp_path / "w.ckpt")


def test_a_mean_without_a_std_is_unknown(trained, tmp_path):
    torch.save(trained.state_dict() | {"normalizer.new_mean": torch.zeros(3)}, tmp_path / "w.pt")
    check_refused(tmp_path / "w.pt", r"1 unknown: normalizer.new_mean [3]")


def test_a_normaliser_that_the_network_has_itself_is_loaded(trained, tmp_path):
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = fresh()
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("std", torch.ones(3))

    torch.save(
        prefixed(trained.state_dict(), "model.")
        | {
            "mean": torch.tensor(MEAN),
            "std": torch.tensor(STD),
        },
        tmp_path / "w.pt",
    )
    model = Normalised()
    assert load_weights(model, tmp_path / "w.pt") is None
    assert model.mean.tolist() == pytest.approx(MEAN)
    assert same(model.model, trained)


def test_a_dict_that_holds_itself_ends(tmp_path):
    content: dict = {}
    content["model"] = content
    torch.save(content, tmp_path / "w.pt")
    check_refused(tmp_path / "w.pt", "found model")


def check_refused(path: Path, *fragments: str) -> None:
    """One line that names the file and the trouble; the model is left as it was."""
    model = fresh()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(SJRobustError) as error:
        load_weights(model, path)
    message = str(error.value)
    assert "\n" not in message
    for fragment in (str(path), *fragments):
        assert fragment in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_missing_unknown_and_misshapen_keys_are_listed(trained, tmp_path):
    state = dict(trained.state_dict())
    del state["layer1.0.conv1.weight"]
    state |= {f"extra.{i:02}": torch.zeros(1) for i in range(12)}
    state["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    torch.save(prefixed(state, "module."), tmp_path / "w.pt")
    check_refused(
        tmp_path / "w.pt",
        "without the prefixes module.",
        "1 missing: layer1.0.conv1.weight [16, 16, 3, 3];",
        "12 unknown: extra.00 [1], ",
        "extra.03 [1], … (12 in all)",
        "1 wrong shape: conv1.weight [16, 1, 3, 3] for [16, 3, 3, 3]",
    )


def test_other_number_of_classes(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    with pytest.raises(SJRobustError, match=r"fc.weight \[4, 64\] for \[10, 64\].*num_classes"):
        create_ann("cifar_resnet20", weights=tmp_path / "w.pt")


def test_two_networks_in_one_file(trained, tmp_path):
    torch.save(
        prefixed(trained.state_dict(), "model.") | prefixed(fresh().state_dict(), "net."),
        tmp_path / "w.pt",
    )
    with pytest.raises(SJRobustError, match="more than one network"):
        load_weights(fresh(), tmp_path / "w.pt")


def test_no_such_file_folder_and_empty_file(tmp_path):
    check_refused(tmp_path / "absent.pt", "no such file")
    check_refused(tmp_path, "is a folder")
    (tmp_path / "empty.pt").touch()
    check_refused(tmp_path / "empty.pt", "is empty")
    (tmp_path / "empty.safetensors").touch()
    check_refused(tmp_path / "empty.safetensors", "is empty")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_web_page_and_lfs_pointer(tmp_path, name):
    (tmp_path / name).write_text("\n<!DOCTYPE html><html><body>Quota exceeded</body></html>")
    check_refused(tmp_path / name, "is a web page")
    (tmp_path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    check_refused(tmp_path / name, "Git LFS")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("part", [0.001, 0.5, 0.99])
def test_truncated(trained, tmp_path, kind, part):
    if kind == "safetensors":
        content = safetensors.torch.save(trained.state_dict())
    else:
        buffer = io.BytesIO()
        torch.save(trained.state_dict(), buffer, _use_new_zipfile_serialization=kind == "zip")
        content = buffer.getvalue()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    path.write_bytes(content[: int(len(content) * part)])
    check_refused(path, "damaged")


@pytest.mark.parametrize(
    "content",
    [
        b"\x00" * 1000,
        b"PK\x03\x04 nothing of the kind",
        b"just text, no weights",
        bytes(range(256)) * 8,
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_garbage(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    check_refused(tmp_path / name, "damaged")


@pytest.mark.parametrize("new_format", [True, False])
def test_python_objects_are_refused_by_name(trained, tmp_path, new_format):
    path = tmp_path / "w.pt"
    torch.save(
        {"state_dict": trained.state_dict(), "extra": Custom()},
        path,
        _use_new_zipfile_serialization=new_format,
    )
    check_refused(path, "could run code", "Custom", "model.state_dict()")


def test_whole_module_and_things_that_are_no_weights(trained, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(trained, path)
    check_refused(path, "could run code", "sj_robust.model.resnet.ResNet", "model.state_dict()")
    torch.save([1, 2, 3], path)
    check_refused(path, "holds a list")
    torch.save({}, path)
    check_refused(path, "an empty dict")
    torch.save({"epoch": 1, "weights": {"a": torch.zeros(1)}}, path)
    check_refused(path, "epoch, weights")


def test_unknown_architecture_names_the_nearest():
    with pytest.raises(SJRobustError, match=r"did you mean.*cifar_resnet20"):
        create_ann("cifar_resnet_20")
    with pytest.raises(SJRobustError, match="list_models"):
        create_ann("%%%%")


def test_arguments_the_architecture_does_not_take():
    with pytest.raises(SJRobustError, match=r"resnet10t cannot be built with.*shortcut"):
        create_ann("resnet10t", shortcut="identity")


def test_timm_networks_and_their_own_number_of_classes():
    assert create_ann("resnet10t", num_classes=3).num_classes == 3
    assert create_ann("tiny_vgg11", num_classes=None).num_classes == 200


def test_local_dir_of_timm(trained, tmp_path):
    timm.models.save_for_hf(trained, str(tmp_path))
    assert same(create_ann(f"local-dir:{tmp_path}", num_classes=None, pretrained=True), trained)
    with pytest.raises(SJRobustError, match=r"local-dir:.*cannot be built"):
        create_ann(f"local-dir:{tmp_path / 'absent'}")


@pytest.mark.shared
@needs_foreign
def test_foreign_resnet20_through_timm_and_through_us():
    through_timm = timm.create_model(
        "cifar_resnet20", shortcut="identity", checkpoint_path=str(FOREIGN)
    )
    assert same(through_timm, create_ann("cifar_resnet20", shortcut="identity", weights=FOREIGN))
    state = read_state_dict(FOREIGN)
    assert torch.equal(through_timm.fc.weight, state["module.linear.weight"])
    with pytest.raises(SJRobustError, match=r"10 missing: layer2\.0\.shortcut.0.weight"):
        create_ann("cifar_resnet20", weights=FOREIGN)


@pytest.mark.shared
@needs_foreign
def test_foreign_resnet20_recognises_real_images():
    """Its authors' normalisation; 91.73 % is known for all 10,000 test images."""
    parquet = pytest.importorskip("pyarrow.parquet")
    image = pytest.importorskip("PIL.Image")
    numpy = pytest.importorskip("numpy")
    files = sorted((SHARED / "data" / "cifar10").rglob("*test*.parquet"))
    if not files:
        pytest.skip(f"no CIFAR-10 test images under {SHARED / 'data' / 'cifar10'}")
    rows = next(parquet.ParquetFile(files[0]).iter_batches(batch_size=200)).to_pylist()
    pixels = numpy.stack(
        [numpy.asarray(image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows]
    )
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    backbone = create_ann("cifar_resnet20", shortcut="identity", weights=FOREIGN)
    model = NormalizedClassifier(backbone, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).eval()
    with torch.inference_mode():
        right = (model(x).argmax(1) == torch.tensor([row["label"] for row in rows])).float().mean()
    assert right >= 0.85
