"""A staged checkpoint as the Hub shows it: the card names the repository, its metadata the base model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from sj_robust.errors import SJRobustError
from sj_robust.files import parse_yaml, write_atomic
from sj_robust.hub.config import CARD, CONFIG, MAX_CONFIG_BYTES, Config, parse_json, read_bounded, read_config
from sj_robust.hub.remote import HubName

_WEIGHTS_ROW = re.compile(r"sha256 of model\.safetensors \| `([0-9a-f]{64})`")


def set_base_model(folder: Path, base_model: str) -> None:
    """Record in config.json which repository the network came from. Raises SJRobustError where that is no repository's name."""
    path = folder / CONFIG
    content = parse_json(path, MAX_CONFIG_BYTES)
    content["base_model"] = base_model
    write_atomic(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
    try:
        read_config(folder)
    except SJRobustError:
        raise SJRobustError(f"base_model {base_model!r} is not a repository's name: expected owner/name") from None


def prepare_card(folder: Path, name: HubName) -> None:
    """See to it that README.md is of these weights, and says how to get them from the Hub. A card that is there keeps its text.

    Raises SJRobustError where it is of other weights, or lacks the metadata by which the model is found.
    """
    config, path = read_config(folder), folder / CARD
    if not path.exists():
        from sj_robust.hub.card import write_card  # imports torch

        write_card(folder)
    text = read_bounded(path, MAX_CONFIG_BYTES)
    found = _WEIGHTS_ROW.search(text)
    if found and found[1] != config.weights.sha256:
        raise SJRobustError(f"{CARD} is the card of other weights: write it again with `sj-robust card FOLDER`")
    metadata, body = _split(text)
    if "sj-robust" not in (metadata.get("tags") or []):
        raise SJRobustError(f"{CARD} lacks the tag sj-robust, by which models are found: write it again with `sj-robust card FOLDER`")
    metadata = _with_base_model(metadata, config)
    body = re.sub(r'sj_robust\.load\("[^"\n]*"', f'sj_robust.load("{name.repo}"', body)
    body = re.sub(r'create_model\("local-dir:[^"\n]*"', f'create_model("hf-hub:{name.repo}"', body)
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000)
    write_atomic(path, f"---\n{front}---\n{body}")


def _split(text: str) -> tuple[dict[str, Any], str]:
    """Metadata and body of a card."""
    match = re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)
    advice = "write it again with `sj-robust card FOLDER`"
    metadata = parse_yaml(match[1], f"the metadata of {CARD}", advice) if match else None
    if match is None or not isinstance(metadata, dict):
        raise SJRobustError(f"{CARD} has no metadata between two lines of ---: write it again with `sj-robust card FOLDER`")
    return metadata, text[match.end():]


def _with_base_model(metadata: dict[str, Any], config: Config) -> dict[str, Any]:
    if config.base_model is None or metadata.get("base_model") == config.base_model:
        return metadata
    relation = "finetune" if config.training else "quantized"  # as the card itself says it
    return {"base_model": config.base_model, "base_model_relation": relation,
            **{key: value for key, value in metadata.items() if key not in ("base_model", "base_model_relation")}}
