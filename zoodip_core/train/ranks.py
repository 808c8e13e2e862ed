"""The processes that ``torchrun`` starts for one run: each is a rank, with the model on its own device.

What they tell each other, a step's losses above all, goes through the key-value store of torch.distributed, to which
``MASTER_ADDR`` and ``MASTER_PORT`` lead. A collective would be no faster with a few numbers; it could not say which
rank it waits for, nor be left when a stop is asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from safetensors.torch import load, save

from ..base.errors import ConfigError, RanksError, for_user
from ..base.stopping import Stopped, check_stop
from ..base.texts import how_many
from ..base.version import __version__
from .settings import ALL

PATIENCE = 60.0
"""Seconds without a sign of life after which a rank is given up. One that loads for longer gives signs."""
_SIGNS = 12
"""Signs of life in that time."""
_LONGEST_LOOK = 0.05
"""Seconds between two looks at the store, at most; at first it is looked at again at once."""
_LAST_SECONDS = 10.0
"""That the first rank stays for others to read its last words, where it keeps the store itself."""

Job = TypeVar("Job")


@dataclass(frozen=True)
class Place:
    """What torchrun's environment says.

    Args:
        rank: of this process, from 0.
        size: the number of ranks.
        local: its number on this computer.
        address: of the store's computer.
        port: of the store there.
        hosts: whether this process keeps the store; else torchrun does, or rank 0.
        attempt: how often torchrun has started the ranks anew.
    """

    rank: int
    size: int
    local: int
    address: str
    port: int
    hosts: bool = False
    attempt: int = 0


def place_in(environment: Mapping[str, str]) -> Place | None:
    """This process's place among the ranks, None if it is alone.

    Raises:
        ConfigError: the variables make no sense.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if not all(environment.get(name) for name in names):
        return None
    try:
        rank, size, local, port = (int(environment[name]) for name in names if name != "MASTER_ADDR")
        attempt = int(environment.get("TORCHELASTIC_RESTART_COUNT") or 0)
    except ValueError:
        rank = size = local = port = attempt = -1
    if not (0 <= rank < size and 0 <= local < size and 0 < port < 65536):
        said = ", ".join(f"{name}={environment[name]!r}" for name in names)
        raise ConfigError(f"{said}: not what torchrun sets; start the ranks with torchrun, or unset these variables")
    hosts = rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return Place(rank, size, local, environment["MASTER_ADDR"], port, hosts, attempt) if size > 1 else None


# ---------------------------------------------------------------- what a run asks of them


