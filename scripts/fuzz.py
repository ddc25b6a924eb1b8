"""Files as a stranger or a bad disk leaves them, by the thousand: each ends in one line or in what
the unharmed file gives.

    python scripts/fuzz.py --configs 1000 --weights 500 --evaluations 300 --recipes 300 --seed 0

A case is a checkpoint of the zoo with one file changed: a value, a key or the bytes. Weights get
the hashes of what they are now. It fails by an exception other than SJRobustError, a message of
several lines, more than LIMIT seconds, or a silent change: where a file is accepted, the network
has to give the same logits bit for bit, and the figures of its evaluation have to be the same. What
only describes (names, notes, versions, timings) has no such meaning and may differ; `FIGURES` says
what counts. A changed recipe is
another recipe: it has to come back from its own YAML as it is, and to run no code without consent.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml

from sj_robust import load
from sj_robust.checkpoint import zoo
from sj_robust.checkpoint.build import probe
from sj_robust.checkpoint.config import Config, read_config
from sj_robust.checkpoint.results import read_reports, results
from sj_robust.compare import compare
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.facts import state_sha256
from sj_robust.evaluation.report import Report
from sj_robust.recipes.run import check_consent
from sj_robust.recipes.spec import make_recipe, read_recipe
from sj_robust.text import LONGEST

LIMIT = 20  # seconds for one case
ROOM = 3 << 30  # bytes of address space beyond what the unharmed checkpoint took
MODELS = ("resnet20-snn-t4.cifar10_linf_pgd", "resnet20.cifar10_linf_pgd")
FIGURES = (
    "kind",
    "architecture",
    "model_args",
    "num_classes",
    "classes",
    "settings",
    "thresholds",
    "weights",
)
HOSTILE: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    255,
    65536,
    65537,
    10**9,
    2**63,
    10**18,
    10**40,
    -(10**18),
    0.0,
    0.5,
    1e-9,
    1e300,
    float("inf"),
    float("nan"),
    "",
    "x",
    "1",
    "soft",
    "hard",
    "cifar_resnet32",
    "vit_huge_patch14_224",
    "os:system",
    "../../etc/passwd",
    "hf-hub:a/b",
    "\x1b]0;owned\x07",
    "a\nsj-robust: verified",
    "\u202etxt",
    "[red]x[/red]",
    "<script>alert(1)</script>",
    "\ud800",
    "0" * 64,
    "A" * 5000,
    [],
    [[]],
    [1, 2, 3],
    [None],
    {},
    {"a": 1},
    {"depth": 65536},
    {"pretrained": True},
    {"checkpoint_path": "/etc/passwd"},
    [0] * 2000,
    {str(number): number for number in range(500)},
    json.loads("[" * 40 + "]" * 40),
]


class Late(BaseException):
    """The time of a case is over. No Exception: what catches those must not catch this."""


@contextmanager
def watched(seconds: int = LIMIT) -> Iterator[None]:
    """Raise Late in the block after so many seconds."""

    def ring(number: int, frame: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# What is changed


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values in JSON, of long lists to a few."""
    items = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else []
    )
    for key, item in items if len(items) < 50 else items[:5] + items[-5:]:
        yield (*path, key)
        yield from places(item, (*path, key))


