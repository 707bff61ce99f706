"""Picture trees: classes and labels, sizes and colours, annotations, links, and the published trees where they are."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from realdata import data
from realdata.data import cache
from realdata.data.folders import decode
from sims.lab.files import RunError
from tests.realdata.files import picture, some_pixels, write_tiny, write_tree
from tests.strategies import generators


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("test", ["val", "test"])
def test_a_tree_is_read_class_by_class(tmp_path: Path, test: str):
    expected = write_tree(tmp_path, np.random.default_rng(0), ("b", "a", "c"), each=2, test=test)
    (tmp_path / "train" / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "train" / ".hidden").mkdir()
    order = [2, 3, 0, 1, 4, 5]  # the tree was written b, a, c
    for split in ("train", "test"):
        images = data.load("folders:3x8x8:3", tmp_path, split)
        assert images.classes == ("a", "b", "c")
        assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert np.array_equal(images.images, expected[split][order])
    named = data.load("folders:3x8x8:c,b", tmp_path, "train")
    assert named.classes == ("c", "b")
    assert np.array_equal(named.images, expected["train"][[4, 5, 0, 1]])
    grey = data.load("folders:1x8x8:3", tmp_path, "train")
    assert grey.images.shape == (6, 1, 8, 8)


def test_class_folders_must_be_those_expected(tmp_path: Path):
    write_tree(tmp_path, np.random.default_rng(0))
    with pytest.raises(RunError, match="has 2 class folders, expected 3"):
        data.load("folders:3x8x8:3", tmp_path, "train")
    with pytest.raises(RunError, match="train/z is missing"):
        data.load("folders:3x8x8:a,z", tmp_path, "train")
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(RunError, match="has no picture of class empty"):
        data.load("folders:3x8x8:3", tmp_path, "train")


@given(rng=generators, size=st.tuples(st.integers(1, 90), st.integers(1, 90)), side=st.integers(8, 40))
def test_pictures_are_scaled_by_the_short_side_and_cut_to_the_centre(
    tmp_path_factory: pytest.TempPathFactory, rng: np.random.Generator, size: tuple[int, int], side: int
):
    path = tmp_path_factory.mktemp("picture") / "x.png"
    path.write_bytes(picture(some_pixels(rng, *size)))
    with Image.open(path) as image:
        width, height = image.size
        short = min(width, height)
        scaled = (side if width == short else int(side * width / short), side if height == short else int(side * height / short))
        whole = np.asarray(image.resize(scaled, Image.Resampling.BILINEAR))
    top, left = round((scaled[1] - side) / 2), round((scaled[0] - side) / 2)
    expected = whole[top : top + side, left : left + side].transpose(2, 0, 1)
    assert np.abs(decode(path, (3, side, side)).astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "L"), ("PNG", "P"), ("PNG", "1"), ("PNG", "RGBA"), ("PNG", "LA"), ("BMP", "RGB"), ("PPM", "RGB"), ("WEBP", "RGB"),
     ("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK")],
)  # fmt: skip
def test_every_colour_mode_becomes_rgb(tmp_path: Path, form: str, mode: str):
    pixels = np.kron(some_pixels(np.random.default_rng(0), 2, 2), np.ones((8, 8, 1), dtype=np.uint8))
    path = tmp_path / "x.JPEG"  # the content tells the form, not the name: ImageNet has a PNG under such a name
    path.write_bytes(picture(pixels, form, mode))
    found = decode(path, (3, 16, 16)).transpose(1, 2, 0).astype(int)
    with Image.open(path) as image:
        assert np.array_equal(found, np.asarray(image.convert("RGB")))
    if mode in ("RGB", "RGBA", "CMYK"):
        assert np.abs(found - pixels)[4:12:8, 4:12:8].max() <= 8  # in the middle of each block


def test_what_is_no_picture_is_refused(tmp_path: Path):
    path = tmp_path / "x.png"
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(path)
    with pytest.raises(RunError, match=r"x.png is no picture .*mode I;16"):
        decode(path, (3, 8, 8))
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(RunError, match="is no picture"):
        decode(path, (3, 8, 8))


def test_tiny_imagenets_layout(tmp_path: Path):
    lines = write_tiny(tmp_path / "tiny-imagenet-200", np.random.default_rng(0), each=4)
    for split in ("train", "test"):
        images = data.load("folders:3x64x64:2", tmp_path / "tiny-imagenet-200", split)
        assert images.classes == ("n01", "n02")
        assert images.labels.tolist() == [0] * 4 + [1] * 4
        assert np.array_equal(images.images[1][0], images.images[1][2])  # a greyscale one
    first = data.load("folders:3x64x64:n02,n01", tmp_path / "tiny-imagenet-200", "test")
    assert first.labels.tolist() == [0] * 4 + [1] * 4
    files = sorted(line.split("\t")[0] for line in lines if "\tn02" in line)
    path = tmp_path / "tiny-imagenet-200" / "val" / "images" / files[0]
    assert np.array_equal(first.images[0], decode(path, (3, 64, 64)))
    with pytest.raises(RunError, match="train has 2 class folders, expected 200"):
        data.load("tiny-imagenet", tmp_path, "train")


def test_a_class_that_is_nowhere_is_named(tmp_path: Path):
    write_tiny(tmp_path, np.random.default_rng(0))
    with pytest.raises(RunError, match="n03 is missing"):
        data.load("folders:3x64x64:n01,n02,n03", tmp_path, "train")
    with pytest.raises(RunError, match="no picture of class n03"):
        data.load("folders:3x64x64:n01,n02,n03", tmp_path, "test")


def test_links_lead_elsewhere_in_the_tree_and_not_out_of_it(tmp_path: Path):
    root = tmp_path / "root"
    expected = write_tree(root, np.random.default_rng(0))
    (root / "train" / "a" / "linked.png").symlink_to(root / "train" / "b" / "b_00.png")
    images = data.load("folders:3x8x8:2", root, "train")
    assert np.array_equal(images.images[3], expected["train"][3])
    (tmp_path / "whole").symlink_to(root)
    assert len(data.load("folders:3x8x8:2", tmp_path / "whole", "train")) == 7
    outside = tmp_path / "outside.png"
    outside.write_bytes(picture(some_pixels(np.random.default_rng(0), 8, 8)))
    (root / "train" / "a" / "out.png").symlink_to(outside)
    with pytest.raises(RunError, match=r"out.png is a link out of"):
        data.load("folders:3x8x8:2", root, "train")
    (root / "train" / "a" / "out.png").unlink()
    os.mkfifo(root / "train" / "a" / "pipe.png")
    with pytest.raises(RunError, match=r"pipe.png is no file"):
        data.load("folders:3x8x8:2", root, "train")


def test_imagenet_and_its_subsets_are_known():
    assert data.source("imagenette-64").shape == (3, 64, 64)
    assert data.source("imagenet1k").shape == (3, 64, 64)
    assert len(data.source("imagenet1k").classes) == 1000
    for name in ("imagenette", "imagewoof", "imagefruit", "imagemeow"):
        known = data.source(f"{name}-128")
        assert known == data.source(name)
        assert len(set(known.class_folders)) == len(set(known.classes)) == 10
        assert all(len(s) == 9 and s[0] == "n" and s[1:].isdecimal() for s in known.class_folders)
    for name in ("imagenette-7", "imagenette-2000"):
        with pytest.raises(RunError, match=r"must lie in 8\.\.1024"):
            data.source(name)
    with pytest.raises(RunError, match="unknown data set 'cifar10-64'"):
        data.source("cifar10-64")


@pytest.mark.parametrize("name", ["imagenette", "imagewoof", "imagefruit", "imagemeow"])
def test_subsets_are_read_from_a_tree_with_other_classes(tmp_path: Path, name: str):
    """Labels follow the list of synsets, whatever else the tree holds."""
    known, rng = data.source(f"{name}-8"), np.random.default_rng(0)
    place = known.folders[-1]
    tree = ("n00000001", *known.class_folders, "n99999999")
    expected = write_tree(tmp_path / place, rng, tree, each=2)
    for split in ("train", "test"):
        images = data.load(f"{name}-8", tmp_path, split)
        assert images.classes == known.classes
        assert np.array_equal(images.labels, np.repeat(np.arange(10), 2))
        assert np.array_equal(images.images, expected[split][2:-2])
    with pytest.raises(RunError, match="has 12 class folders, expected 1000"):
        data.load("imagenet1k", tmp_path / place, "train")


def test_counts_are_checked_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tree(tmp_path, np.random.default_rng(0))
    known = replace(data.source("folders:3x8x8:2"), counts={"train": 7})
    monkeypatch.setitem(data.SOURCES, "mine", known)
    monkeypatch.setattr(cache, "decode", None)
    with pytest.raises(RunError, match="the train split has 6 images, expected 7"):
        data.load("mine", tmp_path, "train")
    assert "expected 7" in {c.file: c for c in data.verify("mine", tmp_path)}["(train)"].fault


def test_verify_finds_the_picture_that_cannot_be_read(tmp_path: Path):
    write_tree(tmp_path, np.random.default_rng(0))
    assert [c.fault for c in data.verify("folders:3x8x8:2", tmp_path)] == [""] * 6
    (tmp_path / "train" / "b" / "b_01.png").write_bytes(b"no picture")
    checks = {(c.file, c.split): c for c in data.verify("folders:3x8x8:2", tmp_path)}
    assert "1 of 3 cannot be read" in checks["b", "train"].fault
    assert "b_01.png" in checks["b", "train"].fault
    assert checks["a", "train"].fault == checks["(test)", "test"].fault == ""
    assert checks["(train)", "train"].fault == "pictures of 1 classes cannot be read"
    assert {c.checksum for c in checks.values()} == {"unknown"}


def test_published_picture_trees(data_root: Path):
    nette, tiny = data_root / "imagenette-mini", data_root / "tiny-imagenet-10" / "tiny-imagenet-200"
    if not nette.is_dir() or not tiny.is_dir():
        pytest.skip(f"no picture trees under {data_root}")
    images = data.load("imagenette-64", nette, "train")
    assert np.bincount(images.labels).tolist() == [80] * 10
    place = nette / "train" / "n03445777"
    assert np.array_equal(images.images[640], decode(min(place.iterdir(), key=lambda path: path.name), (3, 64, 64)))
    images = data.load("imagenette-64", nette, "test")
    assert np.bincount(images.labels).tolist() == [30] * 10
    assert images.classes[8] == "golf ball"
    place = next((nette / "val" / "n03445777").iterdir()).parent
    first = sorted(place.iterdir(), key=lambda path: path.name)[0]
    assert np.array_equal(images.images[240], decode(first, (3, 64, 64)))
    images = data.load("folders:3x64x64:10", tiny, "train")
    assert np.bincount(images.labels).tolist() == [500] * 10
    place = tiny / "train" / images.classes[3] / "images"
    assert np.array_equal(images.images[1500], decode(min(place.iterdir(), key=lambda path: path.name), (3, 64, 64)))
    images = data.load("folders:3x64x64:10", tiny, "test")
    assert np.bincount(images.labels).tolist() == [50] * 10
    assert images.classes == tuple((tiny / "wnids.txt").read_text().split())
    assert any(np.array_equal(x[0], x[1]) and np.array_equal(x[1], x[2]) for x in images.images)  # greyscale ones
    annotated = dict(line.split("\t")[:2] for line in (tiny / "val" / "val_annotations.txt").read_text().splitlines())
    first = min(name for name, synset in annotated.items() if synset == images.classes[3])
    assert np.array_equal(images.images[150], decode(tiny / "val" / "images" / first, (3, 64, 64)))
