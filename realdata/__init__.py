"""The PyTorch runtime: the algorithms of `theory.distill` on networks and real images."""
