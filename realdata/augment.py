"""Random image warps whose parameters are drawn as arrays, so that a reverse sweep, another device or another day replays them exactly.

    flip     each image is mirrored left-right with probability 1/2
    rotate   each image turns by an angle uniform in [-max_degrees, max_degrees] about its centre, bilinear, zeros outside

One warp of the list is drawn for a whole batch, not all of them in turn (flip-rotate of the released RaT-BPTT code). For fixed
parameters a warp is linear in the pixels; its derivative is PyTorch's.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

AUGMENTATIONS = {"none": (), "flip": ("flip",), "rotate": ("rotate",), "flip-rotate": ("flip", "rotate")}


@dataclass(frozen=True, eq=False)
class Warp:
    """One drawn warp of n images: `kind`, and n flips (bool) or n angles in radians (float64)."""

    kind: str
    parameters: np.ndarray

    def part(self, start: int, stop: int) -> "Warp":
        """The warp of images start .. stop - 1."""
        return Warp(self.kind, self.parameters[start:stop])

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """The warped images (n, channels, height, width), differentiable in the pixels."""
        values = torch.from_numpy(self.parameters).to(images.device)
        if self.kind == "flip":
            return torch.where(values[:, None, None, None], images.flip(-1), images)
        return _rotated(images, values.to(images.dtype))


@dataclass(frozen=True)
class Augment:
    """A list of warps, one of which is drawn for each batch; "none" draws nothing."""

    name: str
    max_degrees: float = 15.0

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
        if kind == "flip":
            return Warp(kind, rng.random(n) < 0.5)
        return Warp(kind, np.deg2rad(rng.uniform(-self.max_degrees, self.max_degrees, n)))


def _rotated(images: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Output pixel p takes the input at R(angle) p, in pixels from the centre."""
    height, width = images.shape[-2:]
    cos, sin, zero = torch.cos(angles), torch.sin(angles), torch.zeros_like(angles)
    # affine_grid's coordinates run over [-1, 1] on both axes, so a turn of a non-square image needs the aspect ratio.
    rows = torch.stack([cos, -sin * (height / width), zero, sin * (width / height), cos, zero], dim=-1)
    grid = F.affine_grid(rows.reshape(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
