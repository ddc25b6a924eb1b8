"""The front matter of a card, in the Hub's words: tags, data sets, results by eps and protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from sj_robust.checkpoint import zoo
from sj_robust.checkpoint.config import Config
from sj_robust.checkpoint.results import Point, Results, lowest
from sj_robust.evaluation.report import eps_name
from sj_robust.known import KNOWN

TAGS = ["sj-robust", "adversarial-robustness"]
SPIKING_TAGS = ["spiking-neural-network", "snn", "spikingjelly"]
OUR_TAGS = frozenset({*TAGS, *SPIKING_TAGS, "timm", "ann2snn"})


def metadata_of(
    config: Config, found: Sequence[Results], name: str, *, converted: bool
) -> ModelCardData:
    """Of a card: what the Hub lists, filters and ranks a model by. `converted`: from an ANN."""
    training = config.training or {}
    trained_on = KNOWN.get(str(training.get("dataset")))
    kind_tags = (
        ["timm"]
        if config.kind == "ann"
        else [*SPIKING_TAGS, "ann2snn"]
        if converted
        else SPIKING_TAGS
    )
    relation = None if config.base_model is None else "finetune" if config.training else "quantized"
    return ModelCardData(
        license=config.license,
        library_name="sj-robust",
        pipeline_tag="image-classification",
        tags=[*TAGS, *kind_tags],
        datasets=[trained_on.hub] if trained_on else None,
        metrics=["accuracy"] if found else None,
        base_model=config.base_model,
        base_model_relation=relation,
        model_name=name,
        eval_results=_eval_results(found) if found else None,
        sj_robust=_index_facts(config),
    )


def _index_facts(config: Config) -> dict[str, Any]:
    """What a list of models shows and neither tags nor results say; the Hub hands it out with the
    list."""
    facts = {
        "timesteps": config.timesteps,
        "parameters": config.weights.parameters,
        "threat": zoo.threat_of(config),
    }
    return {key: value for key, value in facts.items() if value is not None}


def _eval_results(found: Sequence[Results]) -> list[EvalResult]:
    """One entry per eps and protocol. The Hub tells entries apart by dataset, config and split
    alone, so both have to be part of the config; the lowest accuracy at each eps, which comes
    first, goes without the protocol's name."""
    first, chosen = found[0], lowest(found)
    entries = [_eval_result(first, first.clean, "clean", "Clean accuracy", {})]
    if first.microjoules is not None:
        beside = {} if first.ann_microjoules is None else {"ann": round(first.ann_microjoules, 6)}
        entries.append(
            replace(
                entries[0],
                metric_type="energy",
                metric_name="Energy per image (estimate, µJ)",
                metric_value=round(first.microjoules, 6),
                metric_args=beside or None,
            )
        )
    others = [
        (point, one)
        for one in found
        for point in one.robust
        if not any(point == at and one is of for at, of in chosen)
    ]
    for (point, one), suffix in [
        *((at, "") for at in chosen),
        *((at, f"-{at[1].place}") for at in others),
    ]:
        eps = eps_name(point.eps)
        attack = {
            **({"protocol": one.named} if one.named else {}),
            **({"grid": one.grid} if one.grid else {}),
            "attacks": one.attacks,
            "views": one.views,
        }
        entries.append(
            _eval_result(
                one,
                point,
                f"{one.norm}-{eps.replace('/', '-')}{suffix}",
                f"Robust accuracy ({one.protocol}, eps {eps})",
                {"eps": point.eps, **attack},
            )
        )
    return entries


def _eval_result(
    found: Results, point: Point, config: str, metric: str, arguments: dict[str, Any]
) -> EvalResult:
    repository, pretty = hub_dataset(found.dataset)
    return EvalResult(
        task_type="image-classification",
        task_name="Image classification",
        dataset_type=repository,
        dataset_name=pretty,
        dataset_config=config,
        dataset_split=found.split,
        metric_type="accuracy",
        metric_name=metric,
        metric_value=round(point.value, 6),
        metric_args={
            **arguments,
            "images": found.n,
            "wilson95": [round(point.low, 6), round(point.high, 6)],
        },
    )


def hub_dataset(name: str) -> tuple[str, str]:
    """Repository on the Hub and readable name; for data we have no repository of, the name it was
    given."""
    known = KNOWN.get(name)
    return (known.hub, known.title) if known else (name, name)
