"""The page's side of its workers: one after another, watched, stopped, and survived whatever they do.

The workers here are scripts that do as a test says, so that none of it takes a model; those of ``test_worker.py`` and
``test_studio.py`` are real.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fake_page_host import FakePageHost, fake_worker, log_of, until
from zoodip_core.base.errors import ConfigError, RunFolderError
from zoodip_core.jobs import process
from zoodip_core.jobs.environment import ROOT, Trainer
from zoodip_core.jobs.job import Job
from zoodip_core.jobs.job_folder import write_task
from zoodip_core.jobs.process import ask
from zoodip_core.jobs.protocol import FAILED, FINISHED, RUNNING, STOPPED, STOPPING, WAITING
from zoodip_core.jobs.queue import Jobs

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the workers are shell scripts")

ENDS = 'send("ended", state="finished")\n'
ENDS_WHEN_TOLD = 'send("message", text="at work", warning=False)\ncommand()\n' + ENDS
STOPS = 'progress(3)\nassert command() == "stop"\nsend("ended", state="stopped")\n'


class Page:
    """Jobs in a fake program, with fake workers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = FakePageHost(root)
        self.trainer = Trainer(fake_worker(root), False, "")
        self.ended: list[tuple[str, str]] = []
        """Token and state of the jobs, as they were told to have ended."""
        self.after: Callable[[Job], str] = lambda job: ""
        self.jobs = Jobs(self.host, lambda: self.trainer, self._done)

    def _done(self, job: Job) -> str:
        self.ended.append((job.token, job.state))
        return self.after(job)

    def submit(self, token: str, does: str, kind: str = "train") -> int:
        """Queue a job whose worker does this; returns its number."""
        folder = self.root / token.strip("<>")
        folder.mkdir(exist_ok=True)
        return self.jobs.submit(kind, folder, token, settings={"does": does}).id

    def state(self, number: int) -> str:
        return self.jobs.get(number).state

    def until_state(self, number: int, *states: str) -> Job:
        until(lambda: self.state(number) in (*states, FINISHED, STOPPED, FAILED))
        job = self.jobs.get(number)
        assert job.state in states, job
        return job

    def until_at_work(self, number: int) -> None:
        """Wait for a job that ends when it is told something."""
        until(lambda: self.jobs.get(number).message == "at work" or not self.jobs.get(number).open)
        assert self.state(number) == RUNNING

    def do(self, does: str, kind: str = "train") -> Job:
        """A job to its end."""
        number = self.submit(f"<job{len(self.ended)}>", does, kind)
        return self.until_state(number, FINISHED, STOPPED, FAILED)

    def still_works(self) -> None:
        """Check that the next job has its turn."""
        assert self.do(ENDS).state == FINISHED


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(tmp_path)


# ---------------------------------------------------------------- one after another


def test_a_job_tells_how_far_it_is(page: Page) -> None:
    does = """
send("message", text="loading", warning=False)
command()
send("checked", images=3, memory=5)
send("message", text="too few pictures", warning=True)
send("started", step=2, steps=9, losses=[0.5, 0.25])
progress(3, loss=0.125, memory=77)
send("sampled", step=3, path="sample.png")
send("saved", step=3, path="snapshot", lora="its weights")
command()
send("shown", path="before_after.png")
send("ended", state="finished", step=3, embedding="token", lora="weights")
"""
    number = page.submit("<a>", does)
    until(lambda: page.jobs.get(number).message == "loading")
    page.jobs.ask(number, "save")
    until(lambda: page.jobs.get(number).embedding == Path("snapshot"))
    job = page.jobs.get(number)
    assert (job.state, job.message, job.checked) == (RUNNING, "learning", {"images": 3, "memory": 5})
    assert (job.step, job.steps, job.loss, job.smoothed, job.rate, job.eta) == (3, 9, 0.125, 0.5, 2.0, 4.5)
    assert (job.memory, job.losses, job.warnings) == (77, [0.5, 0.25, 0.125], ["too few pictures"])
    assert (job.sample, job.sampled_step, job.shown) == (Path("sample.png"), 3, None)
    assert job.lora == Path("its weights")
    page.jobs.ask(number, "save")
    job = page.until_state(number, FINISHED)
    assert (job.message, job.shown) == ("finished after 3 steps", Path("before_after.png"))
    assert (job.embedding, job.lora) == (Path("token"), Path("weights"))
    assert job.warnings == ["too few pictures"]


