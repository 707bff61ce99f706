"""Sets from and to .pt files: round trips, raw pixels, the layouts of other repositories, and files that are damaged or meant to harm."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from realdata.__main__ import main
from realdata.artefact import read_set
from realdata.config import DistillConfig
from realdata.exchange import EMA, IMAGES, LABELS, PIXELS, STEP, export_set, import_set, read_triple
from realdata.preprocess import load_transform
from sims.lab.artefact import SUMS
from sims.lab.files import RunError
from tests.realdata.fuzzing import watched
from tests.realdata.sets import CLASSES, NAME, distilled_set, write_arrays, write_run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_arrays(folder, np.random.default_rng(0))
    return folder


def packed(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def write_triple(folder: Path, images: torch.Tensor, labels: torch.Tensor, step: torch.Tensor | None = None) -> Path:
    """As other repositories leave it: no checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in ((IMAGES, images), (LABELS, labels), (STEP, step)):
        if tensor is not None:
            torch.save(tensor, folder / name)
    return folder


def config(**settings: object) -> DistillConfig:
    return DistillConfig(NAME, **({"transform": "published-mnist", "horizon": 4, "window": 2} | settings))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("transform", "soft"), [("standardise", False), ("zca", True)])
def test_there_and_back(root: Path, tmp_path: Path, transform: str, soft: bool):
    distilled = distilled_set(np.random.default_rng(1), ipc=3, soft=soft, ema=soft, transform=transform)
    write_run(tmp_path / "run", distilled)
    main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "files")])
    settings = ["--dataset", NAME, "--transform", transform, "--root", str(root), "--horizon", "4", "--window", "2", "--inner", "sgd"]
    main(["import", str(tmp_path / "files"), "--out", str(tmp_path / "again"), *settings])
    again = read_set(tmp_path / "again")
    assert again.images.tobytes() == distilled.images.tobytes()
    assert (again.images_ema is None) == (distilled.images_ema is None)
    if again.images_ema is not None and distilled.images_ema is not None:
        assert again.images_ema.tobytes() == distilled.images_ema.tobytes()
    assert again.config.ipc == 3
    assert again.config.inner_lr == distilled.config.inner_lr == 0.01
    assert again.config.inner == "sgd"
    assert again.labels.dtype == distilled.labels.dtype
    assert np.allclose(again.labels, distilled.labels, atol=1e-6)
    card = (tmp_path / "again" / "card.md").read_text()
    assert "Imported from .pt files" in card
    assert "not measured" in card
    assert "| method | unknown |" in card
    assert "rat-bptt" not in card
    assert f"the {transform} transform, fitted on real training images" in card


@pytest.mark.parametrize("transform", ["standardise", "zca"])
def test_raw_pixels_undo_the_transform(tmp_path: Path, transform: str):
    place, distilled = tmp_path, distilled_set(np.random.default_rng(5), transform=transform)
    write_run(place / "run", distilled)
    export_set(place / "run", place / "files")
    pixels = torch.load(place / "files" / PIXELS, weights_only=True)
    assert torch.load(place / "files" / IMAGES, weights_only=True).numpy().tobytes() == distilled.images.tobytes()
    t = load_transform(distilled.transform.tensors()).tensors()
    if transform == "standardise":
        expected = distilled.images * t["std"][:, None, None] + t["mean"][:, None, None]
    else:
        expected = np.linalg.solve(t["zca"].astype(np.float64).T, distilled.images.reshape(len(distilled.images), -1).T).T
        expected = (expected * t["scale"] + t["offset"]).reshape(distilled.images.shape)
    assert np.allclose(pixels.numpy(), expected, atol=2e-3)


def test_pixels_go_through_the_transform_of_here(root: Path, tmp_path: Path):
    distilled = distilled_set(np.random.default_rng(2))
    write_run(tmp_path / "run", distilled)
    export_set(tmp_path / "run", tmp_path / "files")
    import_set(tmp_path / "files", config(transform="standardise"), root, tmp_path / "again", pixels=True)
    again = read_set(tmp_path / "again")
    assert np.allclose(again.transform.invert(again.images), distilled.transform.invert(distilled.images), atol=1e-5)
    assert not np.allclose(again.images, distilled.images, atol=1e-2)


