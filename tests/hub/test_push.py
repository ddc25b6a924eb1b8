"""push against a Hub of our own, with the real client, timm and `hf`: what is published can be
found, pulled, loaded and trusted."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_server.fixtures import ANN, SNN, child, upload
from huggingface_hub import HfApi, ModelCard

from sj_robust import SJRobustError, list_models, load, pull, push
from sj_robust.checkpoint.config import ORIGIN, read_config
from sj_robust.hub import list_hub, push_all

NAME = "alice/my-snn"
WEIGHTS = "model.safetensors"
OWN = {str(path.relative_to(SNN)) for path in SNN.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SNN, tmp_path / "work" / "snn"))


def refuses(folder: Any, repo: str, *fragments: str, **how: Any) -> None:
    with pytest.raises(SJRobustError) as error:
        push(folder, repo, **how)
    message = str(error.value)
    assert "\n" not in message
    assert "hf_alice" not in message
    for fragment in fragments:
        assert fragment in message, message


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def test_push_list_pull_load_is_the_same_model(hub: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "secret.txt").write_text("mine")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    result = push(folder, NAME)
    repository = hub.store.repositories[NAME]
    assert set(repository.at("main").files) == OWN | {".gitattributes"}
    assert len(repository.commits) == 2  # the Hub's own first one, and one of ours
    assert (result.commit, result.created) == (repository.branches["main"], True)
    sha = hashlib.sha256((SNN / WEIGHTS).read_bytes()).hexdigest()
    assert repository.tags == {f"weights-{sha[:12]}": result.commit} == {result.tag: result.commit}
    assert [model.name for model in list_hub(dataset="cifar10", kind="snn", author="alice")] == [
        NAME
    ]
    assert torch.equal(logits(load(f"{NAME}@{result.tag}")), logits(load(SNN)))
    assert (pull(NAME, tmp_path / "to") / "evaluation.json").read_bytes() == (
        SNN / "evaluation.json"
    ).read_bytes()
    assert (
        HfApi(endpoint=hub.endpoint)
        .verify_repo_checksums(NAME, local_dir=tmp_path / "to")
        .mismatches
        == []
    )


def test_the_card_tells_how_to_get_it_from_the_hub_and_keeps_what_was_written(
    hub: Any, folder: Path
) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nA remark of mine.\n")
    push(folder, NAME, base_model="alice/my-ann")
    sent = hub.store.repositories[NAME].at("main").files["README.md"].content.decode()
    assert f'sj_robust.load("{NAME}")' in sent
    assert "A remark of mine." in sent
    before, after = ModelCard(card.read_text()).data.to_dict(), ModelCard(sent).data.to_dict()
    assert {**before, "base_model": "alice/my-ann", "base_model_relation": "finetune"} == after
    assert (
        json.loads(hub.store.repositories[NAME].at("main").files["config.json"].content)[
            "base_model"
        ]
        == "alice/my-ann"
    )
    # the folder itself stays as it was
    assert "base_model" not in ModelCard(card.read_text()).data.to_dict()


def test_a_missing_card_is_written(hub: Any, folder: Path) -> None:
    (folder / "README.md").unlink()
    push(folder, NAME)
    assert (
        b"sha256 of model.safetensors"
        in hub.store.repositories[NAME].at("main").files["README.md"].content
    )


def test_dry_run_sends_nothing(hub: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = push(folder, NAME, dry_run=True)
    assert {change.path: change.state for change in result.changes} == dict.fromkeys(OWN, "new")
    assert (result.dry_run, result.created, result.commit) == (True, True, None)
    assert not hub.asked("POST|PUT", ".")
    assert hub.store.repositories == {}
    assert not (folder / ORIGIN).exists()


def test_pushing_again_makes_no_commit_and_a_change_makes_one(hub: Any, folder: Path) -> None:
    first = push(folder, NAME)
    again = push(folder, NAME)
    assert (again.commit, again.changed, again.created) == (first.commit, False, False)
    (folder / "evaluation_source.json").unlink()
    (folder / "recipe.yaml").write_text("name: other\n")
    second = push(folder, NAME)
    assert {change.path: change.state for change in second.changes if change.state != "same"} == {
        "recipe.yaml": "changed",
        "evaluation_source.json": "deleted",
    }
    repository = hub.store.repositories[NAME]
    assert (second.commit, len(repository.commits)) == (repository.branches["main"], 3)
    # the weights and the figures went up once
    assert hub.asked("PUT", "/lfs/upload") == 1 + len(list((folder / "figures").iterdir()))
    assert repository.tags == {first.tag: first.commit}


def test_what_is_newer_on_the_hub_is_not_replaced_unless_told(
    hub: Any, folder: Path, tmp_path: Path
) -> None:
    push(folder, NAME)
    other = pull(NAME, tmp_path / "other")
    (other / "recipe.yaml").write_text("name: other\n")
    newer = push(other, NAME).commit
    (folder / "recipe.yaml").write_text("name: mine\n")
    refuses(folder, NAME, f"is at commit {str(newer)[:8]}", "--force")
    refuses(SNN.name, NAME, "this folder was not pulled from there")
    assert hub.store.repositories[NAME].branches["main"] == newer
    assert push(folder, NAME, force=True).commit == hub.store.repositories[NAME].branches["main"]
    refuses(other, NAME, "is at commit")


def test_a_commit_in_between_is_not_lost(
    hub: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(folder, NAME)
    (folder / "recipe.yaml").write_text("name: mine\n")
    create_commit = HfApi.create_commit

    def late(*args: Any, **how: Any) -> Any:
        hub.store.repositories[NAME].put({"recipe.yaml": b"name: theirs\n"})
        return create_commit(*args, **how)

    monkeypatch.setattr(HfApi, "create_commit", late)
    refuses(folder, NAME, "changed by somebody else")
    assert hub.store.repositories[NAME].at("main").files["recipe.yaml"].content == b"name: theirs\n"


def test_branches_private_and_organisations(hub: Any, folder: Path) -> None:
    assert push(folder, "lab/secret", private=True).created
    assert hub.store.repositories["lab/secret"].private
    push(folder, NAME)
    refuses(folder, NAME, "public already", private=True)
    main = hub.store.repositories[NAME].branches["main"]
    (folder / "recipe.yaml").write_text("name: trial\n")
    result = push(folder, NAME, revision="trial")
    assert hub.store.repositories[NAME].branches == {"main": main, "trial": result.commit}
    assert (pull(f"{NAME}@trial") / "recipe.yaml").read_text() == "name: trial\n"


def test_who_may_not(hub: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(hub, ANN, "bob/theirs")
    refuses(folder, "bob/new", "may not push bob/new")
    refuses(folder, "bob/theirs", "may not push bob/theirs", force=True)
    refuses(folder, NAME, "refused the login", token="hf_expired")
    monkeypatch.delenv("HF_TOKEN")
    refuses(folder, NAME, "hf auth login")
    assert set(hub.store.repositories) == {"bob/theirs"}


@pytest.mark.parametrize(
    "name",
    ["my-snn", "alice/a/b", "alice/..", "alice/a--b", "alice/x@main", "", "alice/" + "x" * 97],
)
def test_names_that_are_none(hub: Any, folder: Path, name: str) -> None:
    refuses(folder, name, "not a repository's name")
    assert hub.requests == []


def test_what_is_no_sound_checkpoint_stays_here(hub: Any, folder: Path, tmp_path: Path) -> None:
    refuses(tmp_path / "nothing", NAME, "is not a folder")
    refuses("no-such-model", NAME, "neither a checkpoint folder nor a zoo model")
    card, text = folder / "README.md", (folder / "README.md").read_text()
    card.write_text(re.sub(r"`[0-9a-f]{64}`", f"`{'0' * 64}`", text))
    refuses(folder, NAME, "card of other weights")
    card.write_text("no metadata")
    refuses(folder, NAME, "README.md has no metadata")
    card.write_text("---\nlicense: mit\n---\n")
    refuses(folder, NAME, "lacks the tag")
    card.write_text("---\n{\n---\n")
    refuses(folder, NAME, "not valid YAML")
    card.write_text(text)
    shutil.copyfile(ANN / "evaluation.json", folder / "evaluation.json")
    refuses(folder, NAME, "evaluation is of another model")
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    refuses(folder, NAME, "altered")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("kind", "path", "method"),
    [
        ("status", "/commit/", "POST"),
        ("drop", "/commit/", "POST"),
        ("drop", "/preupload/", "POST"),
        ("status", "/tag/", "POST"),
        ("status", "/lfs/upload", "PUT"),
        ("html", "/commit/", "POST"),
    ],
)
def test_an_interrupted_push_is_taken_up_again(
    hub: Any, folder: Path, kind: str, path: str, method: str
) -> None:
    fault = hub.fault(kind, path, method=method, times=1, status=500)
    with suppress(SJRobustError):  # some faults the client itself gets over
        push(folder, NAME)
    assert fault.met == 1
    result = push(folder, NAME)
    repository = hub.store.repositories[NAME]
    assert (result.commit, len(repository.commits), repository.tags) == (
        repository.branches["main"],
        2,
        {result.tag: result.commit},
    )
    assert hub.asked("PUT", "/lfs/upload") <= 2 + len(list((folder / "figures").iterdir()))
    sent = repository.at("main").files
    assert all(sent[path].content == (folder / path).read_bytes() for path in OWN - {"README.md"})


def test_the_whole_zoo(hub: Any) -> None:
    results = list(push_all("lab"))
    names = [result.repo for result in results]
    # ANNs first
    assert [("-snn-" in name) for name in names] == sorted("-snn-" in name for name in names)
    assert {f"lab/{ANN.name}", f"lab/{SNN.name}"} <= set(names) == set(hub.store.repositories)
    card = yaml.safe_load(
        hub.store.repositories[f"lab/{SNN.name}"]
        .at("main")
        .files["README.md"]
        .content.decode()
        .split("---\n")[1]
    )
    assert (card["base_model"], card["base_model_relation"]) == (f"lab/{ANN.name}", "finetune")
    assert not list(SNN.parent.rglob(ORIGIN))  # the zoo belongs to the package
    assert [result.changed for result in push_all("lab")] == [False] * len(names)
    listed = {model.name: model for model in list_hub()}
    assert set(listed) == set(names)
    assert listed[f"lab/{ANN.name}"].kind == "ann"
    measured = {entry.name: entry.strongest for entry in list_models()}[SNN.name]
    accuracies = listed[f"lab/{SNN.name}"].accuracies
    assert [accuracy.eps for accuracy in accuracies] == pytest.approx(
        [0, *(point.eps for point in measured.robust)]
    )
    recorded = [point.value for point in (measured.clean, *measured.robust)]
    assert [accuracy.value for accuracy in accuracies] == pytest.approx(recorded, abs=1e-6)
    base = HfApi(endpoint=hub.endpoint).list_models(filter=f"base_model:lab/{ANN.name}")
    weights = read_config(ANN).weights.sha256
    from_it = {
        entry.name
        for entry in list_models()
        if read_config(entry.folder).source.get("weights_sha256") == weights
    }
    assert SNN.name in from_it
    assert {model.id for model in base} == {f"lab/{name}" for name in from_it}


@pytest.mark.slow
def test_timm_and_hf_read_what_was_pushed(hub: Any, tmp_path: Path) -> None:
    push(ANN.name, "alice/ann")
    code = """