def test_a_second_job_waits_and_says_so_and_then_runs(page: Page) -> None:
    first = page.submit("<a>", ENDS_WHEN_TOLD)
    second = page.submit("<b>", ENDS_WHEN_TOLD)
    third = page.submit("<c>", ENDS)
    page.until_at_work(first)
    assert (page.state(second), page.jobs.get(second).message) == (WAITING, "waiting for <a> to end")
    assert (page.state(third), page.jobs.get(third).message) == (WAITING, "waiting for <b> to end")
    assert not (page.root / "b" / "log.txt").exists()
    newest = page.jobs.newest()
    assert newest is not None
    assert newest.id == first

    page.jobs.ask(first, "save")
    page.until_at_work(second)
    assert page.state(first) == FINISHED
    newest = page.jobs.newest()
    assert newest is not None
    assert newest.id == second
    page.jobs.ask(second, "save")
    page.until_state(third, FINISHED)
    assert page.ended == [("<a>", FINISHED), ("<b>", FINISHED), ("<c>", FINISHED)]
    assert page.host.calls == ["taken", "given back"] * 3
    assert [job.id for job in page.jobs.all()] == [first, second, third]
    newest = page.jobs.newest()
    assert newest is not None
    assert newest.id == third


def test_nothing_is_newest_at_first(page: Page) -> None:
    assert page.jobs.newest() is None
    assert page.jobs.all() == []


def test_a_folder_is_worked_on_by_one_job_at_a_time(page: Page) -> None:
    first = page.submit("<a>", ENDS_WHEN_TOLD)
    page.until_at_work(first)
    second = page.submit("<b>", ENDS)
    for token in ("<a>", "<b>"):  # at work, and waiting
        task = (page.root / token.strip("<>") / "task.json").read_bytes()
        with pytest.raises(RunFolderError, match="worked on already"):
            page.submit(token, "never", kind="resume")
        assert (page.root / token.strip("<>") / "task.json").read_bytes() == task
    assert page.jobs.busy(page.root / "a")
    assert page.jobs.busy(page.root / "b")
    assert not page.jobs.busy(page.root / "c")
    page.jobs.ask(first, "save")
    page.until_state(second, FINISHED)
    assert not page.jobs.busy(page.root / "a")
    page.until_state(page.submit("<a>", ENDS), FINISHED)
    assert [job.token for job in page.jobs.all()] == ["<a>", "<b>", "<a>"]


def test_what_is_looked_at_is_a_copy(page: Page) -> None:
    number = page.submit("<a>", 'send("message", text="careful", warning=True)\nprogress(1)\n' + ENDS_WHEN_TOLD)
    page.until_at_work(number)
    (page.root / "b").mkdir()
    submitted = page.jobs.submit("train", page.root / "b", "<b>", settings={"does": ENDS})
    submitted.state = FAILED
    assert page.state(submitted.id) == WAITING
    copies = [page.jobs.get(number), page.jobs.all()[0], page.jobs.newest()]
    for copy in copies:
        assert copy is not None
        copy.state, copy.message, copy.step = FAILED, "changed", 99
        copy.losses.append(99.0)
        copy.warnings.append("changed")
    job = page.jobs.get(number)
    assert (job.state, job.message, job.step) == (RUNNING, "at work", 1)
    assert (job.losses, job.warnings) == ([0.125], ["careful"])
    page.jobs.ask(number, "save")
    page.until_state(submitted.id, FINISHED)
    assert copies[0] is not None
    assert copies[0].state == FAILED