def nearby(value: Any, dice: random.Random) -> Any:
    """A value as somebody would change it by hand: of the same type, and plausible."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + dice.choice((-1, 1, 2, value or 1))
    if isinstance(value, float):
        return dice.choice((value * 1.01, value + 0.05, 1 - value, value * 10, -value))
    if isinstance(value, str):
        return dice.choice(
            (
                value + "x",
                value[::-1],
                value.upper(),
                value[: len(value) // 2],
                value.replace("0", "1"),
            )
        )
    if isinstance(value, list) and value:
        return dice.choice(
            (value[::-1], value[1:], value + value[:1], [nearby(value[0], dice), *value[1:]])
        )
    if isinstance(value, dict) and value:
        names = list(value)
        return dict(zip(names, dice.sample(list(value.values()), len(names)), strict=True))
    return dice.choice(HOSTILE)


def change_value(content: Any, dice: random.Random) -> str:
    """Change one place of JSON; returns what was done."""
    top = dice.choice(list(content))  # so that the many facts on training do not get all of it
    path = dice.choice([(top,), *((top, *path) for path in places(content[top]))])
    for key in path[:-1]:
        content = content[key]
    last, how = (
        path[-1],
        dice.choice(("hostile", "nearby", "nearby", "nearby", "remove", "rename", "add")),
    )
    if how == "remove":
        del content[last]
    elif how in ("rename", "add") and isinstance(content, dict):
        key = dice.choice(
            [
                f"{last}_",
                "x\x1b[31m\nok",
                "timesteps",
                "plan",
                "drop_rate",
                "global_pool",
                "__class__",
                "folded",
                "nodes",
            ]
        )
        content[key] = (
            content.pop(last)
            if how == "rename"
            else dice.choice((True, "max", {}, 0.5, content[last]))
        )
    else:
        content[last] = dice.choice(HOSTILE) if how == "hostile" else nearby(content[last], dice)
    return f"{how} {'.'.join(map(str, path))}"


def change_bytes(content: bytes, dice: random.Random) -> tuple[bytes, str]:
    """Damage as a disk or a transfer does it."""
    at, how = (
        dice.randrange(len(content)),
        dice.choice(
            ("flip", "flip", "cut", "insert", "repeat", "zeros", "bom", "latin-1", "empty")
        ),
    )
    some = bytes(dice.randrange(256) for _ in range(dice.randrange(1, 9)))
    damaged = {
        "flip": content[:at] + bytes([content[at] ^ (1 << dice.randrange(8))]) + content[at + 1 :],
        "cut": content[:at],
        "insert": content[:at] + some + content[at:],
        "repeat": content[:at] + content[at // 2 :],
        "zeros": content[:at] + bytes(len(content) - at),
        "bom": b"\xef\xbb\xbf" + content,
        "latin-1": content[:at] + b"\xe9" + content[at:],
        "empty": b"",
    }[how]
    return damaged, f"{how} at byte {at}"


def damaged_json(content: bytes, dice: random.Random) -> tuple[bytes, str]:
    if dice.random() < 0.2:
        return change_bytes(content, dice)
    changed = json.loads(content)
    done = "; ".join(change_value(changed, dice) for _ in range(dice.choice((1, 1, 1, 2))))
    text = json.dumps(changed)
    if dice.random() < 0.03:
        text, done = text.replace("{", '{"format_version": 2, ', 1), f"{done}; a key twice"
    return text.encode("utf-8", "surrogatepass"), done


def damaged_weights(content: bytes, dice: random.Random) -> tuple[bytes, str]:
    """Bytes of the data, or a header that says something else of them."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    how = dice.choice(("data", "data", "header", "swap", "bytes", "size"))
    if how == "data":
        at = dice.randrange(len(data))
        data = data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]
        done = f"flip byte {at} of the data"
    elif how == "header":
        done = change_value(header, dice)
    elif how == "swap":
        one, other = dice.sample([name for name in header if name != "__metadata__"], 2)
        header[one], header[other] = header[other], header[one]
        done = f"swap {one} and {other}"
    elif how == "size":
        lie = dice.choice((0, 1, size - 1, size + 1, 10**8, 2**32, 2**63 - 1, 2**64 - 1))
        return lie.to_bytes(8, "little") + content[8:], f"header of {lie} bytes"
    else:
        return change_bytes(content, dice)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data, done


