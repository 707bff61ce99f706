"""`python -m realdata export | import`: a distilled set as the loose .pt tensors that repositories of the field hand on.

    images_best.pt     (n, channels, height, width) float32: what a network sees, that is after standardisation or ZCA
    images_pixels.pt   the same images in units of u / 255, the transform undone and nothing clipped
    ema_images_best.pt as images_best.pt, their running average, where there is one (FTD)
    labels_best.pt     (n,) int64 class numbers, or (n, classes) float32 logits, whose softmax is the label
    lr_best.pt         (), float32: the learning rate of training on the set
    SHA256SUMS         of the files above; compared when it is there

The names are those of the released MTT, FTD and DATM code (MTT's has no step size). Reading unpickles tensors only (torch.load with
weights_only), from the bytes whose checksum was compared. What the files do not say comes from the options: the data set, the network and
how it is trained, and the transform, which is fitted on all real training images, as the field does (published-* needs none). Sets that the
code of MTT and its successors whitened want --transform zca-mtt.
"""

import io
import math
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from realdata.artefact import DistilledSet, read_set, write_set
from realdata.config import DistillConfig
from realdata.data import cache_folder, load, source
from realdata.data.files import DataError
from realdata.preprocess import PUBLISHED, fit, published
from sims.lab.artefact import SUMS, contained, sums, verified
from sims.lab.files import RunError, atomic_write, make_folder

IMAGES, PIXELS, EMA, LABELS, STEP = "images_best.pt", "images_pixels.pt", "ema_images_best.pt", "labels_best.pt", "lr_best.pt"


@dataclass(frozen=True, eq=False)
class Triple:
    """Images, labels (class numbers or logits), the step size and the averaged images, None where there are none, as they lie there."""

    images: np.ndarray
    labels: np.ndarray
    step_size: float | None
    images_ema: np.ndarray | None


def export_set(place: Path, out: Path) -> Path:
    """Writes the set in `place` (artefact or run folder) to the new folder `out` as .pt files."""
    distilled = read_set(place)
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty: choose another --out")
    soft = distilled.labels.ndim == 2
    # A probability of 0 has no logit: it becomes the smallest one float32 tells from 0.
    labels = np.log(np.maximum(distilled.labels, np.finfo(np.float32).tiny)) if soft else distilled.labels
    tensors = {
        IMAGES: distilled.images,
        PIXELS: distilled.transform.invert(distilled.images).astype(np.float32),
        LABELS: labels,
        STEP: np.float32(distilled.optimiser().lr),
    } | ({} if distilled.images_ema is None else {EMA: distilled.images_ema})
    content = {name: _packed(np.asarray(array)) for name, array in tensors.items()}
    make_folder(out)
    for name, data in content.items():
        atomic_write(out / name, data)
    atomic_write(out / SUMS, sums(content))
    return out