def test_a_number_that_is_none(page: Page) -> None:
    for use in (page.jobs.get, page.jobs.stop):
        with pytest.raises(ConfigError, match="there is no job 7"):
            use(7)
    page.jobs.ask(7, "save")


# ---------------------------------------------------------------- stopping


def test_a_stop_is_told_to_the_worker(page: Page) -> None:
    number = page.submit("<a>", 'progress(3)\nassert command() == "stop"\ncommand()\nsend("ended", state="stopped")')
    until(lambda: page.jobs.get(number).step == 3)
    page.jobs.stop(number)
    job = page.jobs.get(number)
    assert (job.state, job.message) == (STOPPING, "stopping; press stop again to end it at once")
    page.jobs.ask(number, "save")
    job = page.until_state(number, STOPPED)
    assert (job.message, page.ended) == ("stopped at step 3", [("<a>", STOPPED)])
    page.jobs.stop(number)
    assert page.state(number) == STOPPED


def test_a_worker_that_does_not_stop_is_killed_at_the_second_time(page: Page) -> None:
    number = page.submit("<a>", '(folder / "pid").write_text(str(os.getpid()))\nprogress(1)\ntime.sleep(1000)')
    until(lambda: page.jobs.get(number).step)
    pid = int((page.root / "a" / "pid").read_text())
    page.jobs.stop(number)
    assert psutil.pid_exists(pid)
    page.jobs.stop(number)
    job = page.until_state(number, STOPPED)
    assert job.message == "ended at once; the state that was saved last is kept"
    assert not psutil.pid_exists(pid)
    page.still_works()


def test_a_waiting_job_is_stopped_without_a_start(page: Page) -> None:
    first = page.submit("<a>", ENDS_WHEN_TOLD)
    page.until_at_work(first)
    second = page.submit("<b>", ENDS)
    page.jobs.stop(second)
    job = page.jobs.get(second)
    assert (job.state, job.message) == (STOPPED, "stopped before it began")
    assert page.state(first) == RUNNING
    page.jobs.ask(first, "save")
    page.still_works()
    assert page.ended[:2] == [("<a>", FINISHED), ("<b>", STOPPED)]
    assert not (page.root / "b" / "log.txt").exists()  # no worker was started
    assert page.host.calls == ["taken", "given back"] * 2  # nor the device taken for it
    assert page.jobs.get(second).message == "stopped before it began"


# ---------------------------------------------------------------- the program around it


def test_a_job_waits_for_the_device_and_says_why(page: Page) -> None:
    page.host.idle.clear()
    number = page.submit("<a>", ENDS)
    until(lambda: page.jobs.get(number).message == "waiting for a picture to be drawn")
    assert page.state(number) == WAITING
    assert page.host.calls == []
    page.host.idle.set()
    page.until_state(number, FINISHED)
    assert page.host.calls == ["taken", "given back"]


def test_a_job_that_waits_for_the_device_can_be_stopped(page: Page) -> None:
    page.host.idle.clear()
    number = page.submit("<a>", ENDS)
    until(lambda: page.jobs.get(number).message == "waiting for a picture to be drawn")
    page.jobs.stop(number)
    assert page.jobs.get(number).message == "stopped before it began"
    page.host.idle.set()
    until(lambda: page.ended)
    assert page.ended == [("<a>", STOPPED)]
    assert page.host.calls == []  # the device was not taken, not even for an instant
    assert not (page.root / "a" / "log.txt").exists()
    page.still_works()
    assert page.jobs.get(number).message == "stopped before it began"


def test_the_programs_own_stop_button_stops_a_job_once(page: Page) -> None:
    """However long it stays pressed: a second stop would kill."""
    number = page.submit("<a>", STOPS.replace("send(", "time.sleep(1)\nsend("))
    until(lambda: page.jobs.get(number).step == 3)
    page.host.stop_pressed = True
    assert page.until_state(number, STOPPED).message == "stopped at step 3"


