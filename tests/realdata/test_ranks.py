"""Several ranks of one distillation: the set of one process bit for bit, whatever their number; a lost rank, a restart by torchrun.

Ranks are processes of their own that meet by gloo on this machine, the real batch of 40 images in chunks of 7 (so the last one is short).
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realdata import distill
from realdata.__main__ import main
from realdata.checkpoint import read_checkpoint
from realdata.ranks import ALONE, joined
from realdata.steps import read_steps
from tests.realdata.processes import CONTEXT, carry_out, free_port, rank_environment
from tests.realdata.sets import NAME, write_arrays
from theory.distill.problem import Diverged

LONGEST = 300.0  # seconds


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_arrays(folder, np.random.default_rng(0))
    return folder


def command(images: Path, out: Path, *more: str) -> list[str]:
    words = ["distill", "--dataset", NAME, "--root", str(images), "--out", str(out), "--preset", "dev-tiny", "--threads", "1"]
    return [*words, "--chunk", "7", "--real-batch", "40", "--outer-steps", "4", "--curve-networks", "3", *more]


def rank(words: list[str], environment: dict[str, str], errors: Path, killed_at: int | None) -> None:
    """One rank; with `killed_at` it dies in that outer step."""
    original = distill.distil

    def dying(*arguments: Any) -> Iterator[Any]:
        for record in original(*arguments):
            if record.step == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield record

    distill.distil = dying
    carry_out(words, environment, errors)


def ranks(count: int, words: list[str], errors: Path, killed: dict[int, int] | None = None) -> tuple[list[int | None], list[list[str]]]:
    """(exit status, lines on stderr) of every rank; `killed` has the outer step in which a rank dies."""
    port, files = free_port(), [errors / f"rank{k}.txt" for k in range(count)]
    arguments = [(words, rank_environment(k, count, port), files[k], (killed or {}).get(k)) for k in range(count)]
    processes = [CONTEXT.Process(target=rank, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LONGEST)
        process.kill()  # one that hangs; one that has ended does not mind
        process.join()
    lines = [[line for line in file.read_text().splitlines() if line.startswith(("error", "Trace", "interr"))] for file in files]
    return [process.exitcode for process in processes], lines


def results(out: Path) -> dict[str, Any]:
    """The artefact, the curve, and what every outer step did."""
    files = {path.name: path.read_bytes() for path in (*sorted((out / "distilled").iterdir()), out / "figures" / "curve.csv")}
    return files | {"steps": [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in read_steps(out)]}


@pytest.mark.parametrize(
    ("count", "more"),
    [
        (2, []),
        (3, ["--method", "dc", "--window", "2"]),
        (2, ["--starts", "3", "--network.norm", "batch"]),
        (
            4,
            [
                "--starts",
                "2",
                "--method",
                "at-bptt",
                "--adaptive.spread",
                "1",
                "--adaptive.stage",
                "middle",
                "--hessian-rank",
                "1",
                "--learn-labels",
            ],
        ),
    ],
    ids=["chunks by 2", "dc by 3", "3 starts by 2", "2 starts by two teams of 2"],
)
def test_the_number_of_ranks_changes_no_bit(images: Path, tmp_path: Path, count: int, more: list[str]):
    main(command(images, tmp_path / "alone", *more))
    found = ranks(count, command(images, tmp_path / "shared", *more), tmp_path)
    assert found == ([0] * count, [[]] * count)
    assert results(tmp_path / "shared") == results(tmp_path / "alone")
    alone, shared = (read_checkpoint(tmp_path / name, torch.device("cpu")) for name in ("alone", "shared"))
    assert alone is not None
    assert shared is not None
    assert all(torch.equal(a, b) for a, b in zip(alone.outer.s, shared.outer.s, strict=True))


def test_a_lost_rank_ends_in_one_line_and_the_run_goes_on_without_it(images: Path, tmp_path: Path):
    """Checkpoints are far apart, so what is found there was stored when the loss was noticed."""
    words = command(images, tmp_path / "run", "--checkpoint-every", "100")
    (status, killed), (line, _) = ranks(2, words, tmp_path, killed={1: 2})
    assert (status, killed) == (2, -signal.SIGKILL)
    assert len(line) == 1
    assert "rank 0 of 2 has lost another one: finished work is kept, the same command continues" in line[0]
    state = read_checkpoint(tmp_path / "run", torch.device("cpu"))
    assert state is not None
    assert state.outer.step in (2, 3)
    assert ranks(3, words, tmp_path) == ([0] * 3, [line, [], []])  # on another number of ranks
    record = json.loads((tmp_path / "run" / "env.json").read_text())
    assert [start["backend"] for start in (record, *record["resumed"])] == ["torch: cpu, 2 ranks", "torch: cpu, 3 ranks"]
    main(command(images, tmp_path / "whole", "--checkpoint-every", "100"))
    assert results(tmp_path / "run") == results(tmp_path / "whole")


@pytest.mark.parametrize(
    ("more", "status", "word"),
    [(["--real-batch", "1000"], 2, "real_batch=1000"), (["--outer-lr", "1e38"], 1, "outer update diverged: ||S|| = inf")],
)
def test_errors_are_said_once(images: Path, tmp_path: Path, more: list[str], status: int, word: str):
    found = ranks(2, command(images, tmp_path / "run", "--curve-every", "4", *more), tmp_path)
    assert found[0] == [status, 1]
    assert [len(lines) for lines in found[1]] == [1, 0]
    assert word in found[1][0][0]


def unequal(environment: dict[str, str], out: Path, failing: tuple[int, str]) -> None:
    """One of two ranks in a team; the failing one diverges alone, before an exchange or after all of them."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    mine, place = int(environment["RANK"]), (torch.ones(2),)

    def work() -> float:
        if failing == (mine, "before"):
            raise Diverged(f"rank {mine} alone")
        theta = ranks.agreed(place)
        total = sum(float(part[0].sum()) for part in ranks.chunks([lambda k=k: (k * theta[0],) for k in range(3)], place))
        if failing == (mine, "after"):
            raise Diverged(f"rank {mine} alone")
        return total

    with joined("cpu", 1) as ranks:
        try:
            out.write_text(f"{list(ranks.shared([work], team=ranks.team))}")
        except Diverged as error:
            out.write_text(f"{error}")
        except SystemExit:
            out.write_text("silent")


