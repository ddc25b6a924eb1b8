"""Corruptions of real images: what they do to them, and that an image's corruption is its own."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sj_robust.data import ImageDataset
from sj_robust.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from sj_robust.errors import SJRobustError

# Mean squared errors, in levels, of the first 150 images of the sample as the authors'
# make_cifar_c.py corrupts them, rounded where it truncates; OpenCV 5.0, scikit-image 0.26, SciPy
# 1.17; glass_blur, fog, impulse_noise and elastic_transform over 20 draws. It needs ImageMagick for
# motion_blur and snow, which are not here.
AUTHORS = {
    "gaussian_noise": (100.9, 225.2, 393.8, 494.0, 606.8),
    "shot_noise": (60.5, 119.6, 292.8, 386.1, 569.8),
    "impulse_noise": (203.5, 408.5, 611.4, 1022.8, 1423.4),
    "defocus_blur": (4.0, 25.5, 58.9, 99.2, 204.0),
    "glass_blur": (503.4, 497.4, 415.5, 1045.1, 898.9),
    "zoom_blur": (214.5, 295.0, 410.8, 541.5, 676.7),
    "fog": (175.4, 682.5, 1150.6, 1564.8, 2294.5),
    "brightness": (125.2, 476.4, 1034.4, 1784.5, 3692.0),
    "contrast": (175.2, 700.5, 1008.9, 1373.1, 2024.5),
    "elastic_transform": (1277.9, 1088.2, 878.1, 746.8, 524.6),
    "pixelate": (38.0, 71.4, 88.0, 142.5, 211.8),
    "jpeg_compression": (52.0, 78.6, 89.0, 101.0, 117.7),
}
RANDOM = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "fog",
    "elastic_transform",
)
Made = dict[tuple[str, int], Tensor]


@pytest.fixture(scope="module")
def images(sample: ImageDataset) -> Tensor:
    return sample.first(150).floats()


@pytest.fixture(scope="module")
def made(images: Tensor) -> Made:
    return {
        (name, severity): corrupt(images, name, severity)
        for name in CORRUPTIONS
        for severity in SEVERITIES
    }


def errors(made: Made, images: Tensor, name: str) -> list[float]:
    """Mean squared error in levels at each severity."""
    return [
        255**2 * float((made[name, severity] - images).square().mean()) for severity in SEVERITIES
    ]


def test_the_names_are_the_paper_s_without_frost() -> None:
    assert CORRUPTIONS == (
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "defocus_blur",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
        "snow",
        "fog",
        "brightness",
        "contrast",
        "elastic_transform",
        "pixelate",
        "jpeg_compression",
    )


def test_results_are_images_of_eight_bits(made: Made, images: Tensor) -> None:
    for (name, severity), x in made.items():
        assert x.shape == images.shape, name
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        assert torch.equal(x, (x * 255).round().clamp(0, 255) / 255), (name, severity)
        assert not torch.equal(x, images)


def test_a_corruption_belongs_to_its_image(made: Made, images: Tensor) -> None:
    order = torch.tensor([41, 3, 149, 0, 77])
    for (name, severity), x in made.items():
        if severity in (2, 5):
            assert torch.equal(corrupt(images[order], name, severity, ids=order), x[order]), (
                name,
                severity,
            )
            assert torch.equal(
                corrupt(images[9:10], name, severity, ids=torch.tensor([9])), x[9:10]
            ), (name, severity)


def test_seed_image_and_severity_change_what_is_random_and_nothing_else(images: Tensor) -> None:
    state, few = torch.get_rng_state(), images[:4]
    before = few.clone()
    for name in CORRUPTIONS:
        first = corrupt(few, name, 3)
        assert torch.equal(first, corrupt(few, name, 3, seed=1)) == (name not in RANDOM), name
        assert torch.equal(first, corrupt(few, name, 3, ids=torch.arange(4) + 50)) == (
            name not in RANDOM
        ), name
    # The same standard deviation would not be enough: the noise of severity 2 is no multiple of
    # that of severity 1.
    grey = torch.full((1, 3, 32, 32), 0.5)
    noise = torch.cat(
        [corrupt(grey, "gaussian_noise", severity) - 0.5 for severity in (1, 2)]
    ).flatten(1)
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 0.06
    assert torch.equal(few, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in CORRUPTIONS
        if name not in ("glass_blur", "motion_blur", "elastic_transform")
    ],
)
def test_each_severity_changes_the_images_more(made: Made, images: Tensor, name: str) -> None:
    found = errors(made, images, name)
    assert all(less < more for less, more in pairwise(found)), found


def test_severity_where_the_authors_constants_trade_one_thing_for_another(
    made: Made, images: Tensor
) -> None:
    """Their mean squared errors do not rise from each severity to the next (see AUTHORS); what does
    rise is this."""
    # More blur takes back some of what moved pixels changed; moving them twice changes more at the
    # same blur.
    glass = errors(made, images, "glass_blur")
    assert glass[3] > 1.5 * glass[1]
    assert glass[4] > 1.5 * glass[2]
    # Severities 3 and 4 differ only in where a Gaussian of 2 pixels is cut off, at 12 or at 16.
    motion = errors(made, images, "motion_blur")
    assert motion[0] < 0.8 * motion[1] < 0.8 * motion[2]
    assert motion[3] == pytest.approx(motion[2], rel=0.08)
    assert motion[4] > 1.2 * motion[3]
    # The whole image moves less and bends more. What bending does shows where nothing else can: it
    # roughens a smooth ramp.
    ramp = torch.linspace(0.25, 0.75, 32).expand(16, 3, 32, 32).contiguous()
    bent = []
    for severity in SEVERITIES:
        inner = corrupt(ramp, "elastic_transform", severity)[:, 0, 8:24, 8:24]
        bent.append(
            float((inner[:, :, 2:] - 2 * inner[:, :, 1:-1] + inner[:, :, :-2]).square().mean())
        )
    assert bent[1] < bent[2] < bent[3] < bent[4]
    assert bent[4] > 3 * bent[0]


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_code_changes_the_images_as_much(made: Made, images: Tensor, name: str) -> None:
    # The noise of 150 images averages out; one draw of clouds, shifts and moved pixels for each
    # does not.
    tolerance = {"fog": 0.12, "elastic_transform": 0.15, "glass_blur": 0.06}.get(
        name, 0.03 if name in RANDOM else 0.01
    )
    assert errors(made, images, name) == pytest.approx(AUTHORS[name], rel=tolerance, abs=0.1)


def test_noise_has_the_variance_of_its_constants() -> None:
    grey = torch.full((64, 3, 32, 32), 128 / 255)
    rounding = 1 / 255**2 / 12
    for severity, (std, photons, share) in enumerate(
        zip(
            (0.04, 0.06, 0.08, 0.09, 0.10),
            (500, 250, 100, 75, 50),
            (0.01, 0.02, 0.03, 0.05, 0.07),
            strict=True,
        ),
        1,
    ):
        found = corrupt(grey, "gaussian_noise", severity)
        assert float(found.mean()) == pytest.approx(128 / 255, abs=2e-3)
        assert float(found.var()) == pytest.approx(std**2 + rounding, rel=0.02)
        counts = torch.arange(2 * photons, dtype=torch.float64)
        chance = torch.distributions.Poisson(128 / 255 * photons).log_prob(counts).exp()
        # not evenly rounded: at 250 photons a count is 1.02 levels
        levels = (counts * 255 / photons).round().clamp(max=255) / 255
        shot, mean = corrupt(grey, "shot_noise", severity), (chance * levels).sum()
        assert float(shot.mean()) == pytest.approx(float(mean), abs=1e-3)
        assert float(shot.var()) == pytest.approx(
            float((chance * (levels - mean) ** 2).sum()), rel=0.02
        )
        impulse = corrupt(grey, "impulse_noise", severity)
        assert float((impulse == 0).float().mean()) == pytest.approx(share / 2, rel=0.06)
        assert float((impulse == 1).float().mean()) == pytest.approx(share / 2, rel=0.06)
        assert set(impulse.unique().tolist()) == {0.0, float(grey[0, 0, 0, 0]), 1.0}


def test_contrast_and_brightness_in_closed_form(made: Made, images: Tensor) -> None:
    mean = images.double().mean((2, 3), keepdim=True)
    for severity, kept in enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1):
        assert (
            made["contrast", severity] - (mean + kept * (images - mean))
        ).abs().max() <= 0.5001 / 255
    for severity, shift in enumerate((0.05, 0.1, 0.15, 0.2, 0.3), 1):
        found = made["brightness", severity]
        value = images.amax(1)
        assert (found.amax(1) - (value + shift).clamp(max=1)).abs().max() <= 0.5001 / 255
        # Hue and saturation stay: the channels keep their proportions, but for rounding.
        assert (
            found * value[:, None] - images * found.amax(1, keepdim=True)
        ).abs().max() <= 1 / 255


def test_a_white_point_shows_the_kernel() -> None:
    point = torch.zeros(1, 3, 32, 32)
    point[..., 16, 16] = 1
    weight = {
        severity: 1 / sum(math.exp(-0.5 * (i / sigma) ** 2) for i in range(2 * radius + 1))
        for severity, (radius, sigma) in enumerate(((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), 1)
    }
    for severity, expected in weight.items():
        for number in range(8):  # of the image: each has its direction
            blurred = corrupt(point, "motion_blur", severity, ids=torch.tensor([number]))[0, 0]
            assert float(blurred[16, 16]) == pytest.approx(expected, abs=0.5001 / 255)
            assert float(blurred.sum()) == pytest.approx(1, abs=0.02)
            rows, columns = blurred.nonzero().sub(16).unbind(1)
            assert (columns <= 0).all()  # on one side of the point
            assert (rows.abs() <= -columns + 1).all()  # within 45° of level
    # a cross of five pixels, its edge softened a little
    disk = corrupt(point, "defocus_blur", 4)[0, 0]
    assert disk[16, 16] == pytest.approx(0.2, abs=0.01)
    assert torch.equal(disk, disk.T)
    assert torch.equal(disk, disk.flip(0).roll(1, 0))


@pytest.mark.parametrize(
    "name",
    [
        "defocus_blur",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
        "contrast",
        "elastic_transform",
        "pixelate",
        "jpeg_compression",
    ],
)
def test_a_flat_image_stays_as_it_is(name: str) -> None:
    flat = torch.full((2, 3, 32, 32), 96 / 255)
    for severity in SEVERITIES:
        assert torch.equal(corrupt(flat, name, severity), flat)


def test_snow_is_white_and_pixels_are_blocks(images: Tensor) -> None:
    black = torch.zeros(64, 3, 32, 32)
    for severity in SEVERITIES:
        snowed = corrupt(black, "snow", severity)
        assert torch.equal(snowed[:, 0], snowed[:, 1])
        assert torch.equal(snowed[:, 0], snowed[:, 2])
    means = [float(corrupt(black, "snow", severity).mean()) for severity in SEVERITIES]
    assert means == sorted(means)
    coarse = corrupt(images, "pixelate", 5)  # 20 pixels over 32
    rows = {tuple(row.flatten().tolist()) for row in coarse[0].unbind(1)}
    assert len(rows) <= 20


def test_every_size_and_grey(images: Tensor) -> None:
    for shape in ((1, 8, 8), (3, 48, 40), (1, 33, 64)):
        x = torch.nn.functional.interpolate(
            images[:2, : shape[0]], shape[1:], mode="bilinear"
        ).clamp(0, 1)
        for name in CORRUPTIONS:
            for severity in SEVERITIES:
                found = corrupt(x, name, severity)
                assert found.shape == x.shape
                assert ((found >= 0) & (found <= 1)).all(), name
    for name in CORRUPTIONS:
        assert corrupt(images[:0], name, 1).shape == (0, 3, 32, 32)
        for edge in (torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)):
            assert corrupt(edge, name, 5).isfinite().all()


@pytest.mark.parametrize(
    ("name", "severity", "settings", "message"),
    [
        ("blur", 1, {}, "unknown corruption 'blur': expected one of gaussian_noise, "),
        ("frost", 1, {}, "frost is not offered"),
        ("fog", 0, {}, "severity is 0"),
        ("fog", 6, {}, "severity is 6"),
        ("fog", 1.5, {}, "severity is 1.5"),
        ("fog", 1, {"seed": -1}, "seed -1"),
        ("fog", 1, {"ids": torch.tensor([0])}, "1 ids for 2 images"),
        ("fog", 1, {"ids": torch.tensor([0, -3])}, "ids from -3"),
    ],
)
def test_wrong_settings_are_named(
    images: Tensor, name: str, severity: int, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(SJRobustError, match=message) as raised:
        corrupt(images[:2], name, severity, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(3, 32, 32),
        torch.zeros(1, 2, 32, 32),
        torch.zeros(1, 3, 4, 32),
        torch.full((1, 3, 32, 32), 1.01),
        torch.full((1, 3, 32, 32), math.nan),
    ],
)
def test_other_images_are_refused(wrong: Tensor) -> None:
    with pytest.raises(SJRobustError, match="images are"):
        corrupt(wrong, "contrast", 1)


@pytest.mark.gpu
def test_the_device_does_not_matter(images: Tensor) -> None:
    for name in CORRUPTIONS:
        found = corrupt(images[:8].cuda(), name, 3)
        assert found.is_cuda
        assert torch.equal(found.cpu(), corrupt(images[:8], name, 3))
