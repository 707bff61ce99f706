"""Expert trajectories: training runs on real data with a snapshot an epoch, one folder a recipe.

    recipe     what determines an expert, and the name of its folder
    shards     snapshots on disk: one file each, written whole, read when asked for
    training   experts one after another, left and taken up at any moment
    quality    how good and how flat they are

`theory.distill.trajectory` reads them as its Experts.
"""

from realdata.experts.recipe import FlatConfig, Recipe
from realdata.experts.shards import StoredExperts, open_experts
from realdata.experts.training import run

__all__ = ["FlatConfig", "Recipe", "StoredExperts", "open_experts", "run"]