class Ranks:
    """The ranks of a run; without a line to others one alone, whose share is everything.

    All must ask for the same in the same order. The first one leads: it talks to the user and keeps the run's folder.
    """

    def __init__(self, line: Line | None = None) -> None:
        self._line = line
        self.rank, self.size = (line.place.rank, line.place.size) if line else (0, 1)
        self.mark = ""
        """What all must have come to, such as a step and its token; compared with each exchange."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def first_here(self) -> bool:
        """Whether this is the first rank of its computer, which alone keeps a quantised copy of the model there."""
        return not self._line or self._line.place.local == 0

    def exchange(self, content: Any) -> list[Any]:
        """What each rank has to tell, in their order: texts and numbers, kept to the bit, in lists and dictionaries.

        Raises:
            RanksError: another one has failed, is gone, or has come to something else.
            Stopped: a stop was asked for, here or there.
        """
        if not self._line:
            return [content]
        told = self._line.exchange({"mark": self.mark, "content": content})
        for rank, each in enumerate(told):
            if each["mark"] != told[0]["mark"]:
                raise RanksError(
                    f"{self._line.names[rank]} has come to {each['mark']}, {self._line.names[0]} to "
                    f"{told[0]['mark']}: they round differently; use computers of the same kind and the same torch"
                )
        return [each["content"] for each in told]

    def handed(self, tensors: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """The leader's tensors on all ranks; what the others give does not count."""
        if not self._line:
            return dict(tensors or {})
        told = self.exchange(save(dict(tensors or {})).hex() if self.leads else "")
        return load(bytes.fromhex(told[0]))

    def part(self, jobs: Sequence[Job], work: Callable[[Job], torch.Tensor]) -> list[torch.Tensor]:
        """Do this rank's part of some jobs, which lie together. With few jobs the last ranks have none."""
        size = -(-len(jobs) // self.size)
        try:
            return [work(job) for job in jobs[self.rank * size : (self.rank + 1) * size]]
        except Stopped:
            if self._line:  # torchrun stops those that are left where one is gone: then that is what to tell
                self._line.look_around()
            raise

    def share(self, jobs: Sequence[Job], work: Callable[[Job], torch.Tensor]) -> list[torch.Tensor]:
        """Have each rank do its part; returns all results, float64 ``[n]``, in the order of the jobs."""
        told = self.exchange([result.tolist() for result in self.part(jobs, work)])
        return [torch.tensor(result, dtype=torch.float64) for each in told for result in each]

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Refuse to begin where a rank's facts are others than the leader's.

        Raises:
            RanksError: naming the rank and what is different there; long texts, such as digests, are not shown.
        """
        if not self._line:
            return
        told, found = self.exchange(dict(facts)), []
        for rank, each in enumerate(told):
            others = [name for name, value in told[0].items() if each.get(name) != value]
            if others:
                said = ", ".join(_compared(name, each.get(name), told[0][name]) for name in others)
                found.append(f"{self._line.names[rank]} differs from {self._line.names[0]} in {said}")
        if found:
            raise RanksError("; ".join(found) + ". All ranks must have the same")

    def idle(self, jobs: int) -> str:
        """A line for the user if so many jobs leave ranks without any, else an empty one."""
        busy = -(-jobs // -(-jobs // self.size))
        if busy >= self.size:
            return ""
        shared = how_many(jobs, "forward pass", "forward passes")
        return (
            f"ranks {busy} to {self.size - 1} are idle: a step has {shared} to share out. Start {busy}, "
            "or a run with more directions (n) or fewer candidates in a forward pass (batch)"
        ).replace(f"ranks {busy} to {busy} are", f"rank {busy} is")

    def device(self, device: str) -> str:
        """The device of this rank, where the settings say ``device``: one card for each rank of a computer.

        Raises:
            ConfigError: there are fewer cards than ranks here.
        """
        if not self._line:
            return device
        device = "auto" if device == ALL else device
        if device not in ("auto", "cuda") or not torch.cuda.is_available():
            return device
        local, cards = self._line.place.local, torch.cuda.device_count()
        if local >= cards:
            raise ConfigError(
                f"there is no card for it: {cards} here, for ranks 0 to {cards - 1} of this computer; start as many "
                "as there are cards (--nproc-per-node)"
            )
        torch.cuda.set_device(local)  # for what asks for the current card
        return f"cuda:{local}"


def _compared(name: str, there: Any, here: Any) -> str:
    short = max(len(str(there)), len(str(here))) <= 40
    return f"{name} ({there}, not {here})" if short else name


# ---------------------------------------------------------------- how they hear of each other


class Line:
    """Messages between the ranks, and their signs of life, as used by :class:`Ranks`.

    Args:
        place: this one's.

    Raises:
        RanksError: no connection.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.names = [f"rank {rank}" for rank in range(place.size)]
        self.names[place.rank] += f" on {socket.gethostname()}"
        try:
            self._store = _connect(place)
        except (OSError, RuntimeError, ValueError) as error:
            raise RanksError(
                f"{self.names[place.rank]} could not reach {place.address}, port {place.port}, within {PATIENCE:.0f} s "
                f"({_brief(error)}); see that rank 0 is started, that --master-addr or --rdzv-endpoint is right, and "
                "that no firewall is between them"
            ) from error
        self._sent = 0
        self._heard = {rank: (0, time.monotonic()) for rank in range(place.size)}  # signs, and when they were new
        self._looked = time.monotonic()
        self._processes: dict[int, psutil.Process] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._give_signs, name="zoodip-rank", daemon=True).start()

    def meet(self) -> None:
        """Wait for all ranks.

        Raises:
            RanksError: one does not come, or is of another version.
        """
        about = {
            "host": socket.gethostname(),
            "version": __version__,
            "pid": os.getpid(),
            "began": psutil.Process().create_time(),
        }
        told = self.exchange(about)
        self.names = [f"rank {rank} on {each['host']}" for rank, each in enumerate(told)]
        for name, each in zip(self.names, told, strict=True):
            if each["version"] != told[0]["version"]:
                raise RanksError(
                    f"{name} has ZOODiP {each['version']}, {self.names[0]} has {told[0]['version']}; install the same "
                    "on all computers"
                )
        for rank, each in enumerate(told):  # those whose process can be seen from here are known to be gone at once
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(each["pid"])
                if each["host"] == about["host"] and process.create_time() == each["began"]:
                    self._processes[rank] = process

    def exchange(self, message: Any) -> list[Any]:
        """Messages of all ranks, in their order; see :meth:`Ranks.exchange`."""
        with self._lost_connection():
            self._sent += 1
            self._store.set(self._key(self._sent), json.dumps(message))
            keys = [self._key(self._sent, rank) for rank in range(self.place.size)]
            began = time.monotonic()
            while not self._store.check(keys):
                if time.monotonic() - self._looked > _LONGEST_LOOK:
                    self.look_around()
                check_stop()
                time.sleep(min(_LONGEST_LOOK, max(2e-4, (time.monotonic() - began) / 20)))
            told = [json.loads(self._store.get(key)) for key in keys]
            if self._sent > 1:  # all have read it, for all have sent the next one
                self._store.delete_key(self._key(self._sent - 1))
            return told

    def look_around(self) -> None:
        """See whether a rank whose message is missing will not send it any more.

        Raises:
            RanksError: it is gone, or failed.
            Stopped: it was stopped.
        """
        with self._lost_connection():
            self._looked = time.monotonic()
            for rank in range(self.place.size):
                if rank != self.place.rank:
                    self._look_at(rank)

    def _look_at(self, rank: int) -> None:
        gone, quiet = self._gone(rank), self._quiet(rank)
        left = self._last_words(rank)
        if not (gone or left or quiet) or (self._sent and self._store.check([self._key(self._sent, rank)])):
            return
        if left:
            if left["stopped"]:
                raise Stopped
            raise RanksError(str(left["error"]))
        if gone:
            raise RanksError(f"{self.names[rank]} ended without a word: it was killed, or crashed; see what it printed")
        raise RanksError(
            f"{self.names[rank]} did not answer within {PATIENCE:.0f} s; see that its process runs, and that its "
            "computer can be reached"
        )

    def _gone(self, rank: int) -> bool:
        process = self._processes.get(rank)
        try:
            return process is not None and (
                not process.is_running() or process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
            )
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False

    def _quiet(self, rank: int) -> bool:
        """Whether a rank has given no sign of life for long."""
        signs, now = self._store.add(self._key("alive", rank), 0), time.monotonic()
        if signs != self._heard[rank][0]:
            self._heard[rank] = (signs, now)
        return now - self._heard[rank][1] > PATIENCE

    def _last_words(self, rank: int) -> dict[str, Any] | None:
        key = self._key("left", rank)
        found: dict[str, Any] | None = json.loads(self._store.get(key)) if self._store.check([key]) else None
        return found

    def leave(self, error: str | None, stopped: bool) -> str | None:
        """Tell the others that no more will come, and stay until the first rank has left; returns its error.

        So the first rank has the last word: torchrun ends all others when one of them ends with an error.
        """
        first: dict[str, Any] | None = None
        with contextlib.suppress(RuntimeError):
            self._store.set(self._key("left"), json.dumps({"error": error, "stopped": stopped}))
            if self.place.rank:
                while not (first := self._last_words(0)) and not self._gone(0) and not self._quiet(0):
                    time.sleep(_LONGEST_LOOK)
                self._store.set(self._key("read"), "")
            elif self.place.hosts:
                there = [r for r in range(1, self.place.size) if not self._gone(r) and not self._quiet(r)]
                others = [self._key("read", rank) for rank in there]
                until = time.monotonic() + _LAST_SECONDS
                while others and not self._store.check(others) and time.monotonic() < until:
                    time.sleep(_LONGEST_LOOK)
        self._closed.set()
        return str(first["error"]) if first else None

    def _give_signs(self) -> None:
        with contextlib.suppress(RuntimeError):  # whoever waits will notice as well
            while not self._closed.is_set():
                self._store.add(self._key("alive"), 1)
                self._closed.wait(PATIENCE / _SIGNS)

    def _key(self, what: object, rank: int | None = None) -> str:
        return f"zoodip/{self.place.attempt}/{what}/{self.place.rank if rank is None else rank}"

    @contextlib.contextmanager
    def _lost_connection(self) -> Iterator[None]:
        try:
            yield
        except (RanksError, json.JSONDecodeError):
            raise
        except RuntimeError as error:  # the store's errors
            raise RanksError(
                f"{self.names[self.place.rank]} lost the connection to {self.place.address}, where rank 0 or its "
                f"torchrun is ({_brief(error)}); see whether they run"
            ) from error


