"""Several processes take the steps of one run: the same bytes, and no way of ending that loses it.

The cheap tests have a thread for each rank; processes of torchrun are in the slow ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import torch

from tests.fake_page_host import LIMIT, until
from zoodip_core import Commands, TrainConfig, resume_training, train_token
from zoodip_core.base.errors import ConfigError, ImagesError, RanksError, RunFolderError
from zoodip_core.base.events import Event, Message, Progress
from zoodip_core.base.stopping import Stopped, stopped_by
from zoodip_core.cli.main import main
from zoodip_core.jobs.job_folder import write_task
from zoodip_core.jobs.pipes import Outbox
from zoodip_core.jobs.tasks import work
from zoodip_core.model.forward import Forwards, Inputs
from zoodip_core.model.load import load_quantized
from zoodip_core.tiny import concepts
from zoodip_core.train import ranks as module
from zoodip_core.train.loop import TrainResult
from zoodip_core.train.objective import DiffusionObjective
from zoodip_core.train.ranks import Line, Place, Ranks, joined, place_in

ROOT = Path(__file__).resolve().parent.parent
PIP, STEPS = concepts.load("pip"), 6
FILES = ("pip.safetensors", "state.safetensors", "steps.jsonl", "directions.safetensors", "config.json")
SETTINGS: dict[str, Any] = {
    "images": (str(PIP.images),),
    "captions": str(PIP.captions),
    "token": "<pip>",
    "initializer": "monster",
    "steps": STEPS,
    "save_every": 2,
    "n": 3,
    "checks": 2,
}
T = TypeVar("T")


def config_of(**settings: Any) -> TrainConfig:
    """Six steps of four candidates, with checks, a measured mu and directions in the vocabulary's shape."""
    return TrainConfig.with_preset("default", {**SETTINGS, **settings})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def together(size: int, work: Callable[[Ranks], T], absent: Sequence[int] = ()) -> list[Any]:
    """What the ranks come to, each in its thread: a result, or what was raised."""
    port, results = free_port(), [None] * size

    def live(rank: int) -> None:
        try:
            with joined(Place(rank, size, rank, "127.0.0.1", port, hosts=rank == 0)) as ranks:
                results[rank] = work(ranks)  # type: ignore[call-overload]
        except BaseException as error:
            results[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(size) if rank not in absent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    return results


def trained(run: Path, **settings: Any) -> Callable[[Ranks], TrainResult]:
    return lambda ranks: train_token(config_of(**settings), run, model=load_quantized("tiny"), ranks=ranks)


def assert_same(run: Path, whole: Path, files: Sequence[str] = FILES) -> None:
    for name in files:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, of two candidates in a forward pass."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train_token(config_of(batch=2), run, model=load_quantized("tiny"))
    return run


# ---------------------------------------------------------------- the same bytes


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_of_several_ranks_has_the_bytes_of_one(size: int, whole: Path, tmp_path: Path) -> None:
    """Four candidates on two ranks are forward passes of two; so they are on three, of which the third is idle."""
    results = together(size, trained(tmp_path / "run"))
    assert [(result.step, result.finished) for result in results] == [(STEPS, True)] * size
    assert all(torch.equal(result.embedding.vectors, results[0].embedding.vectors) for result in results)
    assert_same(tmp_path / "run", whole, FILES[:-1])
    assert json.loads((tmp_path / "run" / "steps.jsonl").read_text().splitlines()[0])["batch"] == 2


@pytest.mark.slow
def test_each_rank_takes_its_part_and_the_first_alone_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three candidates in turn: two for the first rank, one for the second."""
    looked: dict[int, list[int]] = {}
    losses = DiffusionObjective.losses

    def counted(self: DiffusionObjective, candidates: torch.Tensor, draw: Any) -> torch.Tensor:
        looked.setdefault(threading.get_ident(), []).append(len(candidates))
        return losses(self, candidates, draw)

    monkeypatch.setattr(DiffusionObjective, "losses", counted)

    def work(ranks: Ranks) -> tuple[int, int]:
        own = {"directions": "normal", "adapt_mu": False, "checks": 0, "patience": 0}
        config = TrainConfig.from_preset("tiny", **{**SETTINGS, **own, "n": 2, "batch": 1, "steps": 2})
        train_token(config, tmp_path / "run", model=load_quantized("tiny"), ranks=ranks)
        return ranks.rank, sum(looked[threading.get_ident()])

    assert together(2, work) == [(0, 4), (1, 2)]


def test_ranks_with_nothing_to_do_are_told_of() -> None:
    ranks = Ranks()
    assert ranks.idle(1) == ""
    ranks.size = 4
    assert ranks.idle(4) == ranks.idle(7) == ranks.idle(8) == ""
    assert ranks.idle(2).startswith("ranks 2 to 3 are idle: a step has 2 forward passes")
    assert ranks.idle(3).startswith("rank 3 is idle")
    assert ranks.idle(5).startswith("rank 3 is idle")  # of two each, the third has the last one


@pytest.mark.slow
def test_a_run_is_resumed_on_another_number_of_ranks(whole: Path, tmp_path: Path) -> None:
    """Two ranks, then one process, then three ranks; each is stopped after two steps."""
    run = tmp_path / "run"

    def session(ranks: Ranks) -> TrainResult:
        commands, model = Commands(), load_quantized("tiny")

        def on_event(event: Event) -> None:
            if ranks.leads and isinstance(event, Progress) and event.step in (2, 4):
                commands.stop()

        if (run / "config.json").exists():
            return resume_training(run, model=model, on_event=on_event, commands=commands, ranks=ranks)
        return train_token(config_of(), run, model=model, on_event=on_event, commands=commands, ranks=ranks)

    assert [(result.step, result.finished) for result in together(2, session)] == [(2, False)] * 2
    assert session(Ranks()).step == 4
    assert [(result.step, result.finished) for result in together(3, session)] == [(STEPS, True)] * 3
    assert_same(run, whole, FILES[:-1])


@pytest.mark.parametrize("batch", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_more_ranks_have_a_share_of_a_run_of_one_process(batch: int, tmp_path: Path) -> None:
    """It had all candidates in one forward pass; where its settings say so, it keeps that."""
    run, commands, told = tmp_path / "run", Commands(), list[str]()
    settings = {"steps": 2, "estimator": "rge", "adapt_mu": False, "checks": 0, "patience": 0, "batch": batch}
    train_token(
        config_of(**settings),
        run,
        model=load_quantized("tiny"),
        on_event=lambda event: commands.stop() if isinstance(event, Progress) and event.step == 1 else None,
        commands=commands,
    )

    def work(ranks: Ranks) -> TrainResult:
        def on_event(event: Event) -> None:
            if isinstance(event, Message) and event.warning:
                told.append(event.text)

        return resume_training(run, model=load_quantized("tiny"), on_event=on_event, ranks=ranks)

    assert [(result.step, result.finished) for result in together(2, work)] == [(2, True)] * 2
    batches = [json.loads(line)["batch"] for line in (run / "steps.jsonl").read_text().splitlines()]
    assert batches == [4, batch or 2]
    (said,) = told
    if batch:
        assert said.startswith("rank 1 is idle: a step has 1 forward pass ")
    else:
        assert said.startswith("4 candidates in one forward, as before, would leave ranks without any: from now on ")
        assert "there are 2, and the last digits will differ" in said


def test_one_rank_of_a_computer_keeps_a_copy_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep: dict[bool, bool] = {}

    def loading(*_: Any, **settings: Any) -> Any:
        keep[threading.get_ident() in led] = settings["keep"]
        return load_quantized("tiny", device="cpu")

    led: list[int] = []
    monkeypatch.setattr("zoodip_core.train.prepared.load_quantized", loading)

    def work(ranks: Ranks) -> TrainResult:
        if ranks.leads:
            led.append(threading.get_ident())
        config = config_of(steps=1, adapt_mu=False, checks=0, patience=0)
        return train_token(config, tmp_path / "run", ranks=ranks)

    together(2, work)
    assert keep == {True: True, False: False}


@pytest.mark.slow
def test_a_card_that_runs_out_of_memory_makes_all_forwards_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Forwards.losses
    first = threading.get_ident()
    led: list[int] = []

    def full(self: Forwards, inputs: Inputs) -> torch.Tensor:
        if len(inputs.candidates) > 1 and threading.get_ident() not in led:
            raise torch.OutOfMemoryError
        return losses(self, inputs)

    def work(ranks: Ranks) -> list[str]:
        told: list[str] = []
        if ranks.leads:
            led.append(threading.get_ident())
        train_token(
            config_of(steps=3, checks=0, patience=0),
            tmp_path / "run",
            model=load_quantized("tiny"),
            on_event=lambda event: told.append(event.text) if isinstance(event, Message) else None,
            ranks=ranks,
        )
        return told

    monkeypatch.setattr(Forwards, "losses", full)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    told, _ = together(2, work)
    assert first not in led
    assert sum("1 candidate in one forward from now on" in line for line in told) == 1
    batches = [json.loads(line)["batch"] for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    assert batches == [1, 1, 1]


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_stop_of_any_rank_stops_all(rank: int, tmp_path: Path) -> None:
    """Asked for by what the third step would look at."""
    counts = {0: 0, 1: 0}

    def work(ranks: Ranks) -> TrainResult:
        def asked() -> bool:
            counts[ranks.rank] += ranks.mark.endswith("after step 2")
            return ranks.rank == rank and counts[rank] > 0

        model = load_quantized("tiny")
        return train_token(config_of(), tmp_path / "run", model=model, commands=Commands(asked), ranks=ranks)

    assert [(result.step, result.finished) for result in together(2, work)] == [(2, False)] * 2
    assert not (tmp_path / "run" / "pip.safetensors").exists()


def test_a_stop_before_the_first_step_writes_nothing(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> TrainResult:
        commands = Commands(lambda: ranks.rank == 1)
        return train_token(config_of(), tmp_path / "run", model=load_quantized("tiny"), commands=commands, ranks=ranks)

    first, second = together(2, work)
    assert isinstance(first, Stopped)
    assert isinstance(second, SystemExit)
    assert second.code == 1
    assert not (tmp_path / "run").exists()


def test_an_error_of_any_rank_reaches_the_first_one(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> TrainResult:
        images = (str(PIP.images),) if ranks.leads else (str(tmp_path / "none"),)
        return trained(tmp_path / "run", images=images)(ranks)

    first, second = together(2, work)
    assert isinstance(first, RanksError)
    assert str(first).startswith(f"rank 1 on {socket.gethostname()}: ")
    assert "none" in str(first)
    assert isinstance(second, SystemExit)  # the first one says it
    assert second.code == 2
    assert isinstance(second.__cause__, ImagesError)
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_first_rank_ends_all(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    first, second = together(2, trained(tmp_path / "run"))
    assert isinstance(first, RunFolderError)
    assert isinstance(second, SystemExit)


@pytest.mark.slow
def test_an_error_in_a_step_keeps_what_was_learned(whole: Path, tmp_path: Path) -> None:
    def work(ranks: Ranks) -> TrainResult:
        model = load_quantized("tiny")
        if not ranks.leads:

            def fails(*_: Any) -> None:
                if ranks.mark.endswith("after step 3"):
                    raise RuntimeError("the card fell off the bus")

            model.unet.conv_in.register_forward_hook(fails)
        return train_token(config_of(), tmp_path / "run", model=model, ranks=ranks)

    first, second = together(2, work)
    assert isinstance(first, RanksError)
    assert "fell off the bus" in str(first)
    assert "kept as of step 3" in str(first)
    assert type(second) is RuntimeError  # a fault, with its traceback
    assert resume_training(tmp_path / "run", model=load_quantized("tiny")).finished
    assert_same(tmp_path / "run", whole, FILES[:-1])


@pytest.mark.slow
def test_a_rank_that_falls_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 2.0)

    def work(ranks: Ranks) -> Any:
        assert ranks._line
        if ranks.leads:
            return ranks.exchange("here")
        ranks._line._closed.set()  # no more signs of life, as of a process that hangs
        assert given_up.wait(LIMIT)
        return None

    given_up = threading.Event()

    def watched(ranks: Ranks) -> Any:
        try:
            return work(ranks)
        finally:
            if ranks.leads:
                given_up.set()

    first, _ = together(2, watched)
    assert isinstance(first, RanksError)
    assert f"rank 1 on {socket.gethostname()} did not answer within 2 s" in str(first)


# ---------------------------------------------------------------- who cannot work together


def refusal(work: Callable[[Ranks], Any]) -> str:
    first, second = together(2, work)
    assert isinstance(first, RanksError)
    assert isinstance(second, SystemExit)
    return str(first)


def test_ranks_with_other_settings_models_or_captions_are_refused(tmp_path: Path) -> None:
    host = socket.gethostname()
    captions = json.loads(Path(PIP.captions).read_text(encoding="utf-8"))
    other = tmp_path / "captions.json"
    other.write_text(json.dumps(dict.fromkeys(captions, "a {} at sea")), encoding="utf-8")

    def work(ranks: Ranks) -> TrainResult:
        settings = {} if ranks.leads else {"captions": str(other), "lr": 0.25}
        model = load_quantized("tiny")
        if not ranks.leads:
            model.blueprint = dataclasses.replace(model.blueprint, copy_of="0" * 64)
        return train_token(config_of(**settings), tmp_path / "run", model=model, ranks=ranks)

    said = refusal(work)
    assert said.startswith(f"rank 1 on {host} differs from rank 0 on {host} in model, captions, lr (0.25, not ")
    assert not (tmp_path / "run").exists()


def test_ranks_of_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    meet = Line.meet

    def other_version(self: Line) -> None:
        if self.place.rank == 1:
            send = self.exchange
            self.exchange = lambda message: send({**message, "version": "9.8"})  # type: ignore[method-assign]
        meet(self)

    monkeypatch.setattr(Line, "meet", other_version)
    said = refusal(lambda ranks: ranks.exchange(1))
    assert f"rank 1 on {socket.gethostname()} has ZOODiP 9.8, rank 0 on " in said


def test_ranks_that_come_to_other_tokens_are_refused() -> None:
    def work(ranks: Ranks) -> Any:
        ranks.mark = f"token {ranks.rank} after step 4"
        return ranks.exchange(0)

    assert "has come to token 1 after step 4" in refusal(work)


def test_a_rank_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    first, _ = together(2, lambda ranks: ranks.exchange(0), absent=[1])
    assert isinstance(first, RanksError)
    assert str(first).startswith("rank 1 did not answer within 1 s")


def test_a_rank_that_cannot_reach_the_others_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    port = free_port()
    with pytest.raises(RanksError, match=f"rank 1 on .* could not reach 127.0.0.1, port {port}, within"):
        Line(Place(1, 2, 0, "127.0.0.1", port))
    with stopped_by(lambda: True), pytest.raises(Stopped):
        Line(Place(1, 2, 0, "127.0.0.1", port))


# ---------------------------------------------------------------- torchrun's environment

PLACE = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}


def test_a_place_is_read_from_the_environment() -> None:
    assert place_in({}) is None
    assert place_in({**PLACE, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}) is None
    assert place_in({name: value for name, value in PLACE.items() if name != "LOCAL_RANK"}) is None
    assert place_in(PLACE) == Place(1, 4, 1, "a", 29500)
    first = {**PLACE, "RANK": "0", "LOCAL_RANK": "0"}
    assert place_in(first) == Place(0, 4, 0, "a", 29500, hosts=True)
    assert place_in({**first, "TORCHELASTIC_USE_AGENT_STORE": "True"}) == Place(0, 4, 0, "a", 29500)
    for wrong in ({"RANK": "4"}, {"RANK": "x"}, {"MASTER_PORT": "0"}, {"WORLD_SIZE": "-1"}):
        with pytest.raises(ConfigError, match="not what torchrun sets"):
            place_in({**PLACE, **wrong})


def test_each_rank_has_a_card_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)

    def work(ranks: Ranks) -> list[str]:
        return [ranks.device(device) for device in ("auto", "cuda", "cpu", "cuda:1")]

    first, second, third = together(3, work)
    assert first == ["cuda:0", "cuda:0", "cpu", "cuda:1"]
    assert second == ["cuda:1", "cuda:1", "cpu", "cuda:1"]
    assert "there is no card for it: 2 here" in str(third)
    assert set(chosen) == {0, 1}
    assert Ranks().device("auto") == "auto"


@pytest.mark.parametrize("rank", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_other_commands_are_the_first_ranks_alone(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**PLACE, "RANK": rank, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, value)
    assert main(["inspect", "tiny"]) == 0
    said = capsys.readouterr()
    assert ("tiny" in said.out) == (rank == "0")
    assert ("torchrun serves train alone" in said.err) == (rank == "0")


# ---------------------------------------------------------------- processes


ARGUMENTS = [
    *("--images", str(PIP.images), "--captions", str(PIP.captions), "--token", "<pip>", "--init", "monster"),
    *("--num-directions", "3", "--checks", "2", "--save-every", "2"),
]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
on_posix = pytest.mark.skipif(sys.platform == "win32", reason="torchrun ends its processes by POSIX signals")


def torchrun(size: int, *arguments: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return subprocess.Popen(
        [*launcher, "-m", "zoodip_core", "train", *arguments],
        cwd=ROOT,
        env=ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def steps_of(run: Path) -> int:
    with contextlib.suppress(OSError):
        return (run / "steps.jsonl").read_bytes().count(b"\n")
    return 0


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        said, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    return process.returncode, said


def alone(*arguments: str) -> int:
    """Train in one process, of one thread as torchrun's are."""
    command = [sys.executable, "-m", "zoodip_core", "train", *arguments]
    return subprocess.run(command, cwd=ROOT, env=ONE_THREAD, check=False, timeout=LIMIT).returncode


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that is long enough to be interrupted."""
    run = tmp_path_factory.mktemp("long") / "run"
    assert alone(*ARGUMENTS, "--steps", "60", "--batch", "2", "--output", str(run)) == 0
    return run


@pytest.mark.slow
@on_posix
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_leaves_a_run_that_one_process_finishes(rank: int, long_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = torchrun(2, *ARGUMENTS, "--steps", "60", "--output", str(run))
    until(lambda: steps_of(run) >= 5 or process.poll() is not None)
    children = psutil.Process(process.pid).children()
    (victim,) = (child for child in children if child.environ().get("RANK") == str(rank))
    victim.send_signal(signal.SIGKILL)
    code, said = ended(process)
    assert code != 0
    if rank == 1:
        assert "rank 1 on " in said
        assert "ended without a word" in said
        assert "The token is kept as of step" in said
    assert 5 <= steps_of(run) < 60
    assert alone("--resume", str(run)) == 0
    assert_same(run, long_run, FILES[:-1])


@pytest.mark.slow
@on_posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_of_torchrun_saves_the_run(number: int, long_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = torchrun(2, *ARGUMENTS, "--steps", "60", "--output", str(run))
    until(lambda: steps_of(run) >= 5 or process.poll() is not None)
    process.send_signal(number)
    code, said = ended(process)
    assert code != 0
    assert said.count("stopped at step") == 1
    assert "--resume" in said
    code, said = ended(torchrun(2, "--resume", str(run)))
    assert code == 0, said
    assert said.count("done: 60 steps") == 1
    assert_same(run, long_run, FILES[:-1])


@pytest.mark.slow
@on_posix
def test_a_stop_waits_for_no_rank_that_hangs(tmp_path: Path) -> None:
    """The one that hangs is given up; the first one has saved by then, since its stop needs no answer."""
    run = tmp_path / "run"
    process = torchrun(2, *ARGUMENTS, "--steps", "60", "--output", str(run))
    until(lambda: steps_of(run) >= 3 or process.poll() is not None)
    children = psutil.Process(process.pid).children()
    (hung,) = (child for child in children if child.environ().get("RANK") == "1")
    hung.suspend()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    code, said = ended(process)
    assert code != 0
    assert said.count("stopped at step") == 1
    assert alone("--resume", str(run)) == 0


@pytest.mark.slow
def test_a_wrong_setting_is_told_once(tmp_path: Path) -> None:
    code, said = ended(torchrun(2, *ARGUMENTS, "--batch", "2000", "--output", str(tmp_path / "run")))
    assert code != 0
    assert said.count("zoodip: error: batch = 2000") == 1


# ---------------------------------------------------------------- the page's jobs


def job_on_all_cards(folder: Path, monkeypatch: pytest.MonkeyPatch, cards: int) -> tuple[int, list[dict[str, Any]]]:
    """A training of the page with the device ``all``: its exit code and events. Without cards, all are on the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    settings = {**SETTINGS, "images": list(SETTINGS["images"]), "sample_every": 0, "device": "all"}
    file = write_task(folder, "train", folder, settings=settings, preset="default")
    events = io.BytesIO()
    code = work(file, Outbox(events), Commands())
    return code, [json.loads(line) for line in events.getvalue().splitlines()]


@pytest.mark.slow
def test_a_job_on_all_cards_has_a_process_for_each(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, events = job_on_all_cards(tmp_path, monkeypatch, 2)
    assert code == 0, events[-1]
    assert [event["step"] for event in events if event["event"] == "progress"] == list(range(1, STEPS + 1))
    assert not psutil.Process().children()
    assert_same(tmp_path / "run", whole, FILES[:-1])


LEADER = """
import json, sys
from pathlib import Path
from zoodip_core import TrainConfig, train_token
from zoodip_core.jobs.cards import with_cards

config, run = TrainConfig.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2])
with with_cards([1], config, run) as ranks:
    train_token(config, run, ranks=ranks)
"""


@pytest.mark.slow
def test_a_killed_leader_leaves_no_process(tmp_path: Path) -> None:
    run, config = tmp_path / "run", config_of(steps=10_000, device="cpu").to_dict()
    leader = psutil.Popen([sys.executable, "-c", LEADER, json.dumps(config), str(run)], cwd=ROOT, env=ONE_THREAD)
    until(lambda: steps_of(run) >= 2 or leader.poll() is not None)
    others = leader.children(recursive=True)
    leader.kill()
    leader.wait()
    assert len(others) == 1
    assert psutil.wait_procs(others, timeout=LIMIT)[1] == []


def test_a_job_on_all_cards_of_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, events = job_on_all_cards(tmp_path, monkeypatch, 1)
    assert code == 2
    assert events[-1]["error"] == "device = 'all' is for several graphics cards, and this computer has 1; use auto"


def test_all_cards_are_the_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *ARGUMENTS, "--device", "all", "--output", str(tmp_path / "run")]) == 2
    assert "torchrun --nproc-per-node" in capsys.readouterr().err
