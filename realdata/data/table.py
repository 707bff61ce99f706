"""The data sets known by name, and the words that describe one's own.

A set is named as in `SOURCES`; one of photographs takes its side in pixels after the name (imagenette-64). One's own set is named by its
description FORMAT:CHANNELSxHEIGHTxWIDTH:CLASSES, where CLASSES is their number or their names:

    folders:3x64x64:10            pictures in train/CLASS/ and val/CLASS/ or test/CLASS/; the classes are the folders' names, sorted
    folders:3x64x64:cat,dog       the same, these classes of the tree only, in this order
    arrays:3x32x32:10             `images` and `labels` in train.npz or train.safetensors, or train-images.npy and train-labels.npy; so test
    idx:1x28x28:10                the four files of MNIST

The name says all that a distilled set must know of its data, so the set can be read where the data are not. Counts, labels and checksums of
the published sets: CIFAR (Krizhevsky 2009) and MNIST, Fashion-MNIST as their makers and torchvision state them; Nette and Woof are
fastai's; Fruit and Meow are the ImageNet classes 943 .. 957 and 281 .. 292 chosen by Cazenavette et al. 2022 (trajectory matching).
"""

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from sims.lab.files import RunError

SPLITS = ("train", "test")
SIDES = range(8, 1025)


@dataclass(frozen=True)
class Source:
    """How one data set lies on disk and what it is known to hold.

    format   cifar, idx, arrays or folders                  shape   (channels, height, width) of an image as it is used
    classes  their names                                    parts   split -> files: all of them (cifar, idx), or the first that is there
    named    whether `classes` are the folders' own names;  else they only count, and the tree's names are taken in sorted order
    folders  where the parts may lie below the root         home    folder below $DISTILL_DATA; "" for a set of one's own
    counts   split -> images, where that is known           md5     file name -> checksum of the published file (of its content if gzipped)
    labels   the pickle's entry with the labels (cifar)     mirror  whether a mirrored image keeps its class
    synsets  the classes' folders where they have other names than the classes
    """

    format: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]
    named: bool = True
    synsets: tuple[str, ...] = ()
    folders: tuple[str, ...] = (".",)
    home: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    md5: dict[str, str] = field(default_factory=dict)
    labels: str = "labels"
    mirror: bool = True

    @property
    def class_folders(self) -> tuple[str, ...]:
        """The folders of the classes, empty where the tree's own are taken."""
        return (self.synsets or self.classes) if self.named else ()


def source(name: str) -> Source:
    """The data set called `name` (see the head of the module)."""
    if name in SOURCES:
        return SOURCES[name]
    if ":" in name:
        return _described(name)
    base, _, side = name.rpartition("-")
    if base in SOURCES and SOURCES[base].format == "folders" and side.isdecimal() and len(side) < 5:
        if int(side) not in SIDES:
            raise RunError(f"the side of {base} must lie in {SIDES.start}..{SIDES.stop - 1} pixels: {name[:80]}")
        return replace(SOURCES[base], shape=(3, int(side), int(side)))
    raise RunError(
        f"unknown data set {name[:80]!r}: choose one of {', '.join(sorted(SOURCES))} (photographs also with their side: imagenette-64), "
        "or describe your own: folders:3x64x64:10, arrays:3x32x32:10, idx:1x28x28:10"
    )


def default_root(name: str) -> Path:
    """The folder of the data set below $DISTILL_DATA."""
    home = source(name).home
    place = os.environ.get("DISTILL_DATA")
    if not home:
        raise RunError(f"where are the files of {name}? give their folder as --root")
    if not place:
        raise RunError(f"where are the {name} files? give their folder as --root, or set DISTILL_DATA to the folder that holds {home}/")
    return Path(place) / home


_IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_TREE = {"train": ("train",), "test": ("val/val_annotations.txt", "val", "test")}
_ARRAYS = {split: (f"{split}.npz", f"{split}.safetensors", f"{split}-images.npy") for split in SPLITS}
_PARTS = {"folders": _TREE, "arrays": _ARRAYS, "idx": _IDX}


def _described(name: str) -> Source:
    found = re.fullmatch(r"(folders|arrays|idx):([13])x([0-9]{1,4})x([0-9]{1,4}):(.+)", name)
    if found is None:
        raise RunError(
            f"{name[:80]!r} describes no data set: write FORMAT:CHANNELSxHEIGHTxWIDTH:CLASSES, such as folders:3x64x64:10 "
            "(formats folders, arrays, idx; 1 or 3 channels)"
        )
    form, shape = found[1], (int(found[2]), int(found[3]), int(found[4]))
    if not set(shape[1:]) <= set(SIDES):
        raise RunError(f"the sides must lie in {SIDES.start}..{SIDES.stop - 1} pixels: {name[:80]}")
    if form == "folders" and shape[1] != shape[2]:
        raise RunError(f"pictures are cut to squares, so height and width must agree: {name[:80]}")
    named = not found[5].isdecimal()
    classes = tuple(found[5].split(",")) if named else tuple(map(str, range(min(int(found[5]), 100_001))))
    if not 2 <= len(classes) <= 100_000 or len(set(classes)) < len(classes) or not all(_plain(word) for word in classes):
        raise RunError(f"need 2 to 100000 different classes, by number or by names parted by commas: {name[:80]}")
    return Source(form, shape, classes, _PARTS[form], named=named)


