"""Any nn.Module as an inner problem: its gradient on a distilled set, and the products with its second derivatives."""

import numpy as np
import torch
from torch import nn

from realdata.augment import Augment
from realdata.bridge import ModuleProblem


class Gated(nn.Module):
    """A network with a layer that `realdata.lift` does not know: double backward serves it."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.out = nn.Linear(64, 16), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.inside(x.flatten(1)).chunk(2, dim=1)
        return self.out(value * torch.sigmoid(gate))


labels = torch.tensor([0, 1])
problem = ModuleProblem(Gated(), classes=2, ipc=1, labels=labels, augment=Augment("none"))
rng = np.random.default_rng(0)
theta, s, xi = problem.init(rng), (torch.randn(2, 1, 8, 8),), problem.draw(rng)
g = problem.gradient(theta, s, xi)
hc, mc = problem.second_order(theta, s, xi, g)  # what one step of the reverse sweep asks for
assert [x.shape for x in hc] == [x.shape for x in theta]
assert mc[0].shape == s[0].shape
