"""What `realdata plan` foretells beside what the run then takes: time, memory and disk, each in a process of its own, one after the other.

The claim is 25 %. Other work on the machine changes the time between the two; the shares are printed and stored, not asserted.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from realdata.plan import folder_bytes
from tests.realdata.sets import NAME, write_arrays
from tests.realdata.test_plan import RUN

RUNS = {
    "rat-bptt": ["--method", "rat-bptt", "--horizon", "60", "--window", "20"],
    "at-bptt": ["--method", "at-bptt", "--horizon", "60", "--window", "20", "--adaptive.spread", "5"],
    "bptt": ["--method", "bptt", "--horizon", "30"],
}


@pytest.mark.parametrize("method", RUNS)
def test_foretold_and_taken(benchmark, tmp_path: Path, method: str) -> None:
    write_arrays(tmp_path / "data", np.random.default_rng(0), train=2000)
    words = ["--dataset", NAME, "--preset", "cpu", "--root", str(tmp_path / "data"), "--network.depth", "3", *RUNS[method]]
    words += ["--network.width", "64", "--ipc", "10", "--outer-steps", "40", "--curve-every", "10", "--threads", "1"]
    place, out = tmp_path / "plan.json", tmp_path / "run"
    plan = [sys.executable, "-m", "realdata", "plan", *words, "--json", str(place)]
    benchmark.pedantic(subprocess.run, (plan,), {"check": True, "capture_output": True}, rounds=1)
    done = subprocess.run([sys.executable, "-c", RUN, "distill", *words, "--out", str(out)], check=True, capture_output=True, text=True)
    foretold = json.loads(place.read_text())
    taken = {
        "seconds": json.loads((out / "summary.json").read_text())["seconds"],
        "memory": int(done.stdout.split()[-1]),
        "disk": folder_bytes(out),
    }
    shares = {name: foretold[name] / value for name, value in taken.items()}
    assert all(abs(shares[name] - 1.0) <= 0.25 for name in ("memory", "disk")), shares
    benchmark.extra_info.update({"foretold": foretold, "taken": taken, "shares": shares})
    print(f"\n{method}: foretold / taken " + ", ".join(f"{name} {share:.2f} (taken {taken[name]:.4g})" for name, share in shares.items()))
