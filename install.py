"""Says whether ZOODiP can train here, and makes the trainer's own environment when asked.

    python install.py              say what is there and what is missing; installs nothing
    python install.py --trainer    make or repair the trainer's own environment

Webuis run it at their start and ComfyUI-Manager after its installation: it then installs nothing, for a host's
packages, torch above all, are the host's. With --trainer it installs into the folder .trainer beside this file and
nowhere else; what was interrupted is resumed when it is run again. Deleting .trainer removes everything.

This file alone runs pip, and nothing imports it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import importlib.util
import os
import platform
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parent))  # whoever runs this may be anywhere

from zoodip_core.base import files
from zoodip_core.jobs import environment

DONE, FAILED, BUSY, STOPPED = 0, 1, 3, 130
"""Exit codes; 2 is argparse's, for wrong arguments."""
PULSE = 5.0
"""Seconds of silence after which a sign of life is printed."""
OLDER_TORCH = ("transformers<5", "diffusers<0.36")
"""Newer ones do not work with torch 2.4 and 2.5: transformers 5 switches torch off."""
CHECKS = (["-c", "import optimum.quanto"], ["-m", "zoodip_core", "inspect", "tiny"])
AGAIN = "Then run this again: it resumes with what is there."
NETWORK = (
    *("NewConnectionError", "Failed to establish a new connection", "Max retries exceeded", "ConnectTimeoutError"),
    *("ReadTimeoutError", "Read timed out", "ProtocolError", "IncompleteRead", "ConnectionResetError", "ProxyError"),
    *("name resolution", "getaddrinfo failed", "Network is unreachable", "Connection refused", "Connection to "),
    *("NameResolutionError", "ConnectionError", "incomplete-download"),
)
TROUBLES = (
    (
        ("No space left on device", "Errno 28", "not enough space on the disk", "WinError 112", "quota exceeded"),
        f"the disk is full. Free some space. {AGAIN}",
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED", "SSLError", "SSLCertVerificationError"),
        "no secure connection to the package index. Often a proxy or a virus scanner stands between; pip reads its "
        f"settings from PIP_CERT and PIP_PROXY. {AGAIN}",
    ),
    (
        NETWORK,
        "the package index was not reached or the connection broke. Check the network, and a proxy if you have one. "
        + AGAIN,
    ),
    (("DO NOT MATCH THE HASHES", "BadZipFile", "is not a zip file"), f"a download was damaged. {AGAIN}"),
    (
        ("Long Path support",),
        "a path is too long for Windows. Turn on long paths (search the web for 'enable Windows long paths'), or put "
        f"the extension into a folder with a shorter path. {AGAIN}",
    ),
    (
        ("Permission denied", "Access is denied", "WinError 5]", "WinError 32]"),
        f"a file may not be written; a program that trains uses it, or the folder is another user's. Stop it. {AGAIN}",
    ),
)