def _packed(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    torch.save(torch.from_numpy(np.array(array, order="C")), stream)
    return stream.getvalue()


def import_set(place: Path, config: DistillConfig, root: Path | None, out: Path, *, pixels: bool = False) -> Path:
    """Writes the set in the .pt files of folder `place` as an artefact folder at `out`, where nothing may lie yet.

    config   what the files do not say; images per class and, where a step size is stored, the learning rate are taken from the files
    root     folder with the real training images; None is enough for a published transform
    pixels   read images_pixels.pt and put it through the transform, in the place of images_best.pt
    """
    if out.exists():
        raise RunError(f"{out} exists already: choose another --out")
    triple = read_triple(place, PIXELS if pixels else IMAGES)
    known, n = source(config.dataset), len(triple.images)
    classes = len(known.classes)
    if triple.images.shape[1:] != known.shape or n % classes:
        raise RunError(
            f"{place}: images {triple.images.shape} are no set of {config.dataset}, which has {classes} classes of {known.shape}"
        )
    rows = _class_major(triple.labels, classes, place)
    config = replace(config, ipc=n // classes, batch_per_class=None, inner_lr=triple.step_size or config.inner_lr)
    names = known.classes
    if config.transform in PUBLISHED:
        transform = published(config.transform, known.shape[0])
    elif root is None:
        raise RunError(f"the {config.transform} transform is fitted on real images: give their folder as --root, or a published transform")
    else:
        real = load(config.dataset, root, "train")
        transform, names = fit(config.transform, real.images, cache_folder()), real.classes
    images = (transform.apply(255.0 * triple.images) if pixels else triple.images)[rows]
    labels, ema = triple.labels[rows], None if triple.images_ema is None else triple.images_ema[rows]
    if labels.ndim == 2:
        labels = torch.softmax(torch.from_numpy(labels), dim=1).numpy()
    distilled = DistilledSet(images, labels, transform, config, names, images_ema=ema)
    return write_set(out, distilled, None, note="Imported from .pt files; network and training are as stated at import.")


def _class_major(labels: np.ndarray, classes: int, place: Path) -> np.ndarray:
    """The order of rows by class: of numbers sorted, of logits as they are (class by class, as every release of the field has them)."""
    if labels.ndim == 2:
        if labels.shape[1] != classes:
            raise RunError(f"{place / LABELS}: {labels.shape[1]} logits a label, the data set has {classes} classes")
        return np.arange(len(labels))
    if not np.array_equal(np.sort(labels), np.repeat(np.arange(classes), len(labels) // classes)):
        raise RunError(f"{place / LABELS} must have each of the {classes} classes equally often")
    return np.argsort(labels, kind="stable")


def read_triple(place: Path, images: str = IMAGES) -> Triple:
    """The tensors of the folder's .pt files, checked for type, shape and finite values."""
    listed = verified(place) if (place / SUMS).is_file() else {}

    def tensor(name: str) -> torch.Tensor:
        return _unpacked(place / name, listed.get(name))

    x, y = tensor(images), tensor(LABELS)
    step = tensor(STEP) if (place / STEP).is_file() else None
    ema = tensor(EMA) if images == IMAGES and (place / EMA).is_file() else None
    for name, z in ((images, x), (EMA, x if ema is None else ema)):
        if z.ndim != 4 or z.shape != x.shape or not z.is_floating_point() or not torch.isfinite(z).all():
            raise DataError(f"{place / name} must hold finite images (n, channels, height, width), found {_described(z)}")
    numbers = y.ndim == 1 and not y.is_floating_point() and not y.is_complex() and y.dtype != torch.bool
    logits = y.ndim == 2 and y.is_floating_point() and bool(torch.isfinite(y).all())
    if not (numbers or logits) or len(y) != len(x) or len(x) == 0 or (numbers and int(y.min()) < 0):
        raise DataError(f"{place / LABELS} must hold {len(x)} class numbers or rows of finite logits, found {_described(y)}")
    if step is not None and (step.numel() != 1 or not 0.0 < float(step) < math.inf):
        raise DataError(f"{place / STEP} must hold one positive learning rate, found {_described(step)}")
    labels = y.to(torch.float32 if logits else torch.int64).numpy()
    # The shortest decimal of the stored float32: 0.001 comes back as 0.001.
    rate = None if step is None else float(str(np.float32(float(step))))
    return Triple(x.to(torch.float32).numpy(), labels, rate, None if ema is None else ema.to(torch.float32).numpy())


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _unpacked(path: Path, data: bytes | None) -> torch.Tensor:
    """The one tensor in a .pt file, from `data` where its bytes are at hand."""
    try:
        data = contained(path) if data is None else data
        _look_through(path, data)
        tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except RunError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): give the folder with {IMAGES}, {LABELS}, {STEP}") from error
    except Exception as error:  # a file that is damaged or asks for more than tensors fails in many ways
        reason = f"{type(error).__name__}: {str(error)[:160]}"
        raise DataError(f"{path} is no file of one tensor, or asks for more than data, which was not run ({reason})") from error
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise DataError(f"{path} must hold one dense tensor: save images, labels and learning rate each by itself")
    if tensor.numel() * tensor.element_size() > len(data):
        raise DataError(f"{path} holds less data than the shape {tuple(tensor.shape)} says: it is damaged, do not trust it")
    return tensor.detach()


def _look_through(path: Path, data: bytes) -> None:
    """Refuses an archive whose members unpack to more than the file: torch stores tensors as they are."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise DataError(f"{path} is no archive as torch.save writes it since 1.6: save it again with a newer version")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(data):
            raise DataError(f"{path} unpacks to more than its size, which no tensor file does: do not trust it")