def test_the_stop_button_is_looked_at_while_events_pour_in(page: Page) -> None:
    does = """
while not select.select([0], [], [], 0.01)[0]:
    send("message", text="busy", warning=False)
assert command() == "stop"
send("ended", state="stopped")
"""
    number = page.submit("<a>", does)
    until(lambda: page.jobs.get(number).message == "busy")
    page.host.stop_pressed = True
    page.until_state(number, STOPPED)


def test_the_programs_progress_bar_is_shown_how_far_it_is(page: Page) -> None:
    number = page.submit("<a>", 'send("started", step=0, steps=9, losses=[])\nprogress(5)\n' + ENDS_WHEN_TOLD)
    until(lambda: page.host.shown and page.host.shown[-1].step == 5)
    assert (page.host.shown[-1].steps, page.host.shown[-1].state) == (9, RUNNING)
    assert all(shown.id == number for shown in page.host.shown)
    page.jobs.ask(number, "save")
    page.until_state(number, FINISHED)


def test_a_device_that_is_not_to_be_had_fails_that_job_alone(page: Page) -> None:
    page.host.fails["taken"] = RuntimeError("the model cannot be unloaded")
    job = page.do(ENDS)
    assert (job.state, job.message) == (FAILED, "RuntimeError: the model cannot be unloaded")
    assert page.ended == [("<job0>", FAILED)]
    page.host.fails.clear()
    page.still_works()


def test_a_device_that_is_not_taken_back_changes_nothing_about_the_job(page: Page) -> None:
    page.host.fails["given back"] = RuntimeError("the model cannot be loaded again")
    job = page.do(ENDS)
    assert job.state == FINISHED
    assert "the model cannot be loaded again" in job.message
    assert page.ended == [("<job0>", FINISHED)]
    page.host.fails.clear()
    page.still_works()


class HostsInterrupt(BaseException):
    """As ComfyUI's: no ``Exception``."""


@pytest.mark.parametrize("place", ["taken", "given back", "show", "done"])
def test_whatever_the_program_raises_the_next_job_has_its_turn(place: str, page: Page) -> None:
    def fails(job: Job) -> str:
        raise HostsInterrupt("from the program")

    page.host.fails = {place: HostsInterrupt("from the program")}
    if place == "done":
        page.after = fails
    job = page.do("command()" if place == "show" else ENDS)
    assert job.state == (FAILED if place in ("taken", "show") else FINISHED)
    assert "from the program" in job.message
    page.host.fails, page.after = {}, lambda job: ""
    page.still_works()


def test_a_progress_bar_that_fails_lets_the_worker_save(page: Page) -> None:
    page.host.fails["show"] = RuntimeError("no bar")
    number = page.submit("<a>", 'progress(1)\n(folder / "told").write_text(command())')
    job = page.until_state(number, FAILED)
    assert job.message == "RuntimeError: no bar"
    assert (page.root / "a" / "told").read_text() in ("stop", "nobody is there")


def test_what_comes_after_a_job_is_told(page: Page) -> None:
    page.after = lambda job: f"saved as {job.token}"
    assert page.do('progress(4)\nsend("ended", state="finished")').message == "finished after 4 steps. saved as <job0>"


def test_what_fails_after_a_job_is_told(page: Page) -> None:
    def full(job: Job) -> str:
        raise OSError(28, "No space left on device", "rex.safetensors")

    page.after = full
    job = page.do(ENDS)
    assert job.state == FINISHED
    assert "rex.safetensors: No space left on device" in job.message
    page.after = lambda job: ""
    page.still_works()


# ---------------------------------------------------------------- how jobs end


