"""The cache of decoded pictures: made once, mended when damaged, safe when killed or made twice, plain about a disk that refuses."""

import errno
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from realdata import data
from realdata.data import cache
from realdata.data.folders import list_split
from sims.lab.environment import cores
from sims.lab.files import RunError
from tests.realdata.files import picture, some_pixels, write_tree

NAME = "folders:3x8x8:2"
EACH = 40


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; chunks of 8 pictures, so that a small tree has several."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "CHUNK", 8)
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A tree and its training images."""
    return tmp_path / "tree", write_tree(tmp_path / "tree", np.random.default_rng(0), each=EACH)["train"]


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> np.ndarray:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache, "decode", decode)


def noted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The pictures that are decoded from now on."""
    decode, seen = cache.decode, list[Path]()
    monkeypatch.setattr(cache, "decode", lambda path, shape: (seen.append(path), decode(path, shape))[1])
    return seen


def test_pictures_are_decoded_once(place: Path, tree: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch):
    first = data.load(NAME, tree[0], "train")
    assert np.array_equal(first.images, tree[1])
    no_decoding(monkeypatch)
    again = data.load(NAME, tree[0], "train")
    assert isinstance(again.images, np.memmap)
    assert not again.images.flags.writeable
    assert np.array_equal(again.images, tree[1])
    assert [entry.name for entry in place.iterdir() if entry.name.endswith(".tmp")] == []


def test_another_picture_side_or_order_is_another_cache(place: Path, tree: tuple[Path, np.ndarray]):
    data.load(NAME, tree[0], "train")
    data.load("folders:3x16x16:2", tree[0], "train")
    swapped = data.load("folders:3x8x8:b,a", tree[0], "train")
    assert np.array_equal(swapped.images, np.roll(tree[1], EACH, axis=0))
    picture = tree[0] / "train" / "a" / "a_00.png"
    picture.write_bytes((tree[0] / "train" / "b" / "b_01.png").read_bytes())
    os.utime(picture, ns=(1, 1))
    assert np.array_equal(data.load(NAME, tree[0], "train").images[0], tree[1][EACH + 1])
    assert len([entry for entry in place.iterdir() if entry.is_dir()]) == 4


