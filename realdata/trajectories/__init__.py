"""`python -m realdata trajectories`: finished runs side by side: what their sets teach, and how they retrace experts."""

from realdata.trajectories.command import run
from realdata.trajectories.errors import Retracing

__all__ = ["Retracing", "run"]