@pytest.mark.parametrize(
    ("kind", "does", "state", "message"),
    [
        ("train", 'progress(7)\nsend("ended", state="finished")', FINISHED, "finished after 7 steps"),
        ("resume", 'progress(7)\nsend("ended", state="finished")', FINISHED, "finished after 7 steps"),
        ("show", 'send("ended", state="finished")', FINISHED, "finished"),
        ("train", 'send("ended", state="stopped")', STOPPED, "stopped before the first step"),
        ("show", 'send("ended", state="stopped")', STOPPED, "stopped"),
        ("compare", 'send("ended", state="finished")', FINISHED, "finished"),
        ("train", 'send("failed", error="no such image", fault=False)\nsys.exit(2)', FAILED, "no such image"),
        ("train", 'send("ended", state="finished")\nos.abort()', FINISHED, "finished after 0 steps"),
    ],
)
def test_a_job_says_how_it_ended(kind: str, does: str, state: str, message: str, page: Page) -> None:
    job = page.do(does, kind)
    assert (job.state, job.message, job.log) == (state, message, "")


def test_a_fault_shows_the_end_of_the_log(page: Page) -> None:
    does = """
for number in range(100):
    print("line", number, file=sys.stderr)
send("failed", error="ZeroDivisionError: x", fault=True)
sys.exit(70)
"""
    job = page.do(does)
    assert (job.state, job.message) == (FAILED, "ZeroDivisionError: x")
    assert job.log.splitlines()[-1] == "line 99"
    assert len(job.log.splitlines()) == 20


@pytest.mark.parametrize(
    ("death", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9; often the computer ran out of memory"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11"),
        ("os._exit(3)", "exit code 3"),
        ("os._exit(0)", "exit code 0"),
    ],
)
def test_a_worker_that_dies_without_a_word(death: str, words: str, page: Page) -> None:
    job = page.do(f'progress(1)\nprint("last words", file=sys.stderr, flush=True)\n{death}')
    assert job.state == FAILED
    assert words in job.message
    assert "Resume starts" in job.message
    assert job.log.splitlines()[-1] == "last words"
    assert page.host.calls == ["taken", "given back"]
    page.still_works()


def test_a_worker_that_died_before_the_first_step_left_nothing_to_resume_from(page: Page) -> None:
    job = page.do('send("message", text="loading", warning=False)\nos._exit(3)')
    assert job.message == "the training process ended unexpectedly (exit code 3)"


def test_a_worker_that_is_silent_but_does_not_end_is_killed(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_LAST_SECONDS", 0.2)
    does = '(folder / "pid").write_text(str(os.getpid()))\n' + ENDS + "os.close(1)\ntime.sleep(1000)"
    assert page.do(does).state == FINISHED
    assert not psutil.pid_exists(int((page.root / "job0" / "pid").read_text()))
    page.still_works()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "Permission denied"),
        (lambda path: path.write_text("no program"), "Permission denied"),
    ],
    ids=["missing", "a folder", "no program"],
)
def test_a_python_that_can_not_be_started(make: Callable[[Path], None], words: str, page: Page) -> None:
    python = page.root / "no python"
    make(python)
    works, page.trainer = page.trainer, Trainer(python, False, "")
    job = page.do(ENDS)
    assert job.state == FAILED
    assert str(python) in job.message
    assert words in job.message
    assert page.host.calls == ["taken", "given back"]
    page.trainer = works
    page.still_works()


def test_without_a_trainer_nothing_is_queued(page: Page) -> None:
    page.trainer = Trainer(None, False, "The trainer is not installed.")
    with pytest.raises(ConfigError, match=r"The trainer is not installed\."):
        page.submit("<a>", ENDS)
    assert page.jobs.all() == []
    assert not (page.root / "a" / "task.json").exists()


def test_a_log_that_can_not_be_written_fails_the_job(page: Page) -> None:
    (page.root / "job0" / "log.txt").mkdir(parents=True)
    job = page.do(ENDS)
    assert job.state == FAILED
    assert str(page.root / "job0" / "log.txt") in job.message
    page.still_works()


