"""The corruptions and their constants. Each takes levels 0 … 255, float64 [N, C, H, W], and gives
levels not yet rounded or clipped."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sj_robust.data.corruptions.draws import Draws
from sj_robust.data.corruptions.filters import (
    bilinear,
    correlate,
    gaussian,
    motion,
    pick,
    plasma,
    zoomed,
)


def gaussian_noise(x: Tensor, std: float, draws: Draws) -> Tensor:
    """Normal noise, its standard deviation in units of the image range."""
    return x + 255 * std * draws.normal(*x.shape[1:])


def shot_noise(x: Tensor, photons: float, draws: Draws) -> Tensor:
    """Poisson noise of a sensor that counts `photons` at white."""
    return draws.poisson(x / 255 * photons) * (255 / photons)


def impulse_noise(x: Tensor, share: float, draws: Draws) -> Tensor:
    """A share of the values of all channels becomes 0 or 255, either with probability ½."""
    hit, white = draws.uniform(2, *x.shape[1:]).unbind(1)
    return torch.where(hit < share, (white < 0.5) * 255.0, x)


def defocus_blur(x: Tensor, c: tuple[float, float], draws: Draws) -> Tensor:
    """A disk of a radius in pixels, its edge softened by a 3×3 Gaussian."""
    radius, sigma = c
    reach = int(radius) + 1  # one pixel more for the softened edge
    grid = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disk = ((grid[:, None] ** 2 + grid**2) <= radius**2).double()
    side = torch.exp(-0.5 / torch.tensor(sigma, dtype=torch.float64) ** 2)
    for axis in (0, 1):
        disk = disk + side * (disk.roll(1, axis) + disk.roll(-1, axis))
    return correlate(x, disk / disk.sum())


def glass_blur(x: Tensor, c: tuple[float, int], draws: Draws) -> Tensor:
    """Blur; every pixel, `rounds` times, takes the place of itself or a neighbour above and left;
    blur again.

    The authors swap pixels one after the other, from the last to the first, but through views of
    NumPy, where the second half of a swap does nothing. With neighbours above and left alone, which
    are not yet reached then, all pixels can move at once.
    """
    sigma, rounds = c
    height, width = x.shape[2:]
    x = gaussian(x, sigma).round()
    for _ in range(rounds):
        back = draws.uniform(2, height, width) < 0.5
        back[:, :, :2] = False  # the authors' loop stops before the first two rows and columns
        back[:, :, :, :2] = False
        up, left = back.long().unbind(1)
        x = pick(x, torch.arange(height)[:, None] - up, torch.arange(width) - left)
    return gaussian(x, sigma)


def motion_blur(x: Tensor, c: tuple[int, float], draws: Draws) -> Tensor:
    """Radius and standard deviation in pixels; the direction is within 45° of level."""
    return motion(x, *c, draws.uniform(low=-45, high=45))


def zoom_blur(x: Tensor, stop: float, draws: Draws) -> Tensor:
    """The mean of the image and of its enlargements by 1.00, 1.01, … below `stop`."""
    # its rounding decides how many there are, and the size of one of them
    factors = np.arange(1, stop, 0.01).tolist()
    total = x
    for factor in factors:
        total = total + zoomed(x, factor)
    return total / (len(factors) + 1)


def snow(
    x: Tensor, c: tuple[float, float, float, float, int, float, float], draws: Draws
) -> Tensor:
    """Flakes are what exceeds `threshold` in enlarged normal noise, blurred as they fall; the image
    behind them is whitened."""
    mean, std, zoom, threshold, radius, sigma, kept = c
    flakes = zoomed(mean + std * draws.normal(1, *x.shape[2:]), zoom)
    flakes = torch.where(flakes < threshold, 0.0, flakes.clamp(0, 1) * 255).floor()
    flakes = motion(flakes, radius, sigma, draws.uniform(low=-135, high=-45)).round()
    grey = x if x.shape[1] == 1 else 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    behind = kept * x + (1 - kept) * torch.maximum(x, 1.5 * grey + 127.5)
    return behind + flakes + flakes.flip(2, 3)


def fog(x: Tensor, c: tuple[float, float], draws: Draws) -> Tensor:
    """Clouds are added, and the image scaled back to its brightest value."""
    thickness, decay = c
    height, width = x.shape[2:]
    size = 1 << (max(height, width) - 1).bit_length()
    clouds = plasma(draws.uniform(size, size, low=-1, high=1), decay)[:, None, :height, :width]
    brightest = x.amax((1, 2, 3), keepdim=True)
    # A black image stays black (0 / thickness).
    return (x + 255 * thickness * clouds) * (brightest / (brightest + 255 * thickness))


def brightness(x: Tensor, shift: float, draws: Draws) -> Tensor:
    """The value of HSV is raised, hue and saturation stay: all channels grow by one factor, up to
    where the largest is 255."""
    value = x.amax(1, keepdim=True)
    raised = (value + 255 * shift).clamp(max=255)
    return torch.where(value > 0, x * (raised / value.clamp(min=1)), raised)


def contrast(x: Tensor, kept: float, draws: Draws) -> Tensor:
    """Towards the mean of each channel."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * kept + mean