def _connect(place: Place) -> Any:
    """The store, once whoever keeps it is there.

    Raises:
        OSError, RuntimeError, ValueError: it is not, or not reached.
        Stopped: a stop was asked for meanwhile.
    """
    import torch.distributed

    if not torch.distributed.is_available():
        raise RuntimeError("this torch is made without torch.distributed; install another")
    until = time.monotonic() + PATIENCE
    while not place.hosts:  # the store's own waiting cannot be left, and speaks on the screen
        check_stop()
        try:
            socket.create_connection((place.address, place.port), timeout=1.0).close()
            break
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
    return torch.distributed.TCPStore(  # type: ignore[attr-defined]
        place.address,
        place.port,
        place.size,
        place.hosts,
        timedelta(seconds=PATIENCE),
        wait_for_workers=False,
        multi_tenant=True,
        use_libuv=sys.platform != "win32",  # torch's wheels for Windows are made without it
    )


def _brief(error: BaseException) -> str:
    """The first line of torch's error, without where in its code it was raised."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]


# ---------------------------------------------------------------- coming and going


@contextlib.contextmanager
def joined(place: Place | None) -> Iterator[Ranks]:
    """The ranks that torchrun has started with this one; one alone without a place among them.

    An error of any rank ends all. The first one tells it; what it has told, the others keep to themselves and raise
    ``SystemExit`` with the exit code of a command.

    Raises:
        RanksError: they cannot reach each other.
    """
    if place is None:
        yield Ranks()
        return
    line = Line(place)
    stopped = False
    try:
        line.meet()
        yield Ranks(line)
        stopped = True  # those that are not at the end as well
    except Exception as error:
        stopped = isinstance(error, Stopped)
        text = for_user(error)
        told = text if text and (place.rank == 0 or isinstance(error, RanksError)) else _named(line, error, text)
        first = line.leave(told, stopped)
        if place.rank and (stopped or (text and first and (text in first))):
            raise SystemExit(1 if stopped else 2) from error
        if text and place.rank:
            raise RanksError(told) from error
        raise
    except BaseException as error:
        line.leave(_named(line, error, None), False)
        raise
    else:
        line.leave(None, stopped)


def _named(line: Line, error: BaseException, text: str | None) -> str:
    return f"{line.names[line.place.rank]}: {text or repr(error)}"
