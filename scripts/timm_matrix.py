"""Which timm architectures convert: each is built with random weights, converted, run, trained for
a step, rebuilt; or refused.

    python scripts/timm_matrix.py                      # all that the results lack, about an hour
    python scripts/timm_matrix.py resnet18 regnety_002 # these, again
    python scripts/timm_matrix.py --table              # only write docs/timm_matrix.md

An architecture that is refused for its activations is tried again with replace_activation="relu".
"failed" is neither: a bug, or more than the time allowed. Results are JSON lines in
build/timm_matrix.jsonl, one for each architecture; the last one counts.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F

from sj_robust.conversion import convert, rebuild
from sj_robust.errors import SJRobustError

RESULTS, TABLE = Path("build/timm_matrix.jsonl"), Path("docs/timm_matrix.md")
SIZES, SECONDS, CLASSES = (64, 96, 160, 224, 256), 120, 10
# with so few images, the highest 0.3 % of a narrow layer would be a value or none, and layers fall
# silent
PERCENTILE = 95.0

# family → architectures, the small ones of each
FAMILIES = {
    "ResNet": (
        "resnet10t resnet14t resnet18 resnet18d resnet26 resnet26t resnet34 resnet50 resnet33ts"
    ),
    "ResNeXt, Wide ResNet": "resnext50_32x4d wide_resnet50_2",
    "SE-ResNet, ECA-ResNet, GC-ResNet": (
        "seresnet18 seresnet50 seresnext26d_32x4d ecaresnet26t ecaresnet50t gcresnet33ts"
        " legacy_seresnet18"
    ),
    "SK-ResNet, ResNeSt": (
        "skresnet18 skresnet34 skresnext50_32x4d resnest14d resnest26d resnest50d"
    ),
    "ResNet-BlurPool, AA": "resnetblur18 resnetaa34d",
    "ResNetV2 (pre-activation)": (
        "resnetv2_18 resnetv2_34 resnetv2_50 resnetv2_50d_evos resnetv2_50x1_bit resnetv2_50d_frn"
        " resnetv2_50d_gn"
    ),
    "ResNet-RS, ResNet GN": "resnetrs50 resnet50_gn",
    "Res2Net, Res2NeXt": "res2net50_14w_8s res2net50_26w_4s res2next50",
    "Bottleneck attention": "botnet26t_256 halonet26t lambda_resnet26t bat_resnext26ts",
    "RegNet X, Y": "regnetx_002 regnetx_004 regnetx_008 regnety_002 regnety_004 regnetz_005",
    "DenseNet": "densenet121 densenetblur121d",
    "VGG": "vgg11 vgg11_bn vgg16_bn repghostnet_050",
    "DLA": "dla34 dla46_c dla46x_c dla60x_c dla60_res2net",
    "HRNet": "hrnet_w18_small hrnet_w18_small_v2",
    "Inception": "inception_v3 inception_v4 inception_resnet_v2",
    "Xception": "xception41 legacy_xception xception41p",
    "MobileNet V1, V2": "mobilenetv1_100 mobilenetv2_035 mobilenetv2_050 mobilenetv2_100",
    "MobileNet V3, V4": (
        "mobilenetv3_small_050 mobilenetv3_large_075 mobilenetv4_conv_small"
        " mobilenetv4_hybrid_medium"
    ),
    "EfficientNet": (
        "efficientnet_b0 efficientnet_lite0 efficientnetv2_rw_t efficientnet_es"
        " tf_efficientnetv2_b0 efficientnet_blur_b0"
    ),
    "MnasNet, FBNet, SPNASNet": (
        "mnasnet_small mnasnet_100 semnasnet_050 fbnetc_100 spnasnet_100 tinynet_e lcnet_050"
        " hardcorenas_a"
    ),
    "MixNet": "mixnet_s",
    "GhostNet": "ghostnet_050 ghostnet_100 ghostnetv2_100",
    "RepVGG, RepVit, MobileOne": (
        "repvgg_a0 repvgg_a1 repvgg_d2se repvit_m0_9 mobileone_s0 mobileone_s1 mobileone_s4"
    ),
    "CSPNet": "cspresnet50 cspdarknet53 darknet17 darknet53 cs3darknet_s cs3darknet_focus_s",
    "SelecSLS": "selecsls42 selecsls42b selecsls60",
    "DPN": "dpn48b dpn68 dpn68b",
    "VoVNet": "ese_vovnet19b_slim_dw ese_vovnet19b_dw ese_vovnet39b vovnet39a",
    "HardCoReNAS, ReXNet": "rexnet_100 rexnetr_100",
    "TResNet": "tresnet_m",
    "NFNet": "nfnet_l0 dm_nfnet_f0 nf_regnet_b0 nf_resnet26 nf_resnet50 eca_nfnet_l0",
    "NASNet, PNASNet": "nasnetalarge pnasnet5large",
    "HGNet": "hgnet_tiny hgnetv2_b0",
    "GERNet, BYOB": "gernet_s gernet_m resnet51q mobileone_s2",
    "CoAtNet, MaxViT": "coatnet_nano_rw_224 maxvit_rmlp_pico_rw_256",
    "ConvNeXt": "convnext_atto convnextv2_atto",
    "ViT, DeiT, Swin": "vit_tiny_patch16_224 deit_tiny_patch16_224 swin_tiny_patch4_window7_224",
    "Mixer, ConvMixer, PoolFormer": "mixer_s32_224 convmixer_768_32 poolformer_s12 resmlp_12_224",
    "LeViT, EdgeNeXt, FastViT": (
        "levit_128s edgenext_xx_small fastvit_t8 starnet_s1 efficientvit_b0 inception_next_atto"
    ),
    "FasterNet": "fasternet_t0 fasternet_t1",
    "SqueezeNet-like, others": "crossvit_tiny_240 visformer_tiny shvit_s1 mambaout_femto",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("architectures", nargs="*")
    parser.add_argument("--table", action="store_true", help="only write the table")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    done = read()
    every = {
        name: family
        for family, names in FAMILIES.items()
        for name in names.split()
        if timm.is_model(name)
    }
    for name in (
        [] if chosen.table else chosen.architectures or [name for name in every if name not in done]
    ):
        done[name] = result = {"architecture": name, "family": every.get(name, ""), **attempt(name)}
        RESULTS.parent.mkdir(exist_ok=True)
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(
            f"{name}: {result['outcome']} {result.get('reason', '')} ({result['seconds']:.0f} s)",
            flush=True,
        )
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table([done[name] for name in every if name in done]), encoding="utf-8")
    print(TABLE)


def read() -> dict[str, dict[str, Any]]:
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    return {entry["architecture"]: entry for entry in map(json.loads, lines)}


def attempt(name: str) -> dict[str, Any]:
    """What became of an architecture: "converted", "converted as ReLU", "refused" or "failed", and
    the reason."""
    started = time.monotonic()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        network, size = build(name)
        found = {
            "outcome": "converted",
            "parameters": sum(p.numel() for p in network.parameters()),
            "size": size,
        }
        try:
            found |= convert_and_train(name, network, size, None)
        except SJRobustError as error:
            if "replace_activation" not in str(error):
                return found | refusal(error) | {"seconds": time.monotonic() - started}
            found |= {"outcome": "converted as ReLU", "reason": kinds(str(error))}
            try:
                found |= convert_and_train(name, network, size, "relu")
            except SJRobustError as again:
                found |= refusal(again)
    except Exception as error:
        found = {
            "outcome": "failed",
            "reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
        }
    finally:
        signal.alarm(0)
    return found | {"seconds": time.monotonic() - started}


def refusal(error: SJRobustError) -> dict[str, Any]:
    """That a layer stays silent says something on random weights and few images, nothing on the
    architecture."""
    return {
        "outcome": "failed" if "cannot balance" in str(error) else "refused",
        "reason": str(error),
    }


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def build(name: str) -> tuple[torch.nn.Module, int]:
    """The network, and the least of SIZES that it takes."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=CLASSES).eval()
    # a branch that starts at zero, as no trained one is, passes nothing on
    for parameter_name, parameter in network.named_parameters():
        if not parameter_name.endswith("bias") and not parameter.any():
            torch.nn.init.ones_(parameter)
    for size in SIZES:
        try:
            with torch.no_grad():
                network(torch.zeros(2, 3, size, size))
            return network, size
        except (RuntimeError, AssertionError, ValueError):
            if size == SIZES[-1]:
                raise
    raise AssertionError("SIZES is empty")