class InstallError(Exception):
    """What ends the installation, in words for the user."""

    def __init__(self, text: str, code: int = FAILED) -> None:
        super().__init__(text)
        self.code = code


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    if args.trainer:
        return install_trainer(args.torch_index or os.environ.get("ZOODIP_TORCH_INDEX", ""), args.yes)
    if under_webui():
        print(state_line())
        return DONE
    report_missing()
    if sys.stdout.isatty():
        print(state_line())
        print((__doc__ or "").partition("\n\n")[2].partition("\n\nThis file")[0])
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", action="store_true", help="make or repair the trainer's own environment")
    parser.add_argument(
        "--torch-index",
        metavar="URL",
        help="the package index that torch comes from (default: ZOODIP_TORCH_INDEX, or the one for the same CUDA or "
        "ROCm as the torch of the Python that runs this, or pip's own); another one than before makes it all anew",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before downloading")
    return parser


# Without --trainer: only words


def under_webui() -> bool:
    """Whether a webui started this: it does so in its own folder, with that folder in PYTHONPATH."""
    folders = [os.curdir, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return any(
        (Path(folder) / "webui.py").is_file() and (Path(folder) / "modules").is_dir() for folder in folders if folder
    )


def state_line() -> str:
    """One line on the trainer."""
    trainer = environment.find_trainer()
    if trainer.python:
        return f"ZOODiP: the trainer is ready ({trainer.why})"
    size = f"about {environment.expected_size().download:g} GB to download"
    return {
        "absent": f"ZOODiP: the trainer is not installed; its tab has a button for that ({size})",
        "incomplete": "ZOODiP: the trainer's installation was cut off; the button in its tab resumes it",
        "outdated": "ZOODiP: the trainer has to be brought up to date; its tab has a button for that",
        "broken": f"ZOODiP: the trainer's Python is gone; the button in its tab makes it anew ({size})",
    }[environment.own_state()]


def report_missing() -> None:
    """What this Python lacks, and how its owner installs it."""
    lacking = environment.unfit()
    others = [phrase for phrase in lacking if not phrase.startswith("torch ")]
    if others:
        command = f'"{sys.executable}" -m pip install -r "{environment.ROOT / "requirements.txt"}"'
        print(f"ZOODiP needs other packages than this Python has: {', '.join(others)}. To install:\n  {command}")
    if len(others) < len(lacking):
        [torch] = set(lacking) - set(others)
        print(f"ZOODiP: {torch}. torch is not in requirements.txt: it comes with the program that this Python is for")


# With --trainer


def install_trainer(index: str, yes: bool) -> int:
    """Make or repair the trainer's environment; returns the exit code. What went wrong is the last line printed."""
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):  # which of them there are depends on the system
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)
    try:
        check_python()
        if index and "://" not in index:
            raise InstallError(
                f"--torch-index {index}: this is not an address of a package index (https://...)", code=2
            )
        with only_one() as lock:
            Installation(index, lock).run(yes)
    except InstallError as error:
        say(f"ZOODiP: {error}")
        return error.code
    except OSError as error:
        say(f"ZOODiP: {error.strerror or error}. {AGAIN}")
        return FAILED
    except KeyboardInterrupt:
        say("ZOODiP: stopped. What is there is kept: run this again to resume.")
        return STOPPED
    return DONE


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def say(text: str) -> None:
    """Print a line at once. If nobody is there to read it any more, stop."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for the rest of the process
        raise KeyboardInterrupt from None


def check_python() -> None:
    """Whether this Python can make a virtual environment that torch can be installed into."""
    if sys.version_info < (3, 10):  # noqa: UP036 - whoever runs this may have any Python
        raise InstallError(
            f"Python 3.10 or newer is needed; this is {platform.python_version()}. Run this with another."
        )
    if sys.maxsize < 2**32:
        raise InstallError(
            "this Python is for 32 bits, for which there is no torch; install a 64-bit Python and use that."
        )
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        index = environment.torch_index(environment.installed("torch"))  # of this Python's, for the same card
        raise InstallError(
            f"this Python can make no virtual environments (its venv or ensurepip is missing). On Debian and Ubuntu: "
            f"sudo apt install python{version}-venv. Elsewhere install Python from python.org and run this with it: "
            f'PYTHON "{Path(__file__).resolve()}" --trainer{f" --torch-index {index}" if index else ""}'
        )


@contextlib.contextmanager
def only_one() -> Iterator[IO[bytes]]:
    """Hold the lock on the trainer's folder; the system frees it when the processes that hold it end, however."""
    files.make_folder(environment.TRAINER)
    path = environment.TRAINER / "lock"
    with files.storage_errors(path):
        file = path.open("ab")
    with file:
        try:
            _take(file)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise InstallError(
                    "another installation of the trainer is at work; wait for its end.", code=BUSY
                ) from None
        yield file  # a file system without locks is not a reason not to install


