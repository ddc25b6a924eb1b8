"""Named protocols, other models' gradients, l2, restarts, a limit on time, and several
processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import sj_robust
from sj_robust.attack import APGD, PGD
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import PROTOCOLS, Protocol, Report
from sj_robust.evaluation import evaluate as evaluate_and_check
from sj_robust.evaluation.figures import draw_figures
from sj_robust.model import NormalizedClassifier, SpikingClassifier

# test_checks has the checks; here they would only take time
evaluate = partial(evaluate_and_check, check_images=0)

EPS = (8 / 255,)


def test_protocols_have_names_and_versions(snn: SpikingClassifier, dataset: ImageDataset) -> None:
    assert set(PROTOCOLS) == {"quick", "paper", "strong", "autoattack"}
    assert len(PROTOCOLS["paper"].stages[0].views) == 19
    report = evaluate(snn, dataset, protocol="quick@1", eps=EPS, max_images=12)
    assert report.settings.protocol == "quick@1"
    assert report.settings.attacks == ["fgsm", "pgd10"]
    assert report.settings.views == ["PCW:1", "PCW:2", "ASSG", "activation"]
    assert "protocol  quick@1" in report.summary()
    for name, message in (
        (
            "fast",
            "unknown protocol 'fast': expected one of quick@1, paper@1, strong@2, autoattack@1",
        ),
        ("quick@7", "unknown protocol 'quick@7'"),
        ("quick@", "unknown protocol 'quick@'"),
        ("strong@1", "unknown protocol 'strong@1'"),
    ):
        with pytest.raises(SJRobustError, match=message):
            evaluate(snn, dataset, protocol=name)
    with pytest.raises(SJRobustError, match="fixes its views"):
        evaluate(snn, dataset, protocol="quick", views=["STE"])


def test_autoattack_runs_its_four_attacks_through_one_view(
    snn: SpikingClassifier, ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    report = evaluate(
        snn, dataset, protocol="autoattack", views=["PCW:1"], eps=(20 / 255,), max_images=6
    )
    assert report.settings.attacks == ["apgd100-ce", "apgd100-t", "fab-t", "square5000"]
    assert report.settings.views == ["PCW:1", "black-box"]
    plain = evaluate(ann, dataset, protocol="autoattack", eps=(20 / 255,), max_images=6)
    assert plain.settings.views == ["exact", "black-box"]


def test_transfer_takes_gradients_from_another_model(
    snn: SpikingClassifier, ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    from sj_robust.evaluation import Protocol, Stage

    protocol = Protocol("transfer-only", 1, (Stage("apgd20-ce", ("transfer",)),), "")
    report = evaluate(
        snn, dataset, protocol=protocol, eps=EPS, max_images=40, transfer={"source": ann}
    )
    x, y = dataset.floats(range(40)), dataset.labels[:40]
    assert report.settings.views == ["transfer:source"]
    from sj_robust.evaluation.ensemble import noise_seed

    attack = APGD(eps=EPS[0], steps=20)
    x_adv = attack(ann, x, y, seed=noise_seed(0, attack, "transfer:source"))
    with torch.no_grad():
        expected = (snn(x).argmax(1) == y) & (snn(x_adv).argmax(1) == y)
    assert report.joint[0].accuracy.correct == int(expected.sum())
    # no model, nothing to run
    assert not evaluate(snn, dataset, protocol=protocol, eps=EPS, max_images=4).robust
    mixed = evaluate(
        snn,
        dataset,
        attacks=["fgsm", "square5"],
        views=["STE"],
        eps=EPS,
        max_images=8,
        transfer={"source": ann},
    )
    assert [list(result.per_view) for result in mixed.robust] == [
        ["STE", "transfer:source"],
        ["black-box"],
    ]
    with pytest.raises(SJRobustError, match="quick@1 has no transfer attack"):
        evaluate(snn, dataset, protocol="quick", transfer={"source": ann})


def test_restarts_and_l2(ann: NormalizedClassifier, dataset: ImageDataset) -> None:
    once, often = (
        evaluate(ann, dataset, attacks=["pgd2"], eps=(0.3,), norm="l2", restarts=count)
        for count in (1, 6)
    )
    assert often.robust[0].settings["restarts"] == 6
    assert often.robust[0].settings["norm"] == once.settings.norm == "l2"
    assert often.joint[0].accuracy.correct < once.joint[0].accuracy.correct < once.clean.correct
    attacks = ["fgsm", "pgd5", "apgd10-ce", "apgd5-t", "fab-t", "square50", "noise3"]
    several = evaluate(ann, dataset, attacks=attacks, eps=(0.3, 1.5), norm="l2", max_images=6)
    assert several.joint[1].accuracy.correct <= several.joint[0].accuracy.correct


def test_strong_runs_under_l2(
    snn: SpikingClassifier, ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    shorter = {
        "rotating50": "rotating5",
        "square1000": "square8",
        "rotating30+square250": "rotating3+square3",
        "square2500": "square9",
    }
    stages = [
        replace(stage, attack=shorter.get(stage.attack, stage.attack))  # type: ignore[arg-type]
        for stage in PROTOCOLS["strong"].stages
    ]
    report = evaluate(
        snn,
        dataset,
        protocol=Protocol("short", 1, tuple(stages), ""),
        norm="l2",
        eps=(0.05, 0.01),
        max_images=8,
        transfer={"source": ann},
    )
    assert [list(result.per_view) for result in report.robust[1:5]] == [
        ["rotation"],
        ["black-box"],
    ] * 2
    assert report.joint[0].accuracy.correct > 0
    assert [result.settings.get("start") for result in report.robust[:5]] == [
        None,
        "best",
        "best",
        "anew",
        "best",
    ]
    rounds = report.robust[3].settings
    assert (rounds["name"], rounds["restarts"]) == ("rotating3+square3", 6)
    assert "transfer:source" in rounds["sources"]


def test_fgsm_takes_the_gradient_at_an_image_once_for_all_eps(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    settings = dict(attacks=["fgsm"], views=["PCW:1", "STE"], survivors_only=False, max_images=20)
    report = evaluate(snn, dataset, eps=(0, 8 / 255, 48 / 255), batch_size=7, **settings)
    right, (at_zero, small, large) = report.clean.correct, report.robust
    assert at_zero.joint.correct == right  # eps 0 shows no sign of the gradient
    assert (small.backward_images, large.backward_images) == (2 * right, 0)
    for result in (small, large):  # the same outcome as each eps by itself
        by_itself = evaluate(snn, dataset, eps=[result.eps], **settings).robust[0]
        assert {view: found.broken for view, found in result.per_view.items()} == {
            view: found.broken for view, found in by_itself.per_view.items()
        }
    assert small.joint.correct > large.joint.correct


def test_cost_is_told_attack_by_attack(ann: NormalizedClassifier, dataset: ImageDataset) -> None:
    report = evaluate(ann, dataset, attacks=["fgsm", "pgd5"], eps=EPS, max_images=20)
    fgsm, pgd = report.robust
    right, left = report.clean.correct, fgsm.joint.correct
    assert (fgsm.forward_images, fgsm.backward_images) == (2 * right, right)
    assert (pgd.forward_images, pgd.backward_images) == (7 * left, 5 * left)
    assert report.forward_images == 20 + fgsm.forward_images + pgd.forward_images
    assert fgsm.seconds is not None and 0 < fgsm.seconds < report.seconds


def strip(thing: object) -> object:
    """Without times."""
    if isinstance(thing, dict):
        return {name: strip(value) for name, value in thing.items() if name != "seconds"}
    return [strip(value) for value in thing] if isinstance(thing, list) else thing


def test_a_time_limit_ends_it_with_what_is_known_and_a_journal_goes_on(
    snn: SpikingClassifier, dataset: ImageDataset, tmp_path: Path
) -> None:
    class Slow(PGD):
        def run(self, *args: object) -> torch.Tensor:  # type: ignore[override]
            import time

            time.sleep(0.25)
            return super().run(*args)  # type: ignore[arg-type]

    settings = dict(
        attacks=["fgsm", lambda eps: Slow(eps=eps, steps=3)],
        views=["PCW:1", "STE"],
        eps=EPS,
        max_images=40,
        batch_size=8,
    )
    whole = evaluate(snn, dataset, **settings)
    cut = evaluate(
        snn, dataset, journal=tmp_path / "notes", time_limit=0.6, check_images=16, **settings
    )
    assert whole.stopped is None
    assert cut.stopped is not None and cut.stopped.startswith("after 1 s (time_limit): ")
    assert any("was stopped" in limit for limit in cut.limits)
    assert cut.clean == whole.clean
    assert whole.joint[0].accuracy.correct < cut.joint[0].accuracy.correct <= cut.clean.correct
    assert cut.robust[1].per_view["STE"].attempted < whole.robust[1].per_view["STE"].attempted
    assert {check.status for check in cut.checks} <= {"not run", "pass", "warn", "fail", "too few"}
    assert "not run" in {check.status for check in cut.checks}
    assert cut.verdict is not None and "cut short" in cut.verdict
    assert f"stopped {cut.stopped}" in cut.summary()
    ended = evaluate(snn, dataset, journal=tmp_path / "notes", **settings)
    assert strip(ended.model_dump()) == strip(whole.model_dump())


def test_processes_share_an_evaluation_and_make_the_same_report(tmp_path: Path) -> None:
    script = tmp_path / "shared.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        import sj_robust
        from sj_robust.evaluation import Protocol, Stage, evaluate

        stages = [Stage(attack, ("PCW:1",)) for attack in ("fgsm", "pgd3")]
        protocol = Protocol("three", 1, (*stages, Stage("square20", (), start="best")), "")
        model = sj_robust.load("resnet20.cifar10_linf_pgd")
        report = evaluate(model, sj_robust.load_dataset("sample", "test"), eps=(4 / 255, 8 / 255),
                          protocol=protocol, max_images=8, batch_size=4, check_images=0,
                          journal=sys.argv[1])
        import os
        open(f"{sys.argv[1]}.report{os.environ.get('RANK', '')}", "w").write(report.to_json())
    """)
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(sj_robust.__file__).parent.parent),
    }
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            script,
            tmp_path / "two",
        ],
        check=True,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    subprocess.run(
        [sys.executable, script, tmp_path / "one"],
        check=True,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    texts = [(tmp_path / name).read_text() for name in ("one.report", "two.report0", "two.report1")]
    one, first, second = (strip(Report.from_json(text).model_dump()) for text in texts)
    assert first == second == one
    # One process goes on with what two have noted.
    units = [json.loads((tmp_path / f"two.rank{rank}").read_text())["units"] for rank in (0, 1)]
    seen = [
        {tuple(key): unit["seen"] for key, unit in found}["4/255", "fgsm", "exact"]
        for found in units
    ]
    assert not set(seen[0]) & set(seen[1])


def test_figures_are_drawn(snn: SpikingClassifier, dataset: ImageDataset, tmp_path: Path) -> None:
    report = evaluate(snn, dataset, protocol="quick", eps=(4 / 255, 8 / 255), max_images=20)
    files = draw_figures(report, tmp_path / "figures")
    drawn = ("accuracy", "attacks", "views", "spikes")
    assert [file.name for file in files] == [
        f"{name}.{kind}" for name in drawn for kind in ("png", "pdf")
    ]
    for file in files:
        assert file.read_bytes().startswith(b"\x89PNG" if file.suffix == ".png" else b"%PDF")
    plain = evaluate(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), dataset, attacks=[], max_images=4
    )
    assert draw_figures(plain, tmp_path / "none") == []


def test_protocols_are_set_side_by_side_on_common_images(
    snn: SpikingClassifier, dataset: ImageDataset, tmp_path: Path
) -> None:
    quick = evaluate(snn, dataset, protocol="quick", eps=(4 / 255, 8 / 255), max_images=30)
    weak = evaluate(snn, dataset, attacks=["fgsm"], views=["STE"], eps=EPS, max_images=20)
    for name, report in (("quick", quick), ("weak", weak)):
        (tmp_path / f"{name}.json").write_text(report.to_json())
    script = Path(sj_robust.__file__).parent.parent / "scripts" / "compare_protocols.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "quick.json", tmp_path / "weak.json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()
    assert table[0] == "first 20 images"
    same = evaluate(snn, dataset, protocol="quick", eps=(4 / 255, 8 / 255), max_images=20)
    assert table[4].startswith(
        f"| quick@1 | {same.joint[0].accuracy} | {same.joint[1].accuracy} | "
    )
    assert table[5].startswith(f"| weak | not run | {weak.joint[0].accuracy} | ")