def elastic_transform(x: Tensor, c: tuple[float, float, float], draws: Draws) -> Tensor:
    """A random affine map, then a smooth random displacement; strength, smoothness and shift in
    units of the shorter side.

    The map takes three corners of a square in the centre to places shifted by up to `shift`.
    """
    height, width = x.shape[2:]
    strength, smoothness, shift = (min(height, width) * factor for factor in c)
    reach = min(height, width) // 3
    middle = torch.tensor([width // 2, height // 2], dtype=torch.float64)
    corners = middle + reach * torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=torch.float64)
    moved = corners + draws.uniform(3, 2, low=-shift, high=shift)  # [N, corner, (x, y)]
    # Backwards: where a pixel was, from its coordinates (s, t) along the two moved edges.
    (a, b), (e, f) = (moved[:, 0] - moved[:, 1]).unbind(1), (moved[:, 2] - moved[:, 1]).unbind(1)
    a, b, e, f = (part[:, None, None] for part in (a, b, e, f))
    dx = torch.arange(width) - moved[:, 1, 0, None, None]
    dy = torch.arange(height)[:, None] - moved[:, 1, 1, None, None]
    area = a * f - b * e
    s, t = (dx * f - dy * e) / area, (dy * a - dx * b) / area
    x = bilinear(x, corners[1, 1] + 2 * reach * s, corners[1, 0] - 2 * reach * t, "mirror")
    if strength == 0:
        return x
    bend = strength * gaussian(
        draws.uniform(2, height, width, low=-1, high=1), smoothness, truncate=3, border="reflect"
    )
    return bilinear(
        x, torch.arange(height)[:, None] + bend[:, 1], torch.arange(width) + bend[:, 0], "reflect"
    )


def pixelate(x: Tensor, share: float, draws: Draws) -> Tensor:
    """Shrunk to a share of the sides and enlarged again, by box filters."""

    def change(image: Image.Image) -> Image.Image:
        small = image.resize(
            (int(image.width * share), int(image.height * share)), Image.Resampling.BOX
        )
        return small.resize(image.size, Image.Resampling.BOX)

    return _through_pil(x, change)


def jpeg_compression(x: Tensor, quality: int, draws: Draws) -> Tensor:
    """Saved as JPEG and read back."""

    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _through_pil(x, change)


def _through_pil(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pixels = x.to(torch.uint8).movedim(1, 3)
    # PIL has grey images without an axis for the channel
    pixels = pixels[..., 0] if pixels.shape[3] == 1 else pixels
    changed = np.stack(
        [np.asarray(change(Image.fromarray(image))) for image in pixels.contiguous().numpy()]
    )
    return (
        torch.from_numpy(changed).reshape(len(x), *x.shape[2:], x.shape[1]).movedim(3, 1).double()
    )


KINDS: dict[str, tuple[Callable[[Tensor, Any, Draws], Tensor], tuple[Any, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion_blur": (motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "fog": (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (jpeg_compression, (80, 65, 58, 50, 40)),
}