def test_trees_that_differ_in_content_alone_are_told_apart(place: Path, tmp_path: Path):
    """Bitmaps of one size all have the same number of bytes, and archives may set the time of a file's content."""
    rng, pixels = np.random.default_rng(0), {}
    for tree in ("one", "other"):
        for name in ("a", "b"):
            pixels[tree, name] = some_pixels(rng, 8, 8)
            picture_at = tmp_path / tree / "train" / name / "x.bmp"
            picture_at.parent.mkdir(parents=True)
            picture_at.write_bytes(picture(pixels[tree, name], "BMP"))
            os.utime(picture_at, ns=(0, 0))
    for tree in ("one", "other", "one"):
        expected = [pixels[tree, name].transpose(2, 0, 1) for name in ("a", "b")]
        assert np.array_equal(data.load(NAME, tmp_path / tree, "train").images, expected)
    changed, before = tmp_path / "one" / "train" / "a" / "x.bmp", os.stat(tmp_path / "one" / "train" / "a" / "x.bmp")
    while os.stat(changed).st_ctime_ns == before.st_ctime_ns:  # the system's clock of files has coarse steps
        changed.write_bytes(picture(pixels["other", "b"], "BMP"))
        os.utime(changed, ns=(0, 0))
    assert (os.stat(changed).st_size, os.stat(changed).st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert np.array_equal(data.load(NAME, tmp_path / "one", "train").images[0], pixels["other", "b"].transpose(2, 0, 1))


@pytest.mark.parametrize("damage", ["byte", "short", "index", "no index", "no images", "other shape"])
def test_a_damaged_cache_is_made_again(place: Path, tree: tuple[Path, np.ndarray], damage: str):
    data.load(NAME, tree[0], "train")
    (folder,) = (entry for entry in place.iterdir() if entry.is_dir())
    images, index = folder / "images.npy", folder / "index.json"
    content = bytearray(images.read_bytes())
    if damage == "byte":
        content[len(content) // 2] ^= 1
        images.write_bytes(content)
    elif damage == "short":
        images.write_bytes(content[:-1])
    elif damage == "other shape":
        np.save(images, np.zeros((3, 3, 8, 8), dtype=np.uint8))
    elif damage == "index":
        index.write_text('{"crc32": [1, 2]}')
    else:
        (index if damage == "no index" else images).unlink()
    assert np.array_equal(data.load(NAME, tree[0], "train").images, tree[1])


def test_large_caches_are_checked_in_part(place: Path, tree: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch):
    data.load(NAME, tree[0], "train")
    monkeypatch.setattr(cache, "CHECKED", tree[1].nbytes // 4)
    looked: list[int] = []
    whole = cache._chunk
    monkeypatch.setattr(cache, "_chunk", lambda images, k: (looked.append(k), whole(images, k))[1])
    data.load(NAME, tree[0], "train")
    assert looked == [0, 4, 8]


def test_pictures_that_cannot_be_read_are_all_named_and_the_others_stay(
    place: Path, tree: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    broken = [tree[0] / "train" / "a" / "a_03.png", tree[0] / "train" / "b" / "b_07.png"]
    whole = [path.read_bytes() for path in broken]
    for path, content in zip(broken, whole, strict=True):
        path.write_bytes(content[:40])
    with pytest.raises(RunError, match=r"a_03.png is no picture that can be read .*: 2, listed in .*unreadable.txt"):
        data.load(NAME, tree[0], "train")
    (making,) = (entry for entry in place.iterdir() if entry.is_dir())
    assert making.name.startswith(".")
    assert (making / "unreadable.txt").read_text().splitlines() == ["train/a/a_03.png", "train/b/b_07.png"]
    for path, content in zip(broken, whole, strict=True):
        path.write_bytes(content)
    seen = noted(monkeypatch)
    assert np.array_equal(data.load(NAME, tree[0], "train").images, tree[1])
    assert len(seen) == 2 * 8, "the chunks of the two alone are decoded again"
    (made,) = (entry for entry in place.iterdir() if entry.is_dir())
    assert sorted(entry.name for entry in made.iterdir()) == ["images.npy", "index.json"]


def test_without_the_pictures_that_cannot_be_read_it_goes_on(place: Path, tree: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch):
    broken = tree[0] / "train" / "b" / "b_07.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(RunError, match=r"b_07.png is no picture"):
        data.load(NAME, tree[0], "train")
    broken.unlink()
    seen = noted(monkeypatch)
    assert np.array_equal(data.load(NAME, tree[0], "train").images, np.delete(tree[1], EACH + 7, axis=0))
    assert len(seen) == 2 * EACH - 1 - EACH, "the chunks before it are kept"


# --- killed, and two at once ----------------------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, time, zlib
from realdata import data
from realdata.data import cache
cache.CHUNK = 8
decode, left = cache.decode, [int(sys.argv[2])]

def counted(path, shape):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[3]:
        time.sleep(0.01)
    return decode(path, shape)

cache.decode = counted
if sys.argv[3] == "wait":
    print("ready", flush=True)
    sys.stdin.readline()
images = data.load("folders:3x8x8:2", sys.argv[1], "train").images
print(zlib.crc32(images.tobytes()), int(sys.argv[2]) - left[0])
"""


def start(tree: Path, pictures: int, wait: str = "") -> subprocess.Popen[str]:
    """A process that loads the tree and is killed at the given picture (0: never)."""
    words = [sys.executable, "-c", SCRIPT, str(tree), str(pictures), wait]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_killed_at(pictures: int, place: Path, tree: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    process = start(tree[0], pictures)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert [entry for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith(".")] == []
    seen = noted(monkeypatch)
    assert np.array_equal(data.load(NAME, tree[0], "train").images, tree[1])
    # A chunk counts once its line is in the log: only what was under way, at most a chunk a thread, is done again.
    finished = (2 * EACH - len(seen)) // cache.CHUNK
    assert finished >= pictures // cache.CHUNK - cores()
    assert [entry for entry in place.iterdir() if entry.name.endswith(".tmp")] == []


@pytest.mark.parametrize("pictures", [1, 78])
def test_killed_while_building_the_next_start_goes_on(
    pictures: int, place: Path, tree: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    check_killed_at(pictures, place, tree, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("pictures", np.random.default_rng(0).integers(1, 2 * EACH, 20).tolist())
def test_killed_at_random_pictures(pictures: int, place: Path, tree: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch):
    check_killed_at(pictures, place, tree, monkeypatch)


def test_only_what_the_log_has_and_the_disk_confirms_is_kept(place: Path, tree: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch):
    atomic_write = cache.atomic_write
    monkeypatch.setattr(cache, "atomic_write", None)
    with pytest.raises(TypeError):
        data.load(NAME, tree[0], "train")
    monkeypatch.setattr(cache, "atomic_write", atomic_write)
    listing = list_split(data.source(NAME), tree[0].resolve(), "train")
    order = [listing.key(8 * k, 8 * k + 8) for k in range(10)]
    (log,) = place.glob(".*.tmp/done.log")
    lines = sorted(log.read_text().splitlines(), key=lambda line: order.index(line.split()[0]))
    keys, sums = zip(*(line.split() for line in lines), strict=True)
    log.write_bytes(
        f"{keys[0]} 1\nnonsense\n9999 3\n{keys[5]} {sums[4]}\n{lines[2]}\n\xff\n{lines[3]}".encode("latin-1")
    )  # the last one cut
    seen = noted(monkeypatch)
    assert np.array_equal(data.load(NAME, tree[0], "train").images, tree[1])
    assert len(seen) == 2 * EACH - 8  # all but chunk 2


def test_two_processes_make_it_once(place: Path, tree: tuple[Path, np.ndarray]):
    processes = [start(tree[0], 0, "wait") for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0].split() for process in processes]
    assert answers[0][0] == answers[1][0] == str(zlib.crc32(tree[1].tobytes()))
    assert sorted(int(count) for _, count in answers) == [0, 2 * EACH]


# --- a disk that refuses --------------------------------------------------------------------------------------------------------------


def test_places_that_cannot_be_written_end_in_one_line(place: Path, tree: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch):
    place.write_text("a file where the folder should be")
    with pytest.raises(RunError, match=r"cannot be stored in .*cache .*: free some space or set DISTILL_CACHE"):
        data.load(NAME, tree[0], "train")
    place.unlink()
    usage = cache.shutil.disk_usage(place.parent)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(RunError, match="0 MB needed, 0 MB free"):
        data.load(NAME, tree[0], "train")
    monkeypatch.undo()
    monkeypatch.setenv("DISTILL_CACHE", str(place))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        data.load(NAME, tree[0], "train")
    monkeypatch.undo()
    monkeypatch.setenv("DISTILL_CACHE", str(place))
    assert np.array_equal(data.load(NAME, tree[0], "train").images, tree[1])


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("DISTILL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.cache_folder() == tmp_path / "distillation-laws"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.cache_folder() == Path.home() / ".cache" / "distillation-laws"


# --- parts of a mapped set ------------------------------------------------------------------------------------------------------------


def test_parts_of_a_mapped_set_stay_on_disk(place: Path, tree: tuple[Path, np.ndarray]):
    whole = data.load(NAME, tree[0], "train")
    fitted, held_out = data.held_out_split(whole.labels, 0.25, 0)
    part = whole.subset(fitted)
    assert isinstance(part.images, data.Selection)
    assert part.images.base is whole.images
    assert part.images.shape == (60, 3, 8, 8)
    again = part.subset(part.labels == 1).subset(np.array([3, 0, -1]))
    assert isinstance(again.images, data.Selection)
    assert again.images.base is whole.images
    rows = fitted[whole.labels[fitted] == 1][[3, 0, -1]]
    assert np.array_equal(np.asarray(again.images), tree[1][rows])
    assert np.array_equal(part.images[5:9], tree[1][fitted[5:9]])
    assert np.array_equal(part.images[np.array([7, 2])], tree[1][fitted[[7, 2]]])
    assert np.array_equal(np.concatenate(list(data.chunks(part.images, 7))), tree[1][fitted])
    assert np.array_equal(whole.subset(held_out).labels, whole.labels[held_out])
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(part.images, copy=False)