import timm, torch, sj_robust, sj_robust.model
model = timm.create_model("hf-hub:alice/ann", pretrained=True).eval()
ours = sj_robust.load("alice/ann")
x = torch.rand(2, 3, 32, 32)
ours_raw = ours.backbone.to(memory_format=torch.contiguous_format)
with torch.no_grad():
    assert torch.equal(model(x), ours_raw(x))
print(model.pretrained_cfg["mean"])
"""
    command, environment = child(code)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    hf = Path(command[0]).with_name("hf")
    command = [str(hf), "download", "alice/ann", "--local-dir", str(tmp_path / "hf-cli")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.equal(logits(load(tmp_path / "hf-cli")), logits(load(ANN)))


def test_listing_pages_and_leaves_strangers_out(hub: Any) -> None:
    hub.page_size = 2

    def publish(name: str, tags: str, dataset: str, index: str, **how: bool) -> None:
        text = f"---\ntags: [{tags}]\ndatasets: [{dataset}]\nmodel-index: {index}\n---\n"
        hub.create(name, **how).put({"README.md": text.encode()})

    for number in range(5):
        publish(f"bob/m{number}", "sj-robust", "ILSVRC/imagenet-1k", "[{results: 7}]")
    publish("bob/other", "resnet", "x", "[]")
    strange = "[{results: [{metrics: [{type: accuracy, value: .nan}]}]}]"
    publish("bob/odd", "sj-robust, spiking-neural-network", '"[red]\\e[31m"', strange)
    publish("bob/hidden", "sj-robust", "x", "[]", private=True)
    assert [model.name for model in list_hub()] == [
        *(f"bob/m{number}" for number in range(5)),
        "bob/odd",
    ]
    assert len(list_hub(dataset="imagenet", kind="ann")) == 5
    (odd,) = list_hub(kind="snn")
    assert (odd.dataset, odd.accuracies) == (None, [])
    assert list_hub(token="hf_bob")[0].name == "bob/hidden"
    hub.fault("html", "/api/models", times=None)
    with pytest.raises(SJRobustError, match="not the Hub's"):
        list_hub()


def test_the_server_is_started_anew_for_each_test(hub: Any) -> None:
    assert hub.store.repositories == {}
    assert os.environ["HF_ENDPOINT"] == hub.endpoint
