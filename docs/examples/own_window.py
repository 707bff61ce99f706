"""A window policy: which steps of an unroll are differentiated. Here early windows are likelier than late ones."""

from dataclasses import dataclass

import numpy as np

from sims.student import RealSample, Student
from theory.distill.distiller import Distiller, distil, start
from theory.distill.inner_optim import SGD, Adam
from theory.distill.matching import PerformanceMatching
from theory.distill.truncation import Window


@dataclass(frozen=True)
class EarlyWindow:
    """start ~ geometric with ratio `share`, cut off at horizon - length."""

    horizon: int
    length: int
    share: float = 0.2

    def draw(self, rng: np.random.Generator) -> Window:
        first = min(int(rng.geometric(self.share)) - 1, self.horizon - self.length)
        return Window(first, first + self.length)


rng = np.random.default_rng(0)
x = rng.standard_normal((512, 16))
real, student = RealSample(x, x[:, 0] * x[:, 1]), Student(d=16, width=64, init_kind="gaussian")
distiller = Distiller(EarlyWindow(horizon=20, length=5), inner=SGD(0.1), outer=Adam(0.02))
first = start(distiller, (rng.standard_normal((8, 16)), rng.standard_normal(8)))
for record in distil(student, PerformanceMatching(real), distiller, first, seed=0, steps=20):
    assert record.window.length == 5
print("objective", record.value)
