"""The log of outer steps: timing changes nothing, rows say what was done, a log goes on where its run does."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from realdata.augment import Augment
from realdata.bridge import ModuleProblem, RealImages
from realdata.networks import ConvNetConfig, convnet
from realdata.steps import COLUMNS, COUNTS, FILE, PHASES, StepLog, Watch, read_steps
from sims.lab.run import RunFolder
from theory.distill.adaptive import AdaptiveWindow
from theory.distill.curvature import LowRankHessian
from theory.distill.distiller import Distiller, distil, start
from theory.distill.inner_optim import SGD, Adam
from theory.distill.matching import GradientMatching, PerformanceMatching
from theory.distill.truncation import FixedWindow

CPU = torch.device("cpu")


def scene():
    rng = np.random.default_rng(0)
    module = convnet(ConvNetConfig(depth=1, width=2), (1, 4, 4), 2)
    problem = ModuleProblem(module, 2, 1, torch.arange(2), Augment("flip"), dtype=torch.float64)
    images, labels = torch.from_numpy(rng.standard_normal((6, 1, 4, 4))), torch.from_numpy(rng.integers(0, 2, 6))
    return problem, RealImages(module, images, labels, 4, Augment("none")), (torch.from_numpy(rng.standard_normal((2, 1, 4, 4))),)


DISTILLERS = {
    "adaptive": Distiller(AdaptiveWindow(5, 3, 1), SGD(0.1), Adam(0.1)),
    "low rank": Distiller(FixedWindow(5, 3), Adam(0.1), Adam(0.1), hessian=LowRankHessian(1, 1, 0)),
}


@pytest.mark.parametrize("objective", [PerformanceMatching, GradientMatching])
@pytest.mark.parametrize("name", DISTILLERS)
def test_a_timed_run_is_the_untimed_one_and_its_rows_say_what_was_done(tmp_path: Path, name: str, objective: type):
    problem, real, s = scene()
    distiller, log = DISTILLERS[name], StepLog(Watch(CPU), [])
    plain = list(distil(problem, objective(real), distiller, start(distiller, s), 3, 4))
    for record in distil(log.problem(problem), log.objective(objective(real)), distiller, start(distiller, s), 3, 4):
        assert torch.equal(record.state.s[0], plain[record.step].state.s[0])
        log.add(record, 10.0)
    with RunFolder.open(tmp_path / "run", {}) as folder:
        log.save(folder)
    rows = read_steps(tmp_path / "run")
    assert len(rows) == 4
    for row, record in zip(rows, plain, strict=True):
        assert tuple(row) == COLUMNS
        assert (row["step"], row["start"], row["stop"]) == (record.step, record.window.start, record.window.stop)
        assert (row["value"], row["grad_norm"], row["effective_positions"]) == (record.value, record.grad_norm, record.effective_positions)
        assert [row[count] for count in COUNTS] == [getattr(record.cost, count) for count in COUNTS]
        seconds = [row[f"seconds_{phase}"] for phase in PHASES]
        assert all(0.0 < x < 10.0 for x in seconds), "every phase was entered"
        assert row["seconds"] == 10.0


def test_phases_add_up_and_start_anew_at_each_reading():
    watch = Watch(CPU)
    began = time.perf_counter()
    for name in ("plain", "real", "plain"):
        with watch.phase(name):
            time.sleep(0.002)
    whole, read = time.perf_counter() - began, watch.read()
    assert read["plain"] >= 0.004
    assert read["real"] >= 0.002
    assert read["product"] == 0.0
    assert sum(read.values()) <= whole
    assert watch.read() == dict.fromkeys(PHASES, 0.0)


def test_a_log_goes_on_where_its_run_does(tmp_path: Path):
    problem, real, s = scene()
    distiller = DISTILLERS["adaptive"]
    with RunFolder.open(tmp_path / "run", {}) as folder:
        assert StepLog.open(folder.path, 0, CPU).rows == []
        log = StepLog.open(folder.path, 0, CPU)
        records = list(distil(problem, PerformanceMatching(real), distiller, start(distiller, s), 3, 4))
        for record in records:
            log.add(record, 1.0)
        log.save(folder)
        again = StepLog.open(folder.path, 2, CPU)
        assert [row[0] for row in again.rows] == [0, 1], "rows beyond the checkpoint are done again"
        for record in records[2:]:
            again.add(record, 1.0)
        first = (folder.path / FILE).read_text().splitlines()
        again.save(folder)
        second = (folder.path / FILE).read_text().splitlines()
    untimed = len(PHASES)
    assert [line.split(",")[:-untimed] for line in first] == [line.split(",")[:-untimed] for line in second]
