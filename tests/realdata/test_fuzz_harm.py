"""Files that mean harm: pickles that ask for more than data, names and links that lead elsewhere; one clear line, and nothing else."""

import gzip
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realdata import data
from realdata.data import cifar
from sims.lab.files import RunError
from tests.realdata.files import picture, python2_pickle, some_pixels, write_cifar, write_tiny, write_tree
from tests.realdata.fuzzing import hostile, idx_set, npy_set, own_cache_and_small_sets, pair, refusal


@pytest.fixture(autouse=True)
def _small(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache_and_small_sets(tmp_path_factory, monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for a data set, alone in another, so that what lands beside it is seen."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


# --- pickles that ask for more than data --------------------------------------------------------------------------------------------------

CALLS = (
    "os system", "posix system", "subprocess Popen", "subprocess check_output", "builtins eval", "builtins exec", "builtins getattr",
    "builtins __import__", "builtins open", "builtins compile", "__builtin__ eval", "importlib import_module", "operator attrgetter",
    "functools partial", "functools reduce", "types CodeType", "types FunctionType", "marshal loads", "shutil rmtree", "pathlib Path",
    "ctypes CDLL", "numpy fromfile", "numpy load", "numpy memmap", "numpy.core.multiarray scalar", "numpy f2py.os.system", "_codecs encode",
    "copyreg _reconstructor", "torch.storage _load_from_bytes", "realdata.data.cifar os.system", "pickle loads", "sys exit",
)  # fmt: skip


@pytest.mark.parametrize("form", ["protocol 0", "instance", "stack global", "among the labels"])
def test_pickles_that_call(root: Path, form: str):
    write_cifar(root, np.random.default_rng(0), each=10)
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
    write_cifar(root, np.random.default_rng(0), each=10)
    (root / "data_batch_1").write_bytes(ODD_PICKLES[kind])
    line = refusal("cifar10", root, "train")
    assert line is not None
    assert "data_batch_1" in line
    write_cifar(root, np.random.default_rng(0), each=10)
    assert refusal("cifar10", root, "train") is None, "a later reading is as it was"


@pytest.mark.parametrize("code", ["O", "f8", "V3072", "u2", "(3072,)u1", "x" * 40, 7, None])
def test_arrays_of_other_types_are_never_made(root: Path, code: Any):
    write_cifar(root, np.random.default_rng(0), each=10)
    sound = pickle.dumps({b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [0, 1]}, protocol=2)
    old, new = pickle.dumps("u1", protocol=2)[2:-3], pickle.dumps(code, protocol=2)[2:-1]
    assert old in sound
    (root / "data_batch_1").write_bytes(sound.replace(old, new.removesuffix(b"q\x00"), 1))
    assert refusal("cifar10", root, "train") is not None


def test_pickles_are_bounded_in_bytes_and_instructions(root: Path, monkeypatch: pytest.MonkeyPatch):
    write_cifar(root, np.random.default_rng(0), each=10)
    (root / "data_batch_1").unlink()
    packed = root / "data_batch_1.gz"
    packed.write_bytes(gzip.compress(b"\x80\x02" + b"N0" * 2**21, 9))
    assert packed.stat().st_size < 10_000
    for bound, value, words in (("INSTRUCTIONS", 10_000, "built unlike any data file"), ("LARGEST", 2**20, "holds more than 1 MiB")):
        monkeypatch.setattr(cifar, bound, value)
        line = refusal("cifar10", root, "train")
        assert line is not None
        assert words in line


def test_folders_nested_deeper_than_calls(tmp_path: Path):
    write_tree(tmp_path, np.random.default_rng(0), each=1)
    before, deepest = data.load("folders:3x8x8:2", tmp_path, "train"), tmp_path / "train" / "a"
    nested = [deepest := deepest / "d" for _ in range(1100)]
    try:
        nested[0].mkdir()
        for folder in nested[1:]:
            folder.mkdir()
        picture = tmp_path / "train" / "a" / "a_00.png"
        (nested[-1] / "b.png").write_bytes(picture.read_bytes())
        found = data.load("folders:3x8x8:2", tmp_path, "train")
        assert found.labels.tolist() == [0, 0, 1]
        assert np.array_equal(found.images[[0, 1]], before.images[[0, 0]])
    finally:  # what removes the folder afterwards does call itself
        (nested[-1] / "b.png").unlink(missing_ok=True)
        for folder in reversed(nested):
            folder.rmdir()


def test_a_sound_batch_passes_the_look_through():
    batch = python2_pickle({b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [0, 1]})
    assert sum(opcode.name.startswith("TUPLE") for opcode, _, _ in pickletools.genops(batch)) < 10


# --- names and links that lead elsewhere --------------------------------------------------------------------------------------------------

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
    write_cifar(root, rng, each=10)
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


# --- names of data sets -------------------------------------------------------------------------------------------------------------------


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
    assert 4 * len(CALLS) + len(ODD_PICKLES) + len(ANNOTATIONS) + len(LINKS) + len(NAMES) >= 180