def _take(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Installation:
    """The steps, each of which finds what the last run left.

    Args:
        index: the package index for torch that the user asked for; empty for the one used before, or the best guess.
        lock: held by the children as well: as long as a pip writes, nobody else may.
    """

    def __init__(self, index: str, lock: IO[bytes]) -> None:
        self.folder = environment.TRAINER
        self.python = environment.python_in(self.folder)
        self.lock = lock
        self.made_with = self.folder / "torch-index"
        before = self.made_with.read_text(encoding="utf-8") if self.made_with.is_file() else None
        self.other_index = bool(index) and before not in (index, None)
        guess = environment.torch_index(environment.installed("torch"))
        self.index = index or (guess if before is None else before)
        self.keep_downloads = True

    def run(self, yes: bool) -> None:
        """Install; at the end the environment has its stamp."""
        ready = environment.own_state() == "ready" and not self.other_index
        if ready and self.sound():
            say(self.ready_line())
            return
        if ready:
            say("ZOODiP: the trainer is damaged; it is made anew")
        self.announce(yes)
        environment.stamp_file().unlink(missing_ok=True)
        fresh = ready or self.other_index or not self.pip_version()
        self.fill(fresh)
        runs = self.sound()
        if not runs and not fresh:
            say("ZOODiP: what an earlier installation left is damaged; it is made anew")
            self.fill(fresh=True)
            runs = self.sound()
        if not runs:
            raise InstallError("the trainer was installed but does not run; the lines above say why.")
        self.remove("cache", "tmp")
        files.write_atomically(environment.stamp_file(), environment.stamp(self.version_of("torch")))
        say(self.ready_line())

    def ready_line(self) -> str:
        return f"ZOODiP: the trainer is ready (its own environment, torch {self.version_of('torch')})"

    def announce(self, yes: bool) -> None:
        """Say what will be done, see that there is room for it, and ask if someone is there."""
        size = environment.expected_size(self.index)
        have = folder_size(self.folder) / 1e9
        free = shutil.disk_usage(self.folder).free / 1e9
        # pip has each file twice for a while: packed and unpacked. A kept copy is a third.
        needed = max(size.folder + size.download - have, 0.5)
        self.keep_downloads = free > needed + size.download
        say(f"ZOODiP: the trainer is installed into {self.folder}")
        say(f"ZOODiP: about {size.download:g} GB to download; {size.folder:g} GB stay on the disk")
        say(f"ZOODiP: torch comes from {self.index or 'the default package index of pip'}")
        say("ZOODiP: nothing outside of that folder is changed; deleting it removes everything")
        if sys.platform == "win32" and not self.index:
            say("ZOODiP: that torch computes on the CPU only. For an NVIDIA card, run this file by hand and add:")
            say("  --torch-index https://download.pytorch.org/whl/cu126")
        if free < needed:
            raise InstallError(
                f"{free:.1f} GB are free on the disk of {self.folder}, and about {needed:.1f} GB are needed. Free some "
                f"space, or make that folder a link to one on another disk. {AGAIN}"
            )
        if not yes and sys.stdin.isatty() and sys.stdout.isatty() and input("Go on? [Y/n] ").strip()[:1] in ("n", "N"):
            raise KeyboardInterrupt

    def fill(self, fresh: bool) -> None:
        """Steps 1 to 3: an environment with torch and the other packages."""
        say("[1/4] the environment")
        if fresh:
            self.remove(*(path.name for path in self.folder.iterdir() if path.name not in ("lock", "cache")))
        self.remove("tmp")
        files.make_folder(self.folder / "tmp")
        if fresh:
            self.make()
        say("[2/4] torch")
        self.pip("[2/4]", [environment.TORCH], self.index)
        files.write_atomically(self.made_with, self.index)
        say("[3/4] the other packages")
        bounds = self.folder / "bounds.txt"
        files.write_atomically(bounds, "\n".join([*upper_bounds(self.version_of("torch")), ""]))
        self.pip("[3/4]", ["-r", str(environment.ROOT / "requirements.txt"), "-c", str(bounds)])

    def make(self) -> None:
        """The virtual environment, with a pip that resumes a download that broke, as new ones do."""
        base = str(environment.this_python() or sys.executable)
        folder = str(self.folder.resolve())  # venv refuses a link to a folder, which may be on another disk
        code, lines = self.child("[1/4]", [base, "-I", "-m", "venv", folder], environment.clean_env())
        if code:
            raise InstallError(diagnosis(lines, "the virtual environment could not be made"))
        code, lines = self.run_pip("[1/4]", ["--upgrade", "pip"])
        if code and any(sign in line for line in lines for sign in NETWORK):
            raise InstallError(diagnosis(lines, "pip could not be brought up to date"))  # else it does as it is

    def sound(self) -> bool:
        """Step 4: whether the environment can train."""
        say("[4/4] checking that it runs")
        env = environment.clean_env()
        return all(self.child("[4/4]", [str(self.python), *check], env)[0] == 0 for check in CHECKS)

    def pip(self, step: str, what: list[str], index: str = "") -> None:
        """Install, or say why not."""
        code, lines = self.run_pip(step, what, index)
        if code:
            raise InstallError(diagnosis(lines, "pip could not install the packages"))

    def run_pip(self, step: str, what: list[str], index: str = "") -> tuple[int, list[str]]:
        """Run the environment's own pip, which is told to refuse to work outside of a virtual environment."""
        scratch = str(self.folder / "tmp")  # the system's own may be small, and here its size shows the progress
        env = environment.clean_env() | {
            "PIP_REQUIRE_VIRTUALENV": "1",
            "PIP_USER": "0",
            "PIP_NO_INPUT": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_CACHE_DIR": str(self.folder / "cache"),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), scratch),
        }
        env.pop("PIP_NO_CACHE_DIR", None)
        command = [str(self.python), "-m", "pip", "install", *what]
        if index:  # and no other: a newer torch elsewhere may be for a CUDA that the driver does not run
            command += ["--index-url", index]
            env["PIP_EXTRA_INDEX_URL"] = index
        if not self.keep_downloads:
            command += ["--no-cache-dir"]
        command += ["--progress-bar", "raw" if self.pip_version() >= (24, 1) else "off"]
        return self.child(step, command, env)

    def pip_version(self) -> tuple[int, ...]:
        """The version of the environment's pip; empty if its Python does not run or has none."""
        return tuple(map(int, re.findall(r"\d+", self.version_of("pip"))))

    def version_of(self, package: str) -> str:
        """What is installed of a package; empty if nothing is."""
        return self.answer(["-I", "-c", f"import importlib.metadata as m; print(m.version('{package}'))"])

    def answer(self, arguments: list[str]) -> str:
        """What the environment's Python prints; empty if it does not run."""
        command = [str(self.python), *arguments]
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=environment.clean_env(), capture_output=True, text=True, check=False
            )
        except OSError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    def remove(self, *names: str) -> None:
        for path in (self.folder / name for name in names):
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise InstallError(
                    f"could not remove {path}: {error.strerror or error}. Stop what trains with it. {AGAIN}"
                ) from error

    def child(self, step: str, command: list[str], env: dict[str, str]) -> tuple[int, list[str]]:
        """Run a program and hand on its lines as they come; returns its exit code and its last lines."""
        process = subprocess.Popen(
            command,
            cwd=environment.ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            pass_fds=() if os.name == "nt" else (self.lock.fileno(),),
        )
        last: collections.deque[str] = collections.deque(maxlen=100)
        try:
            for line in with_pulse(process, self.folder):
                say(f"{step} {line}")
                last.append(line)
            return process.wait(), list(last)
        finally:
            end(process)