def damaged_recipe(content: bytes, dice: random.Random) -> tuple[bytes, str]:
    how = dice.choice(("bytes", "value", "value", "value", "yaml"))
    if how == "bytes":
        return change_bytes(content, dice)
    if how == "yaml":
        trick = dice.choice(
            (
                "a: &a [x,x,x,x,x,x,x,x,x]\n"
                + "".join(
                    f"a{n + 1}: &a{n + 1} [" + ",".join([f"*a{n or ''}"] * 9) + "]\n"
                    for n in range(9)
                ),
                "z: " + "[" * 500 + "]" * 500,
                "a: &a [*a]",
                "!!python/object/apply:os.system [id]",
                "? [1]\n: 2",
                "x: 2024-13-45",
                "\t",
                "x: !!int abc",
                "x: " + "9" * 5000,
                "- a\n- b",
                "null",
                "x: 1\nx: 2",
                "--- a\n--- b",
                "a: *nothing",
                "<<: {name: x}",
                "\x00",
                "%YAML 9",
                "finetune: {preset: [1]}",
                "finetune: {1: 2}",
                (
                    "ann: {architecture: cifar_resnet20, args: {checkpoint_path: x.pth}, scratch:"
                    " true}"
                ),
                'ann: {model: "os:system", args: {command: id}}',
                "evaluate: {eps: [.nan]}",
                "convert: {leak: .inf}",
            )
        )
        return (content + b"\n" + trick.encode() if dice.random() < 0.7 else trick.encode()), trick[
            :40
        ]
    changed = yaml.safe_load(content)
    done = change_value(changed, dice)
    return yaml.safe_dump(changed).encode("utf-8", "surrogatepass"), done


# What has to hold


