"""What all attacks share: settings, checks, the ball, and keeping each image's best."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sj_robust.attack.loss import margin
from sj_robust.attack.mode import attack_mode
from sj_robust.attack.view import GradientView, true_logits
from sj_robust.budget import radius
from sj_robust.errors import SJRobustError
from sj_robust.model.images import checked_labels, value_bounds
from sj_robust.model.unwrap import unwrap

Norm = Literal["linf", "l2"]

BALL_TOLERANCE = 1e-6  # of float32 rounding in x ± eps


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Looks for misclassified images with ‖x_adv − x‖ ≤ eps and values in [0, 1].

    Use one of its subclasses, by calling it: `attack(model, x, y)`.

    Args:
        eps: radius in units of the image range [0, 1]; may be written "8/255".
        norm: of the ball, "linf" or "l2".
        targeted: whether labels are classes to reach instead.
        restarts: attempts, of which each image's best is kept.

    Raises:
        SJRobustError: settings out of range.
    """

    eps: float
    norm: Norm = "linf"
    targeted: bool = False
    restarts: int = 1

    def __post_init__(self) -> None:
        require(self.norm in ("linf", "l2"), f'norm is {self.norm!r}: expected "linf" or "l2"')
        object.__setattr__(self, "eps", radius(self.eps, self.norm))
        require(self.restarts >= 1, f"restarts is {self.restarts}: expected at least 1")

    @property
    def name(self) -> str:
        """The name under which `parse_attack` knows it."""
        return self.family

    @property
    def family(self) -> str:
        """What it does, however long: attacks of one family differ in steps or queries alone."""
        return type(self).__name__.lower()

    @property
    def iterations(self) -> int:
        """Steps or queries for one image in one attempt."""
        return 1

    @property
    def passes(self) -> int:
        """What it costs at most for one image, in forward passes: a gradient takes about three."""
        return self.iterations * self.restarts * (1 if self.black_box else 3)

    @property
    def black_box(self) -> bool:
        """Whether it takes no gradients: through which view it runs makes no difference."""
        return False

    @property
    def gradients_alone(self) -> bool:
        """Whether all that it finds, it finds by gradients."""
        return not self.black_box

    @property
    def starts_at_random(self) -> bool:
        """Whether a restart begins elsewhere, so that more of them find more."""
        return True

    @property
    def takes_start(self) -> bool:
        """Whether it goes on from the images given as `start`."""
        return False

    @property
    def many_sources(self) -> bool:
        """Whether it wants all its gradient views and other models at once, as a `Sources`."""
        return False

    @property
    def one_sign(self) -> bool:
        """Whether it goes from x by eps along signs that are the same at every eps.

        They need be found once then.
        """
        return False

    @property
    def least_classes(self) -> int:
        """How many classes the model must tell apart."""
        return 2

    def for_classes(self, classes: int) -> Attack:
        """The attack that runs in this one's place on a model of so few classes.

        Itself where there are enough.
        """
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that defines the attack, defaults resolved, JSON-able, for reports."""
        return {"name": self.name, **asdict(self)}

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Each image's best, by the margin of the true forward pass, over iterations and restarts.

        The model runs in eval mode; its training flags, its parameters' requires_grad and the
        global random state are as before afterwards, whatever happens.

        Args:
            x: images float32 [N, C, H, W] in [0, 1].
            y: labels int64 [N].
            seed: noise depends on (seed, id, restart) alone, never on batch or order.
            ids: int64 [N] that name the images; default 0…N−1.
            start: images [N, C, H, W] inside the ball to go on from, for attacks that
                `takes_start`; what comes back is never worse.

        Returns:
            x_adv, of the shape and memory format of x.

        Raises:
            SJRobustError: images, labels, ids or `start` out of range.
        """
        _check_images(x)
        if start is not None:
            require(
                self.takes_start,
                f"{self.name} begins at places of its own: leave start out, or use rotating or"
                " square",
            )
            _check_start(start, x, self.eps, self.norm)
        if y is not None:
            known = None
            with suppress(SJRobustError):  # of a model that shows it in no way
                known = getattr(unwrap(model), "num_classes", None)
            y = checked_labels(y, len(x), known if isinstance(known, int) else None)
        if ids is None:
            ids = torch.arange(len(x), device=x.device)
        require(ids.shape == x.shape[:1], f"ids have shape {list(ids.shape)}: expected [{len(x)}]")
        if isinstance(view := unwrap(model), GradientView):
            model = view  # it is judged by another forward pass than its own
        if not len(x):
            return x.clone()
        with attack_mode(model, x.device):
            x = x.detach().clone()  # clones: inference tensors cannot take part in autograd
            y = None if y is None else y.to(x.device, copy=True)
            start = None if start is None else start.detach().to(x.device, copy=True)
            try:
                # an attack that takes no start need not know of it
                return self.run(model, x, y, seed, ids, *(() if start is None else (start,)))
            except IndexError as error:  # of a model that does not say how many classes it has
                if y is None or "out of bounds" not in str(error):
                    raise
                raise SJRobustError(
                    f"an image has the label {int(y.max())}, the model has fewer classes: "
                    "expected labels from 0, below the number of logits"
                ) from error

    def labelled(self, y: Tensor | None) -> Tensor:
        """y, for an attack that cannot do without.

        Raises:
            SJRobustError: there is none.
        """
        if y is None:
            raise SJRobustError(f"{self.name} needs labels: pass y, int64 [N]")
        return y

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None,
        seed: int,
        ids: Tensor,
        start: Tensor | None = None,
    ) -> Tensor:
        """The attack itself, on checked inputs, in eval mode, with gradients on."""
        raise NotImplementedError