def convert_and_train(
    name: str, network: torch.nn.Module, size: int, replace: Any
) -> dict[str, Any]:
    """Convert, one step of training, and rebuild from the settings; raise where something is not as
    it should be."""
    images = torch.rand(2, 2, 3, size, size, generator=torch.Generator().manual_seed(1))
    settings = {
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "percentile": PERCENTILE,
        "calibration_timesteps": 4,
    }
    snn = convert(network, images, 2, replace_activation=replace, **settings)
    with torch.no_grad():
        logits = snn(images[0])
        again = rebuild(timm.create_model(name, num_classes=CLASSES), snn.settings).eval()
        again.load_state_dict(snn.state_dict())
        if not torch.equal(again(images[0]), logits):
            raise ValueError("rebuilt from its settings, the network computes other logits")
    del again
    loss = F.cross_entropy(snn.train()(images[0]), torch.tensor([0, 1]))
    loss.backward()
    gradients = [node.v_threshold.grad for node in snn.nodes().values()]
    if not torch.isfinite(loss) or any(
        grad is None or not torch.isfinite(grad).all() for grad in gradients
    ):
        raise ValueError("the loss or a threshold's gradient is missing or not finite")
    moved = sum(bool(grad.abs().sum() > 0) for grad in gradients if grad is not None)
    plan = snn.settings.get("plan") or {}
    return {
        "nodes": len(gradients),
        "gradients": moved,
        "rewritten": len(plan.get("rewrites", {})) + len(plan.get("turns", {})),
    }


