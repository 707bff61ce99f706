"""Image data sets in the layouts their makers publish, read into arrays without running any code from the files.

    cifar     python pickles, built from inert parts only                      (CIFAR-10, CIFAR-100 with fine or coarse labels)
    idx       IDX files, plain or gzipped                                      (MNIST, Fashion-MNIST, any of their form)
    arrays    images and labels in .npz, .safetensors or a pair of .npy
    folders   a picture tree: a folder a class, or a list of annotations       (ImageNet-1K and its subsets, Tiny-ImageNet-200, any tree)

A split is an `ImageSet`: images u in {0..255}^(n x channels x height x width), labels in {0..classes-1}. What is stored as bytes is read as
it lies; pictures are decoded once into a memory-mapped cache (`realdata.data.cache`). Every file fault is one line that names the path and
the mend. The named sets stand in `realdata.data.table`; a set of one's own is named by its description, such as folders:3x64x64:10.
"""

from realdata.data.cache import cache_folder
from realdata.data.imageset import Images, ImageSet, Selection, chunks, digest, held_out_split
from realdata.data.loading import load
from realdata.data.table import SOURCES, Source, default_root, source
from realdata.data.verification import FileCheck, verify

__all__ = [
    "SOURCES",
    "FileCheck",
    "ImageSet",
    "Images",
    "Selection",
    "Source",
    "cache_folder",
    "chunks",
    "default_root",
    "digest",
    "held_out_split",
    "load",
    "source",
    "verify",
]