class Best:
    """Each image's adversarial image of least margin so far, by the true forward pass."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, targeted: bool) -> None:
        self.model, self.y, self.targeted = model, y, targeted
        self.x_adv = x.clone()
        self.margin = torch.full((len(x),), torch.inf, device=x.device)

    @torch.no_grad()
    def offer(
        self,
        x_adv: Tensor,
        shown: Tensor | None = None,
        at: Tensor | None = None,
        drift: bool = False,
    ) -> None:
        """Take those of `x_adv` [n, ...] that are better, or as good where they may `drift`;
        `shown`: the model's logits for them, if known; `at` int64 [n]: whose they are, default all.
        Logits that are not finite count as a success, so that they come to light."""
        at = torch.arange(len(self.y), device=x_adv.device) if at is None else at
        logits = true_logits(self.model, x_adv, shown)
        found = torch.nan_to_num(margin(logits, self.y[at]), nan=-torch.inf)
        if self.targeted:
            found = -found
        better = found <= self.margin[at] if drift else found < self.margin[at]
        self.x_adv[at[better]], self.margin[at[better]] = x_adv[better], found[better]

    @property
    def standing(self) -> Tensor:
        """Indices of the images not yet broken, int64."""
        return (self.margin >= 0).nonzero().flatten()


def project(x_adv: Tensor, x: Tensor, eps: float, norm: Norm = "linf") -> Tensor:
    """Into the eps ball around `x` and into [0, 1]: the nearest such image under linf; under l2
    scaled, then clipped."""
    if norm == "linf":
        return torch.clamp(torch.minimum(torch.maximum(x_adv, x - eps), x + eps), 0, 1)
    offset = x_adv - x
    return torch.clamp(x + offset * (eps / l2_norm(offset).clamp_min(1e-12)).clamp_max(1), 0, 1)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of steepest ascent, of length 1 under `norm`; 0 where the gradient is 0."""
    return gradient.sign() if norm == "linf" else gradient / l2_norm(gradient).clamp_min(1e-30)


def l2_norm(z: Tensor) -> Tensor:
    """Euclidean norm of each image, [N, 1, …]."""
    # summed in float64: of 224×224 pixels float32 loses more than the tolerance of the ball
    norm = torch.linalg.vector_norm(z.flatten(1), dim=1, dtype=torch.float64)
    return norm.to(z).view(-1, *(1,) * (z.dim() - 1))


def sizes(offset: Tensor, norm: Norm) -> Tensor:
    """How far each image [N, ...] is moved by its offset, under `norm`: [N]."""
    return offset.flatten(1).abs().amax(1) if norm == "linf" else l2_norm(offset).flatten()


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SJRobustError(message)


def _check_images(x: Tensor) -> None:
    kind = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else f"of type {type(x).__name__}"
    valid = isinstance(x, Tensor) and x.dtype == torch.float32 and x.dim() >= 2
    require(valid, f"images are {kind}: expected float32 [N, C, H, W]")
    if bounds := value_bounds(x):
        low, high = bounds
        inside = low >= 0 and high <= 1  # False for NaN
        require(
            inside,
            f"images lie in [{low:.3g}, {high:.3g}]: expected [0, 1] (normalisation "
            "belongs inside the model)",
        )


def _check_start(start: Tensor, x: Tensor, eps: float, norm: Norm) -> None:
    kind = (
        f"{start.dtype} {list(start.shape)}"
        if isinstance(start, Tensor)
        else f"of type {type(start).__name__}"
    )
    require(
        isinstance(start, Tensor) and start.dtype == x.dtype and start.shape == x.shape,
        f"the images to start from are {kind}: expected {x.dtype} {list(x.shape)}, one per image",
    )
    if x.numel():
        size = float(sizes(start.detach().to(x.device) - x.detach(), norm).max())
        low, high = torch.stack(start.detach().aminmax()).tolist()
        inside = size <= eps + BALL_TOLERANCE and low >= 0 and high <= 1  # False for NaN
        require(
            inside,
            f"the images to start from lie in [{low:.3g}, {high:.3g}], up to {size:.4g} from their"
            f" images under {norm}: expected [0, 1], and at most eps = {eps:.4g}",
        )
