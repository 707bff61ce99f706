"""Random image warps whose parameters are drawn as arrays, so that a reverse sweep, another device or another day replays them exactly.

With u uniform in [0, 1), drawn for each image (height H, width W, zeros outside; pixels in transformed units):

    flip     mirrored left-right where u < 1/2
    rotate   turned about the centre by an angle uniform in [-max_degrees, max_degrees], bilinear
    scale    stretched about the centre: row and column positions times factors uniform in [1/1.2, 1.2], bilinear
    crop     moved by up to p = floor(H/8 + 1/2) rows and the like of columns, whole pixels, all equally likely
    cutout   a box of floor(H/2 + 1/2) x floor(W/2 + 1/2) pixels about a random pixel is set to zero
    color    x + b, b in [-1/2, 1/2); then m + s (x - m), s in [0, 2), m a pixel's mean over channels; then the same with s in [1/2, 3/2),
             m the image's mean

One warp of the list is drawn for a whole batch, not all of them in turn. `flip-rotate` is that of the released RaT-BPTT code; `dsa` has the
families and strengths of differentiable Siamese augmentation (Zhao and Bilen 2021, arXiv:2102.08259, and its released code, mode single).
For fixed parameters a warp is affine in the pixels (linear but for b); its derivative is PyTorch's.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from realdata.transfer import sent

AUGMENTATIONS = {
    "none": (),
    "flip": ("flip",),
    "rotate": ("rotate",),
    "flip-rotate": ("flip", "rotate"),
    "color": ("color",),
    "crop": ("crop",),
    "cutout": ("cutout",),
    "scale": ("scale",),
    "dsa": ("color", "crop", "cutout", "flip", "scale", "rotate"),
    "dsa-no-flip": ("color", "crop", "cutout", "scale", "rotate"),
}
SCALE = 1.2
CROP = 1 / 8
CUTOUT = 1 / 2


@dataclass(frozen=True, eq=False)
class Warp:
    """One drawn warp of n images: `kind`, and its parameters, n rows.

    flip (n,) bool;  rotate (n,) radians;  scale (n, 2) factors of the (row, column) positions;  color (n, 3): b and the two s;
    crop, cutout (n, 2): u of rows and columns, which become whole pixels when the size of the images is known
    """

    kind: str
    parameters: np.ndarray

    def part(self, start: int, stop: int) -> "Warp":
        """The warp of images start .. stop - 1."""
        return Warp(self.kind, self.parameters[start:stop])

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """The warped images (n, channels, height, width), differentiable in the pixels."""
        values = sent(self.parameters, images.device)
        if self.kind == "flip":
            return torch.where(values[:, None, None, None], images.flip(-1), images)
        if self.kind == "crop":
            return _moved(images, values)
        if self.kind == "cutout":
            return _cut(images, values)
        values = values.to(images.dtype)
        if self.kind == "color":
            return _coloured(images, values[:, :, None, None, None])
        return _turned(images, values) if self.kind == "rotate" else _stretched(images, values)


@dataclass(frozen=True)
class Augment:
    """A list of warps, one of which is drawn for each batch; "none" draws nothing.

    shared   one draw for the whole batch (Siamese): generators in the same state then give batches of any two sizes the same warp
    """

    name: str
    max_degrees: float = 15.0
    shared: bool = False

    def __post_init__(self) -> None:
        if self.name not in AUGMENTATIONS:
            raise ValueError(f"unknown augmentation {self.name!r}: choose one of {', '.join(AUGMENTATIONS)}")
        if not 0.0 < self.max_degrees <= 180.0:
            raise ValueError(f"the largest rotation must lie in (0, 180] degrees: max_degrees={self.max_degrees}")

    def draw(self, rng: np.random.Generator, n: int) -> Warp | None:
        """The warp of a batch of n images."""
        kinds = AUGMENTATIONS[self.name]
        if not kinds:
            return None
        kind = kinds[int(rng.integers(len(kinds)))]
        parameters = self._parameters(kind, rng, 1 if self.shared else n)
        return Warp(kind, np.repeat(parameters, n, axis=0) if self.shared else parameters)

    def _parameters(self, kind: str, rng: np.random.Generator, n: int) -> np.ndarray:
        if kind == "flip":
            return rng.random(n) < 0.5
        if kind == "rotate":
            return np.deg2rad(rng.uniform(-self.max_degrees, self.max_degrees, n))
        if kind == "scale":
            return rng.uniform(1 / SCALE, SCALE, (n, 2))
        if kind == "color":
            return rng.random((n, 3)) * [1.0, 2.0, 1.0] + [-0.5, 0.0, 0.5]
        return rng.random((n, 2))


def _turned(images: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Output pixel p takes the input at R(angle) p, in pixels from the centre."""
    height, width = images.shape[-2:]
    cos, sin, zero = torch.cos(angles), torch.sin(angles), torch.zeros_like(angles)
    # affine_grid's coordinates run over [-1, 1] on both axes, so a turn of a non-square image needs the aspect ratio.
    return _sampled(images, torch.stack([cos, -sin * (height / width), zero, sin * (width / height), cos, zero], dim=-1))


def _stretched(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Output pixel (row, column) takes the input at (f_0 row, f_1 column), from the centre."""
    rows, columns = factors.unbind(-1)
    zero = torch.zeros_like(rows)
    return _sampled(images, torch.stack([columns, zero, zero, zero, rows, zero], dim=-1))


def _sampled(images: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    grid = F.affine_grid(theta.reshape(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _coloured(images: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    brightness, saturation, contrast = values.unbind(1)
    images = images + brightness
    grey = images.mean(dim=1, keepdim=True)
    images = grey + saturation * (images - grey)
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    return middle + contrast * (images - middle)


def _moved(images: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Output pixel (row, column) takes the input at (row + t_0, column + t_1)."""
    height, width = images.shape[-2:]
    (rows, on_rows), (columns, on_columns) = (_shift(size, u[:, k]) for k, size in enumerate((height, width)))
    index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    taken = images.flatten(2).gather(2, index[:, None].expand(-1, images.shape[1], -1)).view(images.shape)
    return taken * (on_rows[:, :, None] & on_columns[:, None, :])[:, None]


def _shift(size: int, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each of `size` places looks, (n, size), and whether that lies on the image."""
    p = int(size * CROP + 0.5)
    places = torch.arange(size, device=u.device) + torch.floor(u * (2 * p + 1)).long()[:, None] - p
    return places.clamp(0, size - 1), (places >= 0) & (places < size)


def _cut(images: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    rows, columns = (_span(size, u[:, k]) for k, size in enumerate(images.shape[-2:]))
    return images * ~(rows[:, :, None] & columns[:, None, :])[:, None]


def _span(size: int, u: torch.Tensor) -> torch.Tensor:
    """(n, size): whether a place belongs to the box, whose middle is any place (one more than there are where the box is even)."""
    length = int(size * CUTOUT + 0.5)
    first = torch.floor(u * (size + 1 - length % 2)).long()[:, None] - length // 2
    places = torch.arange(size, device=u.device)
    return (places >= first) & (places < first + length)