def test_the_log_of_a_run_that_goes_on_is_kept(page: Page) -> None:
    for words in ("first", "second"):
        page.until_state(page.submit("<a>", f'print("{words}", file=sys.stderr)\n' + ENDS), FINISHED)
    assert log_of(page.root / "a").split() == ["first", "second"]


def test_the_worker_gets_the_module_and_an_environment_of_its_own(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/the/webui")
    does = """
(folder / "seen").write_text(json.dumps([sys.argv[1:3], os.getcwd(), os.environ.get("PYTHONPATH")]))
"""
    page.do(does + ENDS)
    seen = json.loads((page.root / "job0" / "seen").read_text())
    assert seen == [["-m", "zoodip_core.jobs.worker"], str(ROOT), None]


# ---------------------------------------------------------------- what no worker should say


@pytest.mark.parametrize(
    "garbage",
    [
        r'b"no JSON at all\n"',
        r'b"\x00\xff\xfe\x80 binary\n"',
        r'b"[1, 2]\n3\nnull\n\"text\"\n"',
        r'b"[" * 100_000 + b"\n"',
        r'b"9" * 100_000 + b"\n"',
        r'b"\n\n"',
        r'b"half a line, and then "',
    ],
)
def test_garbage_is_noted_and_survived(garbage: str, page: Page) -> None:
    job = page.do(f'progress(1)\nraw({garbage})\nraw(b"\\n")\nprogress(2)\n{ENDS}')
    assert (job.state, job.step, job.losses) == (FINISHED, 2, [0.125, 0.25])
    log = log_of(page.root / "job0")
    assert "not an event: " in log
    assert len(log) < 2000


def test_a_line_without_end_is_cut(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_LONGEST_LINE", 10_000)
    job = page.do(f'send("message", text="x" * 1_000_000, warning=True)\nprogress(2)\n{ENDS}')
    assert (job.state, job.step, job.warnings) == (FINISHED, 2, [])
    assert log_of(page.root / "job0").count("not an event: ") == 101


def test_a_very_long_event_is_taken_in(page: Page) -> None:
    """Of the losses of a long run, say."""
    job = page.do(f'send("started", step=300_000, steps=300_001, losses=[1 / 3] * 300_000)\nprogress(300_001)\n{ENDS}')
    assert (job.state, len(job.losses)) == (FINISHED, 300_001)


@pytest.mark.parametrize(
    "more",
    [
        {"step": None},
        {"step": "many"},
        {"step": float("inf")},
        {"step": float("nan")},
        {"steps": []},
        {"loss": "low"},
        {"loss": None},
        {"smoothed": {}},
        {"rate": [1]},
        {"eta": "soon"},
        {"memory": "much"},
        {"memory": float("inf")},
    ],
)
def test_an_event_of_wrong_types_changes_nothing(more: dict[str, Any], tmp_path: Path) -> None:
    job = Job(1, "train", tmp_path, "<a>", tmp_path, state=RUNNING)
    good = {"event": "progress", "step": 2, "steps": 9, "loss": 0.5, "smoothed": 0.5, "rate": 1, "eta": 7, "memory": 1}
    job.hear(good)
    before = Jobs._copy(job)
    assert (before.step, before.losses) == (2, [0.5])
    job.hear({**good, "step": 3, "loss": 0.25, **more})
    assert job == before
    job.hear({key: value for key, value in good.items() if key not in more})
    assert job == before
    job.hear({**good, "step": 3, "learns": "weights"})
    assert (job.message, job.step) == ("learning weights", 3)


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"event": None},
        {"event": ["progress"]},
        {"event": "dance"},
        {"event": "_message"},
        {"event": "message", "text": "x"},
        {"event": "started", "step": 1},
        {"event": "started", "step": 1, "steps": 5, "losses": 3},
        {"event": "started", "step": 1, "steps": 5, "losses": ["x"]},
        {"event": "started", "step": 1, "steps": 5, "losses": [None]},
        {"event": "sampled", "step": 1, "path": 3},
        {"event": "sampled", "step": "x", "path": "y"},
        {"event": "saved"},
        {"event": "saved", "path": None},
        {"event": "saved", "path": "x", "lora": 3},
        {"event": "shown", "path": []},
        {"event": "ended", "embedding": 3},
    ],
)
def test_an_event_that_makes_no_sense_changes_nothing(event: dict[str, Any], tmp_path: Path) -> None:
    job = Job(1, "train", tmp_path, "<a>", tmp_path, state=RUNNING)
    job.hear({"event": "started", "step": 2, "steps": 9, "losses": [0.5, 0.25]})
    before = Jobs._copy(job)
    job.hear(event)
    assert job == before