def test_other_repositories_files(tmp_path: Path):
    """Without checksums and step size, classes in any order, double precision, a parameter for a tensor; no real data needed."""
    rng = np.random.default_rng(3)
    order, images = rng.permutation(8), rng.standard_normal((8, 1, 8, 8))
    labels = np.repeat(np.arange(CLASSES), 2)
    place = write_triple(tmp_path / "mtt", torch.nn.Parameter(torch.from_numpy(images[order])), torch.from_numpy(labels[order]).int())
    again = read_set(import_set(place, config(inner_lr=0.02), None, tmp_path / "set"))
    assert "the published-mnist transform, with printed figures" in (tmp_path / "set" / "card.md").read_text()
    assert np.array_equal(again.labels, labels)
    assert again.config.inner_lr == 0.02
    for row, image in enumerate(again.images):
        (source,) = [k for k in range(8) if np.array_equal(images[k].astype(np.float32), image)]
        assert labels[source] == labels[row]


@pytest.mark.parametrize(
    ("images", "labels", "step", "words"),
    [
        (torch.zeros(8, 1, 8, 9), torch.arange(8) // 2, None, "are no set of"),
        (torch.zeros(7, 1, 8, 8), torch.arange(7) // 2, None, "are no set of"),
        (torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64), None, "equally often"),
        (torch.zeros(8, 1, 8, 8), torch.full((8,), 2**62), None, "equally often"),
        (torch.zeros(8, 1, 8, 8), torch.arange(8) - 1, None, "class numbers"),
        (torch.zeros(8, 1, 8, 8), torch.zeros(8, 5), None, "5 logits a label"),
        (torch.zeros(8, 1, 8, 8), torch.zeros(7, 4), None, "8 class numbers or rows"),
        (torch.zeros(8, 1, 8, 8), torch.full((8, 4), torch.nan), None, "finite logits"),
        (torch.zeros(8, 64), torch.arange(8) // 2, None, "must hold finite images"),
        (torch.full((8, 1, 8, 8), torch.inf), torch.arange(8) // 2, None, "must hold finite images"),
        (torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8) // 2, None, "found uint8"),
        (torch.zeros(8, 1, 8, 8), torch.arange(8) // 2, torch.tensor(-0.1), "one positive learning rate"),
        (torch.zeros(8, 1, 8, 8), torch.arange(8) // 2, torch.ones(2), "one positive learning rate"),
        (torch.zeros(1).expand(2**30, 1, 8, 8), torch.arange(8) // 2, None, "holds less data than the shape"),
        (torch.zeros(8, 1, 8, 8).to_sparse(), torch.arange(8) // 2, None, "one dense tensor"),
        (torch.zeros(8, 1, 8, 8, device="meta"), torch.arange(8) // 2, None, "one dense tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*TypedStorage")
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, images: torch.Tensor, labels: torch.Tensor, step: torch.Tensor | None, words: str
):
    place = write_triple(tmp_path / "files", images, labels, step)
    with pytest.raises(RunError, match=words):
        import_set(place, config(), None, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_checksums_are_compared(tmp_path: Path):
    write_run(tmp_path / "run", distilled_set(np.random.default_rng(4)))
    export_set(tmp_path / "run", tmp_path / "files")
    assert len((tmp_path / "files" / SUMS).read_text().splitlines()) == 4
    read_triple(tmp_path / "files")
    for name in (IMAGES, LABELS, STEP, PIXELS):
        whole = (tmp_path / "files" / name).read_bytes()
        (tmp_path / "files" / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(RunError, match=f"{name} does not match its checksum"):
            read_triple(tmp_path / "files")
        (tmp_path / "files" / name).write_bytes(whole)
    with pytest.raises(RunError, match="is not empty"):
        export_set(tmp_path / "run", tmp_path / "files")


class Runs:
    """Unpickled the ordinary way, it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return __import__("os").system, (self.command,)


def spoilt(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with its pickle changed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            new.writestr(member.filename, change(content) if member.filename.endswith("data.pkl") else content)
    return stream.getvalue()


def bomb() -> bytes:
    """A sound archive with a member that unpacks to 16 MiB."""
    stream = io.BytesIO(packed(torch.zeros(3)))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/9", bytes(2**24))
    return stream.getvalue()


HOSTILE: dict[str, Callable[[str], bytes]] = {
    "a call in torch's archive": lambda command: packed(Runs(command)),
    "a call among tensors": lambda command: packed({"images": torch.zeros(2), "more": Runs(command)}),
    "a call in place of the tensor": lambda command: spoilt(packed(torch.zeros(2)), lambda _: pickle.dumps(Runs(command), protocol=2)),
    "a bare pickle": lambda command: pickle.dumps(Runs(command)),
    "the old format": lambda command: pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001) + pickle.dumps(Runs(command)),
    "a class of numpy": lambda _: packed(np.arange(3)),
    "a whole module": lambda _: packed(torch.nn.Linear(2, 2)),
    "a dictionary": lambda _: packed({"images": torch.zeros(2)}),
    "a number": lambda _: packed(3.0),
    "a cut file": lambda _: packed(torch.zeros(8, 1, 8, 8))[:-200],
    "half a pickle": lambda _: spoilt(packed(torch.zeros(3)), lambda data: data[: len(data) // 2]),
    "an endless memo": lambda _: spoilt(packed(torch.zeros(3)), lambda _: b"\x80\x02Nr\xff\xff\xff\x7f."),
    "a zip bomb": lambda _: bomb(),
    "noise": lambda _: np.random.default_rng(0).bytes(1000),
    "nothing": lambda _: b"",
    "a web page": lambda _: b"<!DOCTYPE html><title>404</title>\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_and_damaged_files_end_in_one_line_and_run_nothing(tmp_path: Path, kind: str):
    for name in (IMAGES, LABELS, STEP):
        place = write_triple(tmp_path / "files", torch.zeros(8, 1, 8, 8), torch.arange(8) // 2, torch.tensor(0.1))
        (place / name).write_bytes(HOSTILE[kind](f"touch {tmp_path / 'was-run'}"))
        before = sorted(path.name for path in tmp_path.rglob("*"))
        with pytest.raises(RunError) as caught:
            read_triple(place)
        assert name in str(caught.value)
        assert str(caught.value).isprintable()
        assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_the_command_ends_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    place = write_triple(tmp_path / "files", torch.zeros(8, 1, 8, 8), torch.arange(8) // 2)
    (place / LABELS).write_bytes(HOSTILE["a call in torch's archive"](f"touch {tmp_path / 'was-run'}"))
    with pytest.raises(SystemExit) as end:
        main(["import", str(place), "--dataset", NAME, "--transform", "published-mnist", "--out", str(tmp_path / "set")])
    assert end.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "asks for more than data, which was not run" in line
    assert not (tmp_path / "was-run").exists()
    assert not (tmp_path / "set").exists()


def test_the_harm_would_be_seen(tmp_path: Path):
    """The same bytes, unpickled without care, do run their command."""
    torch.load(io.BytesIO(HOSTILE["a call in torch's archive"](f"touch {tmp_path / 'was-run'}")), weights_only=False)
    assert (tmp_path / "was-run").exists()


def test_what_lies_at_the_place_is_never_replaced(tmp_path: Path):
    write_run(tmp_path / "run", distilled_set(np.random.default_rng(0)))
    place = write_triple(tmp_path / "files", torch.zeros(8, 1, 8, 8), torch.arange(8) // 2)
    (tmp_path / "empty").mkdir()
    before = read_set(tmp_path / "run").images
    for out in (tmp_path / "run" / "distilled", tmp_path / "run", tmp_path / "empty"):
        with pytest.raises(RunError, match="exists already: choose another --out"):
            import_set(place, config(), None, out)
    assert np.array_equal(read_set(tmp_path / "run").images, before)


@pytest.mark.parametrize("name", [IMAGES, LABELS, STEP, EMA])
@pytest.mark.parametrize("sums", [False, True])
def test_pipes_and_links_out_are_not_read(tmp_path: Path, name: str, sums: bool):
    write_run(tmp_path / "run", distilled_set(np.random.default_rng(4), ema=True))
    place = export_set(tmp_path / "run", tmp_path / "files")
    if not sums:
        (place / SUMS).unlink()
    (place / name).rename(tmp_path / name)
    (place / name).symlink_to(tmp_path / name)
    with pytest.raises(RunError, match=f"{name} is a link out of its folder"):
        read_triple(place)
    (place / name).unlink()
    os.mkfifo(place / name)
    with watched(place):
        if sums or name in (IMAGES, LABELS):
            with pytest.raises(RunError, match=f"{name} is no plain file"):
                read_triple(place)
        else:
            read_triple(place)  # as if it were not there


def test_missing_places_are_named(tmp_path: Path):
    with pytest.raises(RunError, match=r"images_best\.pt cannot be read"):
        import_set(tmp_path, config(), None, tmp_path / "set")
    place = write_triple(tmp_path / "files", torch.zeros(8, 1, 8, 8), torch.arange(8) // 2)
    with pytest.raises(RunError, match="give their folder as --root"):
        import_set(place, config(transform="zca"), None, tmp_path / "set")
