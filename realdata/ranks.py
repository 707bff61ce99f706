"""The processes that share one distillation (`torchrun`, on any number of machines): who does what, and how the results come together.

    R ranks      in G = gcd(J, R) teams of R / G neighbours
    starts       the J inner runs of an update go round the teams
    chunks       the chunks of a real batch go round the ranks of a team
    networks     those of a measurement go round all ranks

Neither J nor the chunks know of R, each piece gives the same wherever it is worked off, and sums are taken in the order of chunks and
starts: the result does not depend on R. All else every rank does for itself, alike. Tensors travel through the host (gloo): beside an
unroll of hundreds of steps the gradients of a network are little, and a rank that dies is noticed at the next exchange. On a GPU the ranks
of a team differ by rounding, so one may diverge alone: before each exchange of the team, and at the end of each piece, all tell each other.
"""

import io
import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from realdata.lift import Tensors
from sims.lab.files import RunError

WAIT = timedelta(hours=3)  # for a rank that is silent, not dead: the first one may be decoding a large data set

T = TypeVar("T")


class RankLost(RunError):
    """Another process of the run is gone."""


class Elsewhere(Exception):
    """A rank of the team has ended its piece of work in an error, which this one carries."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """This process among the `count` of a run, in teams of `team` neighbours that work on one start together."""

    rank: int = 0
    count: int = 1
    team: int = 1
    group: Any = None
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def told(self, work: Callable[[], T]) -> T:
        """What the work gives on rank 0, on every rank."""
        return work() if self.count == 1 else self._sent(self._outcome(work) if self.first else None, 0)

    def first_does(self, work: Callable[[], T]) -> T | None:
        """What the work gives on rank 0, None elsewhere, once it is done there."""
        found: list[T] = []
        self.told(lambda: found.append(work()))
        return found[0] if found else None

    def shared(self, works: Iterable[Callable[[], T]], team: int = 1) -> Iterator[T]:
        """What every piece of work gives, in order; they go round the ranks, or round teams that do each as a whole."""
        if self.count == 1:
            yield from (work() for work in works)
            return
        works, mine = iter(works), self.rank // team
        while turn := list(islice(works, self.count // team)):
            found = self._outcome(turn[mine], team) if mine < len(turn) else None
            for k in range(len(turn)):
                yield self._sent(found, k * team)

    def chunks(self, works: Sequence[Callable[[], Tensors]], like: Tensors) -> Iterator[Tensors]:
        """What every piece of work gives, in order, tensors in the shapes of `like`; they go round the ranks of the team."""
        if self.team == 1:
            yield from (work() for work in works)
            return
        place = self.rank % self.team
        for start in range(0, len(works), self.team):
            flat = _flat(works[start + place]() if start + place < len(works) else like)
            found = [torch.empty_like(flat) for _ in range(self.team)]
            self._in_step()
            with self._noticing():
                dist.all_gather(found, flat, group=self.group)
            yield from (_shaped(row, like) for row in found[: len(works) - start])

    def agreed(self, theta: Tensors) -> Tensors:
        """Those of the team's first rank: on a GPU the inner runs of its ranks differ by rounding."""
        if self.team == 1:
            return theta
        flat = _flat(theta)
        self._in_step()
        with self._noticing():
            dist.broadcast(flat, self.rank - self.rank % self.team, group=self.group)
        return _shaped(flat, theta)

    def _outcome(self, work: Callable[[], T], team: int = 1) -> T | Exception:
        """What the work gives, or the error that it ends in on a rank of the team, for all ranks to know."""
        try:
            try:
                found = work()
            except RankLost:
                raise
            except (RunError, FloatingPointError) as error:
                found = error
            if team > 1:
                self._in_step(found if isinstance(found, Exception) else None)
        except Elsewhere as error:
            return error.args[0]
        return found

    def _in_step(self, error: Exception | None = None) -> None:
        """Tells the team of this rank's error, or that it has none; Elsewhere with the first one among its ranks."""
        failed = [torch.empty(1) for _ in range(self.team)]
        with self._noticing():
            dist.all_gather(failed, torch.full((1,), float(error is not None)), group=self.group)
        if not any(failed):
            return
        errors: list[Any] = [None] * self.team
        with self._noticing():
            dist.all_gather_object(errors, error, group=self.group)
        raise Elsewhere(next(one for one in errors if one is not None))

    def _sent(self, found: Any, source: int) -> Any:
        """`found` of rank `source` on every rank. An error is raised by rank 0, which says it; the others end silently."""
        box, pack = [b""], io.BytesIO()
        if self.rank == source:
            torch.save(found, pack)
            box = [pack.getvalue()]
        with self._noticing():
            dist.broadcast_object_list(box, source)
        # Any object may come, for it comes from a process of this very run.
        got = torch.load(io.BytesIO(box[0]), map_location=self.device, weights_only=False)
        if isinstance(got, Exception):
            raise got if self.first else SystemExit(1)
        return got

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo's word for a connection that is closed, or silent for too long
            kept = "finished work is kept, the same command continues, on any number of ranks"
            raise RankLost(f"rank {self.rank} of {self.count} has lost another one: {kept}") from error


ALONE = Ranks()


def _flat(tensors: Tensors) -> torch.Tensor:
    return torch.cat([x.detach().reshape(-1) for x in tensors]).cpu()


def _shaped(flat: torch.Tensor, like: Tensors) -> Tensors:
    parts = flat.to(like[0].device).split([x.numel() for x in like])
    return tuple(part.view_as(x) for part, x in zip(parts, like, strict=True))


def _stop(*_: Any) -> NoReturn:
    """The first signal to end; torchrun sends more of them while rank 0 still writes its checkpoint."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def joined(device: str, starts: int) -> Iterator[Ranks]:
    """The ranks that torchrun has started for a run of so many starts an update, each with its own GPU; ALONE without torchrun."""
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    place, team = "cpu", count // math.gcd(starts, count)
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        place = "cuda"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        # torchrun keeps one store over its restarts: without a prefix a rank may find the address of one that is dead.
        store, rank, count = next(dist.rendezvous("env://", timeout=WAIT))
        attempt = f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')} of {count} ranks"
        dist.init_process_group("gloo", timeout=WAIT, store=dist.PrefixStore(attempt, store), rank=rank, world_size=count)
        yield Ranks(rank, count, team, dist.new_subgroups(team)[0] if 1 < team < count else None, place)
    except (FloatingPointError, KeyboardInterrupt, SystemExit) as error:
        if rank == 0:
            raise
        if not isinstance(error, KeyboardInterrupt):
            with suppress(RuntimeError):
                dist.broadcast_object_list([None], 0)  # never comes: it fails when rank 0 has stored the last good state, and ends
        raise SystemExit(1) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