def test_of_many_warnings_the_last_are_kept(tmp_path: Path) -> None:
    job = Job(1, "train", tmp_path, "<a>", tmp_path, state=RUNNING)
    for number in range(1000):
        job.hear({"event": "message", "text": f"warning {number}", "warning": True})
    assert job.warnings == [f"warning {number}" for number in range(900, 1000)]


def test_figures_that_are_none_end_no_job(page: Page) -> None:
    job = page.do(f'progress(1)\nprogress(float("inf"))\nprogress(2, memory=float("inf"))\nprogress(3)\n{ENDS}')
    assert (job.state, job.losses) == (FINISHED, [0.125, 0.375])


# ---------------------------------------------------------------- a question


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def test_a_question_is_answered(tmp_path: Path, temporary: Path) -> None:
    python = fake_worker(tmp_path)
    does = 'send("checked", kind=job["kind"], preset=job["preset"])\n' + ENDS
    answer = ask(python, "check", settings={"does": does}, preset="fast")
    assert answer == {"event": "checked", "kind": "check", "preset": "fast"}
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ('send("failed", error="no such model", fault=False)\nsys.exit(2)', ("no such model",)),
        (
            'print("where it was", file=sys.stderr)\nsend("failed", error="KeyError: x", fault=True)\nsys.exit(70)',
            ("KeyError: x", "where it was"),
        ),
        ('print("last words", file=sys.stderr)\nos._exit(3)', ("exit code 3", "last words")),
        ('send("checked")\nos._exit(3)', ("exit code 3",)),
        ("pass", ("exit code 0",)),
    ],
)
def test_a_question_without_an_answer(does: str, words: tuple[str, ...], tmp_path: Path, temporary: Path) -> None:
    python = fake_worker(tmp_path)
    does = f'Path({str(tmp_path)!r}, "pid").write_text(str(os.getpid()))\n' + does
    with pytest.raises(ConfigError) as error:
        ask(python, "check", settings={"does": does})
    for word in words:
        assert word in str(error.value)
    assert list(temporary.iterdir()) == []
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("does", ["time.sleep(1000)", 'while True:\n    send("message", text="x", warning=False)'])
def test_a_question_that_finds_no_end_is_given_up(
    does: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_LONGEST_QUESTION", 1.0)  # on a slow computer it has not even begun by then
    with pytest.raises(ConfigError, match="the check did not end within"):
        ask(fake_worker(tmp_path), "check", settings={"does": does})
    assert list(temporary.iterdir()) == []
    assert not [child for child in psutil.Process().children() if str(tmp_path) in " ".join(child.cmdline())]


def test_a_question_to_nobody(tmp_path: Path, temporary: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be started: No such file"):
        ask(tmp_path / "missing", "check")
    assert list(temporary.iterdir()) == []


def test_a_job_file_holds_what_was_asked(tmp_path: Path) -> None:
    file = write_task(tmp_path, "train", tmp_path / "work", settings={"token": "<你好>"}, preset="fast")
    task = json.loads(file.read_text(encoding="utf-8"))
    assert len(task.pop("id")) == 16
    assert task == {
        "version": 1,
        "kind": "train",
        "folder": str(tmp_path / "work"),
        "settings": {"token": "<你好>"},
        "preset": "fast",
    }
