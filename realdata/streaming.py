"""Real images as a network sees them: all of them on the device where they are few, else made from their bytes when they are asked for.

x[rows] = transform(u[rows]), u the stored bytes. Both ways give the same bits, for a transform treats every image by itself. Few means that
the transformed images (float32) take at most 8 GiB and at most a quarter of the device's memory; a larger set stays where its bytes are
(mapped from disk, see `realdata.data`), and only the rows of a chunk exist as floats.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch

from realdata.data.imageset import Images, ImageSet
from realdata.preprocess import Transform
from realdata.transfer import sent
from sims.lab.environment import memory

LARGEST = 2**33  # bytes
PARTS = 4  # of a device's memory, one of which may hold images


@dataclass(frozen=True, eq=False)
class Transformed:
    """Transformed images on the host that exist while they are used: x[rows] is an array (rows, channels, height, width), float32."""

    base: Images
    transform: Transform

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.transform.apply(np.asarray(self.base[rows]))


@dataclass(frozen=True, eq=False)
class Streamed:
    """The same on a device: x[rows] is a tensor there, rows a slice or integers."""

    host: Transformed
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        return self.host.shape

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, rows: Any) -> torch.Tensor:
        picked = rows.cpu().numpy() if isinstance(rows, torch.Tensor) else rows
        return sent(self.host[picked], self.device)


HostRows: TypeAlias = np.ndarray | Transformed
Rows: TypeAlias = torch.Tensor | Streamed
Labelled: TypeAlias = tuple[Rows, torch.Tensor]


def room(device: torch.device) -> int:
    """Bytes of transformed images that are kept on the device."""
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory()
    return min(LARGEST, total // PARTS)


def _few(images: Images, device: torch.device) -> bool:
    return 4 * prod(images.shape) <= room(device)


def on_host(transform: Transform, images: Images) -> HostRows:
    """Transformed images, indexed by rows."""
    return transform.apply(images) if _few(images, torch.device("cpu")) else Transformed(images, transform)


def on_device(transform: Transform, images: ImageSet, device: torch.device) -> Labelled:
    """(transformed images, indexed by rows; labels int64, on the device)."""
    labels = torch.from_numpy(images.labels).to(device)
    if _few(images.images, device):
        return torch.from_numpy(transform.apply(images.images)).to(device), labels
    return Streamed(Transformed(images.images, transform), device), labels