@pytest.mark.parametrize(
    ("failing", "ends"),
    [
        ((2, ""), ["[6.0]", "[6.0]"]),
        ((0, "before"), ["rank 0 alone", "silent"]),
        ((1, "before"), ["rank 1 alone", "silent"]),
        ((1, "after"), ["rank 1 alone", "silent"]),
    ],
)
def test_a_rank_that_diverges_alone_ends_its_team(tmp_path: Path, failing: tuple[int, str], ends: list[str]):
    port, files = free_port(), [tmp_path / f"rank{k}.txt" for k in range(2)]
    processes = [CONTEXT.Process(target=unequal, args=(rank_environment(k, 2, port), files[k], failing)) for k in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30.0)
        process.kill()
        process.join()
    assert [file.read_text() if file.exists() else None for file in files] == ends


def test_under_batch_norm_a_run_keeps_its_chunk(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Other norms take any; so does a folder that began before it was stored."""
    for norm in ("instance", "batch"):
        main(command(images, tmp_path / norm, "--network.norm", norm, "--outer-steps", "1"))
        asked = command(images, tmp_path / norm, "--network.norm", norm, "--outer-steps", "1", "--chunk", "9")
        if norm == "instance":
            main(asked)
            continue
        with pytest.raises(SystemExit):
            main(asked)
        assert "holds another configuration (chunk = 7 there, 9 asked)" in capfd.readouterr().err
        settings = tmp_path / norm / "config.toml"
        settings.write_text(settings.read_text().replace("chunk = 7\n", ""))
        main(asked)
        assert "chunk" not in settings.read_text()


PROGRAM = """
import os, sys
from tests.realdata.test_ranks import rank
first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
rank(sys.argv[2:], {}, sys.argv[1], 3 if first and os.environ["RANK"] == "1" else None)
"""


def test_torchrun_starts_lost_ranks_again(images: Path, tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.1"]
    words = [sys.executable, *launch, str(tmp_path / "program.py"), str(tmp_path / "errors.txt"), *command(images, tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=LONGEST, check=False)
    assert done.returncode == 0, done.stderr
    main(command(images, tmp_path / "whole"))
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("auto", 5) as found:
        assert found is ALONE
    works = [lambda k=k: k for k in range(3)]
    assert list(ALONE.shared(works)) == [0, 1, 2]
    assert ALONE.told(lambda: 7) == ALONE.first_does(lambda: 7) == 7
