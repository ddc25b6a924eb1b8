"""A staged checkpoint as the Hub shows it: the card names the repository, its metadata the base
model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sj_robust.card.readme import WEIGHTS_ROW, join, parts, split
from sj_robust.checkpoint.config import (
    CARD,
    CONFIG,
    MAX_CONFIG_BYTES,
    Config,
    parse_json,
    read_bounded,
    read_config,
)
from sj_robust.errors import SJRobustError
from sj_robust.files import write_atomic
from sj_robust.hub.remote import HubName


def set_base_model(folder: Path, base_model: str) -> None:
    """Record in config.json which repository the network came from. Raises SJRobustError where that
    is no repository's name."""
    path = folder / CONFIG
    content = parse_json(path, MAX_CONFIG_BYTES)
    content["base_model"] = base_model
    write_atomic(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
    try:
        read_config(folder)
    except SJRobustError:
        raise SJRobustError(
            f"base_model {base_model!r} is not a repository's name: expected owner/name"
        ) from None


def prepare_card(folder: Path, name: HubName) -> None:
    """See to it that README.md is of these weights, and says how to get them from the Hub. A card
    that is there keeps its text.

    Raises SJRobustError where it is of other weights, or lacks the metadata by which the model is
    found.
    """
    config, path = read_config(folder), folder / CARD
    if not path.exists():
        from sj_robust.card.write import write_card  # imports torch

        write_card(folder)
    text = read_bounded(path, MAX_CONFIG_BYTES)
    metadata, body = split(text)
    # what somebody wrote around it may speak of other models
    before, generated, after = parts(body) or ("", body, "")
    found = WEIGHTS_ROW.search(generated)
    if found and found[1] != config.weights.sha256:
        raise SJRobustError(
            f"{CARD} is the card of other weights: write it again with `sj-robust card FOLDER`"
        )
    if "sj-robust" not in (metadata.get("tags") or []):
        raise SJRobustError(
            f"{CARD} lacks the tag sj-robust, by which models are found: write it again with"
            " `sj-robust card FOLDER`"
        )
    metadata = _with_base_model(metadata, config)
    generated = re.sub(r'sj_robust\.load\("[^"\n]*"', f'sj_robust.load("{name.repo}"', generated)
    generated = re.sub(
        r'create_model\("local-dir:[^"\n]*"', f'create_model("hf-hub:{name.repo}"', generated
    )
    write_atomic(path, join(metadata, before + generated + after))


def _with_base_model(metadata: dict[str, Any], config: Config) -> dict[str, Any]:
    if config.base_model is None or metadata.get("base_model") == config.base_model:
        return metadata
    relation = "finetune" if config.training else "quantized"  # as the card itself says it
    return {
        "base_model": config.base_model,
        "base_model_relation": relation,
        **{
            key: value
            for key, value in metadata.items()
            if key not in ("base_model", "base_model_relation")
        },
    }