def _plain(word: str) -> bool:
    return word not in ("", ".", "..") and word.isprintable() and Path(word).name == word


_CIFAR100_FINE = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar cattle
    chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
    kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange
    orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
    shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_CIFAR100_COARSE = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture insects
    large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals
    non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
"""
_CIFAR100 = Source(
    "cifar",
    (3, 32, 32),
    tuple(_CIFAR100_FINE.split()),
    {"train": ("train",), "test": ("test",)},
    folders=(".", "cifar-100-python", "cifar100/cifar-100-python"),
    home="cifar100",
    counts={"train": 50_000, "test": 10_000},
    md5={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    labels="fine_labels",
)
_MNIST = Source(
    "idx",
    (1, 28, 28),
    tuple(str(digit) for digit in range(10)),
    _IDX,
    folders=(".", "raw", "MNIST/raw", "mnist/raw"),
    home="mnist",
    counts={"train": 60_000, "test": 10_000},
    md5={
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    mirror=False,
)


def _photographs(side: int, home: str, classes: dict[str, str] | int, *folders: str, counts: dict[str, int] | None = None) -> Source:
    """A picture tree: classes are {synset: name}, or their number where the tree's own folders are the classes."""
    named = isinstance(classes, dict)
    names = tuple(classes.values()) if named else tuple(map(str, range(classes)))
    synsets = tuple(classes) if named else ()
    return Source("folders", (3, side, side), names, _TREE, named, synsets, (".", *folders), home, counts or {})


_NETTE = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw", "n03028079": "church",
    "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump", "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip
_WOOF = {
    "n02096294": "Australian terrier", "n02093754": "Border terrier", "n02111889": "Samoyed", "n02088364": "beagle",
    "n02086240": "Shih-Tzu", "n02089973": "English foxhound", "n02087394": "Rhodesian ridgeback", "n02115641": "dingo",
    "n02099601": "golden retriever", "n02105641": "Old English sheepdog",
}  # fmt: skip
_FRUIT = {
    "n07753275": "pineapple", "n07753592": "banana", "n07745940": "strawberry", "n07747607": "orange", "n07749582": "lemon",
    "n07768694": "pomegranate", "n07753113": "fig", "n07720875": "bell pepper", "n07718472": "cucumber", "n07742313": "Granny Smith",
}  # fmt: skip
_MEOW = {
    "n02123045": "tabby", "n02123159": "tiger cat", "n02123394": "Persian cat", "n02123597": "Siamese cat", "n02124075": "Egyptian cat",
    "n02129165": "lion", "n02129604": "tiger", "n02128925": "jaguar", "n02128757": "snow leopard", "n02127052": "lynx",
}  # fmt: skip

SOURCES: dict[str, Source] = {
    "cifar10": Source(
        "cifar",
        (3, 32, 32),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
        folders=(".", "cifar-10-batches-py", "cifar10/cifar-10-batches-py"),
        home="cifar10",
        counts={"train": 50_000, "test": 10_000},
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
    ),
    "cifar100": _CIFAR100,
    "cifar100-coarse": replace(_CIFAR100, classes=tuple(_CIFAR100_COARSE.split()), labels="coarse_labels"),
    "mnist": _MNIST,
    "fashion-mnist": replace(
        _MNIST,
        classes=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        folders=(".", "raw", "FashionMNIST/raw", "fashion-mnist/raw"),
        home="fashion-mnist",
        md5={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        mirror=True,
    ),
    "tiny-imagenet": _photographs(
        64, "tiny-imagenet", 200, "tiny-imagenet-200", counts={"train": 100_000, "test": 10_000}
    ),
    "imagenet1k": _photographs(64, "imagenet1k", 1000, "imagenet", "ILSVRC2012", counts={"train": 1_281_167, "test": 50_000}),
    "imagenette": _photographs(128, "imagenette", _NETTE, "imagenette2", "imagenette2-160", "imagenette2-320"),
    "imagewoof": _photographs(128, "imagewoof", _WOOF, "imagewoof2", "imagewoof2-160", "imagewoof2-320"),
    "imagefruit": _photographs(128, "imagenet1k", _FRUIT, "imagenet", "ILSVRC2012"),
    "imagemeow": _photographs(128, "imagenet1k", _MEOW, "imagenet", "ILSVRC2012"),
}  # fmt: skip