class Unharmed:
    """A checkpoint of the zoo in a folder of its own, and what it gives."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.folder = Path(
            shutil.copytree(
                zoo.find(name).folder,
                scratch / name,
                ignore=shutil.ignore_patterns("figures", "README.md"),
            )
        )
        self.config, self.reports = read_config(self.folder), read_reports(self.folder)
        self.logits = self.run()

    def run(self) -> torch.Tensor:
        with torch.no_grad():
            return load(self.folder)(probe([3, 32, 32]))  # type: ignore[no-any-return]

    def check_network(self) -> str | None:
        """What changed silently about the network, None where nothing did."""
        if (found := self.run()).shape != self.logits.shape:
            return "logits of another shape"
        config = read_config(self.folder)
        # another layout in memory takes other kernels, which round otherwise
        if not torch.equal(found, self.logits):
            return (
                None
                if config.memory_format != self.config.memory_format
                and torch.allclose(found, self.logits, atol=1e-3)
                else "logits"
            )
        return next((field for field in FIGURES if not same(field, config, self.config)), None)

    def check_figures(self) -> str | None:
        reports = read_reports(self.folder)
        zoo.check_evaluations(reports, read_config(self.folder), str(self.folder))
        compare([self.folder])
        if len(reports) != len(self.reports):
            return "an evaluation is missing"
        for one, other in zip(reports, self.reports, strict=True):
            if figures(one) != figures(other):
                return "figures"
        return None


def same(field: str, one: Config, other: Config) -> bool:
    first, second = getattr(one, field), getattr(other, field)
    if field == "thresholds" and first is not None and second is not None:
        return list(first) == list(second) and all(
            abs(first[name] - second[name]) <= 2e-4 * abs(second[name]) for name in first
        )
    if field == "weights":  # the hashes of the file are those of what it is now
        return bool(
            first.model_dump(exclude={"sha256", "bytes"})
            == second.model_dump(exclude={"sha256", "bytes"})
        )
    if field == "settings":  # null is not set
        first, second = (
            {key: value for key, value in one.items() if value is not None}
            for one in (first, second)
        )
    return bool(first == second) or (field == "thresholds" and first is None)


def figures(report: Report) -> Any:
    """What a report says was measured, without what it says of where and when, and in which
    words."""
    found = results(report).model_dump(
        exclude={"dataset", "split", "named", "attacks", "norm", "views"}
    )
    robust = [
        (
            one.eps,
            one.joint,
            one.alone,
            [(each.attempted, each.broken, each.alone) for each in one.per_view.values()],
        )
        for one in report.robust
    ]
    activity = report.activity and (
        report.activity.spikes_per_image,
        [each.neurons for each in report.activity.layers.values()],
    )
    text = json.dumps([found, robust, activity], default=lambda value: value.model_dump())
    return json.loads(text, parse_float=lambda number: f"{float(number):.4g}")


def put_weights(unharmed: Unharmed, content: bytes, dice: random.Random) -> None:
    """The weights, with their hashes in config.json; in half of the cases that of their state too,
    where they have one."""
    config = json.loads(unharmed.config.model_dump_json())
    config["weights"] |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    if dice.random() < 0.5:
        try:
            tensors = safetensors.torch.load(content)
            state = (
                tensors
                if unharmed.config.kind == "snn"
                else {f"backbone.{key}": tensor for key, tensor in tensors.items()}
            )
            config["weights"] |= {"state_sha256": state_sha256(state), "tensors": len(tensors)}
        except Exception:  # no tensors, no hash
            pass
    if config["pretrained_cfg"] is None:
        del config["pretrained_cfg"]
    (unharmed.folder / "config.json").write_text(json.dumps(config))
    (unharmed.folder / "model.safetensors").write_bytes(content)


def check_recipe(path: Path) -> str | None:
    recipe = read_recipe(path)
    if make_recipe(yaml.safe_load(recipe.to_yaml())) != recipe:
        return "it comes back from YAML as another"
    if recipe.ann.model:
        try:
            check_consent(recipe.ann.model, None)
        except SJRobustError:
            return None
        return "its code would run"
    return None


KINDS: dict[str, tuple[str, Callable[[bytes, random.Random], tuple[bytes, str]]]] = {
    "configs": ("config.json", damaged_json),
    "weights": ("model.safetensors", damaged_weights),
    "evaluations": ("evaluation.json", damaged_json),
    "recipes": ("recipe.yaml", damaged_recipe),
}


def one_case(kind: str, unharmed: Unharmed, dice: random.Random) -> tuple[str, str]:
    """(outcome, what was done): "refused", "accepted", or what is wrong."""
    name, damage = KINDS[kind]
    kept = {
        path: path.read_bytes()
        for path in (unharmed.folder / file for file in {name, "config.json"})
    }
    content, done = damage(kept[unharmed.folder / name], dice)
    try:
        if kind == "weights":
            put_weights(unharmed, content, dice)
        else:
            (unharmed.folder / name).write_bytes(content)
        with watched(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "recipes":
                silent = check_recipe(unharmed.folder / name)
            else:
                silent = (
                    unharmed.check_network()
                    if kind != "evaluations"
                    else unharmed.check_figures() or unharmed.check_network()
                )
        return ("accepted" if silent is None else f"SILENT: {silent}"), done
    except SJRobustError as error:
        text = str(error)
        return (
            "refused"
            if text and text.isprintable() and len(text) <= LONGEST
            else f"LINES: {text!r}"
        ), f"{done}: {text}"
    except Late:
        return f"HANG: more than {LIMIT} s", done
    except Exception as error:
        return f"EXCEPTION: {type(error).__name__}: {str(error)[:200]}", done
    finally:
        for path, whole in kept.items():
            path.write_bytes(whole)


def fuzz(
    counts: dict[str, int], seed: int, say: Callable[[str], None] = lambda line: None
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Outcomes by kind, and a line for each case that failed."""
    outcomes, wrong = {kind: Counter[str]() for kind in counts}, []
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = [Unharmed(name, Path(scratch)) for name in MODELS]
        for kind, count in counts.items():
            for number in range(count):
                dice = random.Random(f"{seed} {kind} {number}")
                outcome, done = one_case(kind, checkpoints[number % 3 // 2], dice)
                outcomes[kind][outcome.partition(":")[0]] += 1
                say(f"{kind} {number}: {outcome}: {done}")
                if outcome not in ("refused", "accepted"):
                    wrong.append(f"{kind} {number}: {outcome}: {done}")
    return outcomes, wrong


def limit_memory() -> None:
    """No case may take more than ROOM beyond what is there now."""
    used = (
        int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        * resource.getpagesize()
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind, count in (
        ("configs", 1000),
        ("weights", 500),
        ("evaluations", 300),
        ("recipes", 300),
    ):
        parser.add_argument(f"--{kind}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="a line for each case, on stderr")
    options = parser.parse_args()
    limit_memory()
    counts = {kind: getattr(options, kind) for kind in KINDS}

    def say(line: str) -> None:
        if options.verbose:
            print(line[:400], file=sys.stderr)

    outcomes, wrong = fuzz(counts, options.seed, say)
    for line in wrong:
        print(line)
    for kind, found in outcomes.items():
        print(
            f"{kind}: {counts[kind]}:"
            f" {', '.join(f'{number} {outcome}' for outcome, number in sorted(found.items()))}"
        )
    print(f"seed {options.seed}: {len(wrong)} wrong of {sum(counts.values())}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
