"""Files that are damaged or meant to harm, in every format: one clear line or a sound image set, and nothing else happens.

Every case runs under an alarm (a hang is a failure), and afterwards the folder must hold what it held before: no case may run a command
(they all try to make the file `was-run`) or write anything outside the cache. The seeds are fixed.
"""

import gzip
import io
import pickle
import pickletools
import signal
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from realdata import data
from sims.lab.files import RunError
from tests.realdata.files import idx_bytes, picture, python2_pickle, some_pixels, write_cifar, write_cifar100, write_tiny, write_tree

SECONDS = 20  # of one case, on a busy machine
SEEDS = 6


@pytest.fixture(autouse=True)
def _small(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name in ("cifar10", "cifar100-coarse"):
        monkeypatch.setitem(data.SOURCES, name, replace(data.SOURCES[name], counts={}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for a data set, alone in another, so that what lands beside it is seen."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@contextmanager
def watched(root: Path) -> Iterator[None]:
    """Nothing below the folder of `root` changes, and it ends in time."""

    def late(*_: object) -> None:
        raise TimeoutError(f"still running after {SECONDS} s")

    before = contents(root.parent)
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert contents(root.parent) == before


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_size for path in folder.rglob("*")}


def refusal(name: str, root: Path, split: str) -> str | None:
    """The one line that loading ends in, None for a sound image set."""
    images, line = None, ""
    with watched(root):
        try:
            images = data.load(name, root, split)
        except RunError as error:
            line = str(error)
    if images is None:
        assert 20 < len(line) < 1000
        assert line.isprintable()
        return line
    assert images.images.dtype == np.uint8
    assert images.images.shape == (len(images), *data.source(name).shape)
    assert len(images) > 0
    assert images.labels.min() >= 0
    assert images.labels.max() < len(data.source(name).classes)
    return None


# --- one sound set of each format: its name, and the file that will be damaged --------------------------------------------------------


def idx_set(root: Path, rng: np.random.Generator, *, packed: bool) -> tuple[str, Path, str]:
    suffix, pack = (".gz", gzip.compress) if packed else ("", bytes)
    for stem in ("train", "t10k"):
        images, labels = rng.integers(0, 256, (6, 8, 8)), rng.integers(0, 10, 6)
        (root / f"{stem}-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(images)))
        (root / f"{stem}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(labels)))
    kind = "images-idx3" if rng.random() < 0.7 else "labels-idx1"
    return "idx:1x8x8:10", root / f"train-{kind}-ubyte{suffix}", "train"


def cifar_set(root: Path, rng: np.random.Generator, *, protocol: int) -> tuple[str, Path, str]:
    write_cifar(root, rng, each=2, protocol=protocol)
    return "cifar10", root / "data_batch_3", "train"


def cifar100_set(root: Path, rng: np.random.Generator) -> tuple[str, Path, str]:
    write_cifar100(root, rng, each=2)
    return "cifar100-coarse", root / "train", "train"


def npz_set(root: Path, rng: np.random.Generator, *, packed: bool) -> tuple[str, Path, str]:
    (np.savez_compressed if packed else np.savez)(root / "train.npz", **pair(rng))
    return "arrays:3x8x8:4", root / "train.npz", "train"


def safetensors_set(root: Path, rng: np.random.Generator) -> tuple[str, Path, str]:
    (root / "train.safetensors").write_bytes(safetensors.numpy.save(pair(rng)))
    return "arrays:3x8x8:4", root / "train.safetensors", "train"


def npy_set(root: Path, rng: np.random.Generator) -> tuple[str, Path, str]:
    arrays = pair(rng)
    np.save(root / "train-images.npy", arrays["images"])
    np.save(root / "train-labels.npy", arrays["labels"])
    return "arrays:3x8x8:4", root / f"train-{'images' if rng.random() < 0.7 else 'labels'}.npy", "train"


def pair(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"images": rng.integers(0, 256, (5, 3, 8, 8), dtype=np.uint8), "labels": rng.integers(0, 4, 5)}


def picture_set(root: Path, rng: np.random.Generator, *, form: str, mode: str = "RGB") -> tuple[str, Path, str]:
    write_tree(root, rng, each=1)
    victim = root / "train" / "a" / "a_00.png"
    victim.write_bytes(picture(some_pixels(rng, 40, 30), form, mode))
    return "folders:3x8x8:2", victim, "train"


def tiny_set(root: Path, rng: np.random.Generator) -> tuple[str, Path, str]:
    write_tiny(root, rng, each=2)
    return "folders:3x64x64:2", root / "val" / "val_annotations.txt", "test"


Maker = Callable[[Path, np.random.Generator], tuple[str, Path, str]]
SETS: dict[str, Maker] = {
    "idx": lambda root, rng: idx_set(root, rng, packed=False),
    "idx.gz": lambda root, rng: idx_set(root, rng, packed=True),
    "cifar10": lambda root, rng: cifar_set(root, rng, protocol=2),
    "cifar10, protocol 5": lambda root, rng: cifar_set(root, rng, protocol=5),
    "cifar100": cifar100_set,
    "npz": lambda root, rng: npz_set(root, rng, packed=False),
    "npz, packed": lambda root, rng: npz_set(root, rng, packed=True),
    "safetensors": safetensors_set,
    "npy": npy_set,
    "png": lambda root, rng: picture_set(root, rng, form="PNG"),
    "png, palette": lambda root, rng: picture_set(root, rng, form="PNG", mode="P"),
    "jpeg": lambda root, rng: picture_set(root, rng, form="JPEG"),
    "webp": lambda root, rng: picture_set(root, rng, form="WEBP"),
    "bmp": lambda root, rng: picture_set(root, rng, form="BMP"),
    "annotations": tiny_set,
}


def flipped(data: bytes, rng: np.random.Generator, where: slice) -> bytes:
    part = np.frombuffer(data, dtype=np.uint8).copy()
    span = part[where]
    span[rng.integers(0, len(span), 4)] ^= rng.integers(1, 256, 4, dtype=np.uint8)
    return part.tobytes()


# What is done to the bytes of the file; True: no sound set can come of it.
DAMAGES: dict[str, tuple[Callable[[bytes, np.random.Generator], bytes], bool]] = {
    "empty": (lambda data, rng: b"", True),
    "cut": (lambda data, rng: data[: rng.integers(1, max(2, len(data) - 1))], False),
    "wrong magic": (lambda data, rng: rng.bytes(8) + data[8:], False),
    "flipped at the head": (lambda data, rng: flipped(data, rng, slice(0, 64)), False),
    "flipped anywhere": (lambda data, rng: flipped(data, rng, slice(None)), False),
    "noise": (lambda data, rng: rng.bytes(len(data)), True),
    "zeros": (lambda data, rng: bytes(len(data)), True),
    "middle gone": (lambda data, rng: data[: len(data) // 3] + data[len(data) // 2 :], False),
    "middle twice": (lambda data, rng: data[: len(data) // 2] + data[len(data) // 4 :], False),
    "web page": (lambda data, rng: b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>\n" * 3, True),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", SETS)
def test_damaged_files(tmp_path: Path, kind: str, damage: str):
    spoil, hopeless = DAMAGES[damage]
    for seed in range(SEEDS):
        rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
        root = tmp_path / str(seed)
        root.mkdir()
        name, victim, split = SETS[kind](root, rng)
        if seed == 0 and damage == "empty":
            assert refusal(name, root, split) is None, "the sound set itself"
        victim.write_bytes(spoil(victim.read_bytes(), rng))
        line = refusal(name, root, split)
        assert line is not None or not hopeless
        assert line is None or str(root) in line
        if seed == 0 and line is not None:
            with watched(root):
                assert any(check.fault for check in data.verify(name, root))


# --- pickles that ask for more than data ----------------------------------------------------------------------------------------------

CALLS = (
    "os system", "posix system", "subprocess Popen", "subprocess check_output", "builtins eval", "builtins exec", "builtins getattr",
    "builtins __import__", "builtins open", "builtins compile", "__builtin__ eval", "importlib import_module", "operator attrgetter",
    "functools partial", "functools reduce", "types CodeType", "types FunctionType", "marshal loads", "shutil rmtree", "pathlib Path",
    "ctypes CDLL", "numpy fromfile", "numpy load", "numpy memmap", "numpy.core.multiarray scalar", "numpy f2py.os.system", "_codecs encode",
    "copyreg _reconstructor", "torch.storage _load_from_bytes", "realdata.data.cifar os.system", "pickle loads", "sys exit",
)  # fmt: skip


def hostile(module: str, name: str, form: str, marker: Path) -> bytes:
    """A pickle that calls module.name with a command, in one of the ways a pickle can."""
    command = f"touch {marker}"
    text = b"(V" + command.encode() + b"\ntR"
    if form == "protocol 0":
        return f"c{module}\n{name}\n".encode() + text + b"."
    if form == "instance":
        return b"(V" + command.encode() + f"\ni{module}\n{name}\n.".encode()
    if form == "stack global":
        words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name, command))
        cut = 4 + len(module) + len(name)
        return b"\x80\x04" + words[:cut] + b"\x93" + words[cut:] + b"\x85R."
    # among the labels of an otherwise sound batch
    return b"\x80\x02}(U\x06labels](" + f"c{module}\n{name}\n".encode() + text + b"eu."


@pytest.mark.parametrize("form", ["protocol 0", "instance", "stack global", "among the labels"])
def test_pickles_that_call(root: Path, form: str):
    write_cifar(root, np.random.default_rng(0), each=2)
    for call in CALLS:
        module, name = call.split()
        (root / "data_batch_2").write_bytes(hostile(module, name, form, root / "was-run"))
        line = refusal("cifar10", root, "train")
        assert line is not None
        assert f"asks for {module}.{name}" in line
        assert "was not run" in line


MAKER = b"cnumpy\nndarray\n"
TYPE = b"cnumpy\ndtype\n"
ODD_PICKLES = {
    "changes a constructor": MAKER + b"}U\x08__code__K\x01sb.",
    "changes a constructor's slots": MAKER + b"(N}U\x04makeK\x01stb.",
    "makes a constructor's instance": b"\x80\x02" + MAKER + b")\x81.",
    "memory for a memo of 2^31": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "memory for a memo by text": b"Np4000000000\n.",
    "bytes of 2^40": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "a bytearray of 2^40": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "tuples that exhaust the stack": b"\x80\x02}(" + b"\x85" * 0 + b")" + b"\x85" * 300_000 + b"K\x01u.",
    "a long integer by text": b"L" + b"9" * 100_000 + b"L\n.",
    "an array of 2^40": b"\x80\x02" + TYPE + b"U\x02u1\x85R" + MAKER + b"J\xff\xff\xff\x7f\x85R.",
    "a persistent name": b"Pmodule\n.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a buffer that is not there": b"\x80\x05\x97.",
    "no end": b"\x80\x02}U\x04data",
    "an empty stack": b".",
    "a list": b"].",
    "numbers as keys": b"\x80\x02}K\x01K\x02s.",
}


@pytest.mark.parametrize("kind", ODD_PICKLES)
def test_odd_pickles(root: Path, kind: str):
    write_cifar(root, np.random.default_rng(0), each=2)
    (root / "data_batch_1").write_bytes(ODD_PICKLES[kind])
    line = refusal("cifar10", root, "train")
    assert line is not None
    assert "data_batch_1" in line
    write_cifar(root, np.random.default_rng(0), each=2)
    assert refusal("cifar10", root, "train") is None, "a later reading is as it was"


@pytest.mark.parametrize("code", ["O", "f8", "V3072", "u2", "(3072,)u1", "x" * 40, 7, None])
def test_arrays_of_other_types_are_never_made(root: Path, code: Any):
    write_cifar(root, np.random.default_rng(0), each=2)
    sound = pickle.dumps({b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [0, 1]}, protocol=2)
    old, new = pickle.dumps("u1", protocol=2)[2:-3], pickle.dumps(code, protocol=2)[2:-1]
    assert old in sound
    (root / "data_batch_1").write_bytes(sound.replace(old, new.removesuffix(b"q\x00"), 1))
    assert refusal("cifar10", root, "train") is not None


def test_a_sound_batch_passes_the_look_through():
    batch = python2_pickle({b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [0, 1]})
    assert sum(opcode.name.startswith("TUPLE") for opcode, _, _ in pickletools.genops(batch)) < 10


# --- content far larger than its file -------------------------------------------------------------------------------------------------


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npy_bytes(shape: tuple[int, ...], data: bytes = b"", descr: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def head(*shape: int) -> bytes:
    return b"\x00\x00\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}i", *shape)


def png_head(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (chunk, data, b"IEND")
    )


LABELS = npy_bytes((2,), b"\x00\x01")
IDX, ARRAYS, TREE = "idx:1x8x8:10", "arrays:3x8x8:2", "folders:3x8x8:2"
OBJECTS = npy_bytes((1,), hostile("os", "system", "protocol 0", Path("was-run")), "|O")
CODE = b"\x93NUMPY\x01\x00\x40\x00" + b"__import__('os').system('touch was-run')".ljust(64)
SAFE = b'{"images":{"dtype":"U8","shape":[2,3,8,8],"data_offsets":[0,9999999]}}'.ljust(72)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(was-run) (w) file closefile\n"
BOMBS: dict[tuple[str, str, str], Callable[[], bytes]] = {
    ("gzip of zeros", IDX, "train-images-idx3-ubyte.gz"): lambda: gzip.compress(bytes(2**26), 9),
    ("gzip longer than announced", IDX, "train-images-idx3-ubyte.gz"): lambda: gzip.compress(head(2, 8, 8) + bytes(2**26), 9),
    ("gzip shorter than announced", IDX, "train-images-idx3-ubyte.gz"): lambda: gzip.compress(head(2**26, 8, 8)),
    ("more announced than any file", IDX, "train-images-idx3-ubyte"): lambda: head(2**31 - 1, 2**31 - 1, 2**31 - 1),
    ("very many axes", IDX, "train-images-idx3-ubyte"): lambda: head(*[1] * 200),
    ("negative sizes", IDX, "train-images-idx3-ubyte"): lambda: head(-2, -8, 8),
    ("npz of zeros", ARRAYS, "train.npz"): lambda: zipped({"images.npy": bytes(2**26), "labels.npy": LABELS}),
    ("npz of 2^50", ARRAYS, "train.npz"): lambda: zipped({"images.npy": npy_bytes((2**50, 3, 8, 8)), "labels.npy": LABELS}),
    ("npz in an npz", ARRAYS, "train.npz"): lambda: zipped({"images.npy": zipped({"x": bytes(2**20)}), "labels.npy": LABELS}),
    ("npz of objects", ARRAYS, "train.npz"): lambda: zipped({"images.npy": OBJECTS, "labels.npy": LABELS}),
    ("npz with paths", ARRAYS, "train.npz"): lambda: zipped({"../was-run": b"x", "/tmp/was-run": b"x", "images.npy/x": b"x"}),
    ("npy of 2^50", ARRAYS, "train-images.npy"): lambda: npy_bytes((2**50, 3, 8, 8)),
    ("npy of objects", ARRAYS, "train-images.npy"): lambda: OBJECTS,
    ("npy with a head of code", ARRAYS, "train-images.npy"): lambda: CODE,
    ("safetensors with a head of 2^60", ARRAYS, "train.safetensors"): lambda: struct.pack("<Q", 2**60) + b"{}",
    ("safetensors beyond its end", ARRAYS, "train.safetensors"): lambda: struct.pack("<Q", 72) + SAFE,
    ("png of 10^9 pixels", TREE, "train/a/a_00.png"): lambda: png_head(31_623, 31_623),
    ("png of 8192 x 8193 pixels", TREE, "train/a/a_00.png"): lambda: png_head(8192, 8193),
    ("png of no pixels", TREE, "train/a/a_00.png"): lambda: png_head(0, 8),
    ("postscript", TREE, "train/a/a_00.png"): lambda: EPS,
}


@pytest.mark.parametrize("case", BOMBS, ids=lambda case: case[0])
@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_bombs(root: Path, case: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch):
    _, name, file = case
    monkeypatch.chdir(root)
    if name == TREE:
        write_tree(root, np.random.default_rng(0), each=1)
    else:
        (root / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(2)))
        np.save(root / "train-labels.npy", np.zeros(2, dtype=np.int64))
    (root / file).write_bytes(BOMBS[case]())
    assert refusal(name, root, "train") is not None


# --- names and links that lead elsewhere ----------------------------------------------------------------------------------------------

ANNOTATIONS = {
    "up": "../../../etc/passwd\tn01",
    "absolute": "/etc/passwd\tn01",
    "inside but not there": "images/val_0.JPEG\tn01",
    "here": ".\tn01",
    "no name": "\tn01",
    "no class": "val_0.JPEG",
    "another class": "val_0.JPEG\tn99",
    "class with a path": "val_0.JPEG\t../n01",
    "a null": "val_0.JPEG\0\tn01",
    "a very long name": "x" * 100_000 + "\tn01",
    "twice": "val_0.JPEG\tn01\nval_0.JPEG\tn02",
    "terminal codes": "\x1b]0;x\x07\x1b[2J\tn01",
    "other letters": "val_0.JPEG\tn\u0660\u0661",
}


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_annotations_that_lead_elsewhere(tmp_path: Path, kind: str):
    root = tmp_path / "root"
    lines = write_tiny(root, np.random.default_rng(0), each=1)
    (root / "val" / "val_annotations.txt").write_text("\n".join([*lines[1:], ANNOTATIONS[kind]]) + "\n")
    line = refusal("folders:3x64x64:2", root, "test")
    assert line is not None
    assert "val_annotations.txt, line" in line


LINKS: dict[str, tuple[str, str, str]] = {
    "a picture": ("folders:3x8x8:2", "train/a/x.png", "outside.png"),
    "a class folder": ("folders:3x8x8:a,c", "train/c", "elsewhere"),
    "the annotations": ("folders:3x64x64:2", "val/val_annotations.txt", "annotations.txt"),
    "the pictures' folder": ("folders:3x64x64:2", "val/images", "elsewhere"),
    "a batch": ("cifar10", "data_batch_1", "batch"),
    "an array": ("arrays:3x8x8:4", "train.npz", "pair.npz"),
    "an array's labels": ("arrays:3x8x8:4", "train-labels.npy", "labels.npy"),
    "idx": ("idx:1x8x8:10", "train-images-idx3-ubyte", "batch"),
    "a circle": ("cifar10", "data_batch_1", "root/data_batch_1"),
    "nothing": ("folders:3x8x8:2", "train/a/x.png", "absent"),
}


@pytest.mark.parametrize("kind", LINKS)
def test_links_out_of_the_tree(tmp_path: Path, kind: str):
    name, place, target = LINKS[kind]
    root, rng = tmp_path / "root", np.random.default_rng(0)
    if "64x64" in name:
        write_tiny(root, rng, each=1)
        (tmp_path / "annotations.txt").write_text("val_0.JPEG\tn01\nval_1.JPEG\tn02\n")
    else:
        write_tree(root, rng, each=1)
    write_cifar(root, rng, each=2)
    idx_set(root, rng, packed=False)
    if place.endswith(".npy"):
        npy_set(root, rng)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "y.png").write_bytes(picture(some_pixels(rng, 8, 8)))
    (tmp_path / "outside.png").write_bytes(picture(some_pixels(rng, 8, 8)))
    (tmp_path / "batch").write_bytes((root / "data_batch_1").read_bytes())
    np.savez(tmp_path / "pair.npz", **pair(rng))
    np.save(tmp_path / "labels.npy", pair(rng)["labels"])
    victim = root / place
    if victim.is_dir():
        victim.rename(tmp_path / "moved")
    victim.unlink(missing_ok=True)
    victim.symlink_to(tmp_path / target)
    line = refusal(name, root, "test" if "val" in place else "train")
    assert line is not None
    assert "link" in line or "missing" in line


# --- names of data sets ---------------------------------------------------------------------------------------------------------------


NAMES = (
    "", ":", "folders", "folders:", "folders:3x64x64", "folders:3x64x64:", "folders:3x64x64:1", "folders:3x64x64:a,a",
    "folders:3x64x64:a,..", "folders:3x64x64:a,/etc", "folders:3x64x64:a,b/../../c", "folders:3x64x64:a,.", "folders:3x64x32:2",
    "folders:2x64x64:2", "folders:3x4x4:2", "folders:3x9999x9999:2", "folders:3x64x64:99999999999999999999", "arrays:3x0x8:2",
    "idx:1x28x28:-1", "zip:3x8x8:2", "folders:3x64x64:2\n", "cifar10-64", "imagenette-", "imagenette-1e3", "imagenette-99999999",
    "../cifar10", "a" * 100_000,
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_that_describe_nothing(name: str):
    with pytest.raises(RunError) as caught:
        data.source(name)
    assert len(str(caught.value)) < 1000


def test_file_names_reach_no_terminal_as_they_are(root: Path):
    write_tree(root, np.random.default_rng(0), each=1)
    (root / "train" / "a" / "\x1b]0;owned\x07\n\x9b2J.png").write_bytes(b"no picture")
    line = refusal("folders:3x8x8:2", root, "train")
    assert line is not None
    assert "?]0;owned? ?2J.png is no picture" in line


def test_there_are_enough_cases():
    damaged, called = len(SETS) * len(DAMAGES) * SEEDS, 4 * len(CALLS)
    assert damaged + called + len(ODD_PICKLES) + len(BOMBS) + len(ANNOTATIONS) + len(LINKS) + len(NAMES) >= 1000