def with_pulse(process: subprocess.Popen[str], folder: Path) -> Iterator[str]:
    """A child's lines, and in its silence how far it is."""
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read_lines, args=(process, lines), daemon=True).start()
    started = told = time.monotonic()
    loading = ""
    while True:
        try:
            line = lines.get(timeout=max(0.01, told + PULSE - time.monotonic()))
        except queue.Empty:
            line = ""
        if line is None:
            return
        if progress := re.fullmatch(r"Progress (\d+) of (\d+)", line):  # of pip's download, several in a second
            loading = f"{int(progress[1]) / 1e6:.0f} of {int(progress[2]) / 1e6:.0f} MB downloaded, "
        elif line:
            loading, told = "", time.monotonic()
            yield line
        if time.monotonic() >= told + PULSE:
            seconds = round(time.monotonic() - started)
            yield f"... {loading}{folder_size(folder) / 1e6:.0f} MB in the folder, {seconds // 60}:{seconds % 60:02}"
            told = time.monotonic()


def _read_lines(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError):  # closed while it was read
        for line in process.stdout:
            lines.put(line.rstrip())
    lines.put(None)


def end(process: subprocess.Popen[str]) -> None:
    """End a child that still runs."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()


def folder_size(folder: Path) -> int:
    """The bytes in a folder. Files may vanish meanwhile."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(here) / name).lstat().st_size
    return total


def upper_bounds(torch: str) -> list[str]:
    """What pip may not go beyond: this very torch, and the versions on which the tests run.

    Older ones are allowed: the newest may not be there for an older Python.
    """
    file = environment.ROOT / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    tested = [line.replace("==", "<=") for line in lines if "==" in line and not line.startswith(("#", "torch=="))]
    version = re.match(r"(\d+)\.(\d+)", torch)
    older = version is not None and (int(version[1]), int(version[2])) < (2, 6)
    return [f"torch=={torch}", *tested, *(OLDER_TORCH if older else ())]


def diagnosis(lines: list[str], what: str) -> str:
    """Why a child failed, from its last lines, and what to do."""
    text = "\n".join(lines)
    for signs, meaning in TROUBLES:
        if any(sign in text for sign in signs):
            return f"{what}: {meaning}"
    if "No matching distribution" in text or "ResolutionImpossible" in text:
        return (
            f"{what}: the package index has no version for this Python, {platform.python_version()}, or for this "
            "computer (the lines above say of what), or it was not reached. Run this again; if that does not help, "
            "with another Python (3.10 to 3.13 are safe), or name another index for torch with --torch-index: "
            "https://pytorch.org/get-started lists them."
        )
    return f"{what}; the lines above say why. {AGAIN}"


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console may lack the letters of a path
    sys.exit(main())