def kinds(message: str) -> str:
    """The kinds of activation that a refusal names."""
    named = re.findall(r"\((\w+)\)|(\w+\(\)) in", message.split(":")[0])
    return ", ".join(sorted({one or other for one, other in named}))


def table(results: list[dict[str, Any]]) -> str:
    counts = {
        kind: sum(each["outcome"] == kind for each in results)
        for kind in ("converted", "converted as ReLU", "refused", "failed")
    }
    families = len({each["family"] for each in results})
    lines = [
        "# Which timm architectures convert",
        "",
        (
            f"Made by `scripts/timm_matrix.py` with timm {timm.__version__} and torch"
            f" {torch.__version__}: {len(results)} architectures of"
        ),
        (
            f"{families} families with random weights, the smallest image of"
            f" {', '.join(map(str, SIZES))} pixels that each takes, T = 2,"
        ),
        (
            "2 × 2 images to calibrate. Converted means: converted, run, rebuilt from its settings"
            " with the same logits, and trained for"
        ),
        "a step with a finite gradient at every threshold. It says nothing about accuracy.",
        "",
        *(f"- {kind}: {count}" for kind, count in counts.items()),
        "",
        (
            '"Converted as ReLU": refused as it is, converted with `replace_activation="relu"`; the'
            " column names the activations."
        ),
        (
            "Moved: nodes whose threshold's gradient was not zero in that step. Rewritten: modules"
            " whose forward pass was rewritten because an"
        ),
        "activation in it is a function call or is called again.",
        "",
        "| family | architecture | pixels | outcome | nodes | moved | rewritten | reason |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for each in results:
        cells = [
            each.get(key, "")
            for key in (
                "family",
                "architecture",
                "size",
                "outcome",
                "nodes",
                "gradients",
                "rewritten",
                "reason",
            )
        ]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
