"""A run's files cut at any byte, or with any byte changed: nothing foreign is raised, nothing wrong is believed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.faults.run import assert_same
from zoodip_core.base.errors import ConfigError, RunFolderError
from zoodip_core.base.events import Event, Message
from zoodip_core.model.embedding import load_embedding
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.train import journal
from zoodip_core.train.loop import resume_training
from zoodip_core.train.replay import restore
from zoodip_core.train.run_folder import RunFolder

STEPS = 12


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture(scope="module")
def thetas(whole: Path) -> list[torch.Tensor]:
    """The token after each step, as the live run saved it."""
    return [load_embedding(RunFolder.open(whole).snapshot_path(step)).vectors for step in range(STEPS + 1)]


def restored(run: Path, thetas: list[torch.Tensor], with_state: bool) -> int:
    """Rebuild a run's search as far as it goes; checks that it is the live run's, and returns its step."""
    folder = RunFolder.open(run)
    search = folder.config.make_search(thetas[0])
    state = folder.sound_state() if with_state else None
    assert restore(search, folder.config, folder.past().records, state) is None
    assert torch.equal(search.theta, thetas[search.step])
    return search.step


def state_at(run: Path, step: int) -> None:
    """Give a run the state that it saved after a step."""
    folder = RunFolder.open(run)
    saved = folder.saved_state()
    assert saved
    first = load_embedding(folder.snapshot_path(0)).vectors
    search = folder.config.make_search(first)
    records = {number: record for number, record in folder.past().records.items() if number <= step}
    restore(search, folder.config, records)
    folder.save_state(search.state_dict(), saved.inputs, saved.batch, saved.dtype)


# ---------------------------------------------------------------- the journal


def test_a_journal_cut_at_any_byte_keeps_its_whole_lines(run: Path, thetas: list[torch.Tensor]) -> None:
    file = run / "steps.jsonl"
    content = b"".join(file.read_bytes().splitlines(keepends=True)[:5])  # beyond the first turn; each takes long
    (run / "state.safetensors").unlink()
    for length in range(len(content) + 1):
        file.write_bytes(content[:length])
        lines = content[:length].count(b"\n")
        past = journal.read(file)
        assert (sorted(past.records), past.damaged) == (list(range(1, lines + 1)), ())
        assert journal.last_step(file) == lines
        if length % 61 == 0 or content[length - 1 : length] == b"\n":  # the rest takes long
            assert RunFolder.open(run).step() == lines
            assert restored(run, thetas, with_state=False) == lines
        journal.cut(file, lines)
        assert file.read_bytes() == content[: content[:length].rfind(b"\n") + 1]


@pytest.mark.slow
def test_a_changed_byte_in_a_journal_is_found(run: Path, thetas: list[torch.Tensor]) -> None:
    """Any other value of any byte; the state bridges a gap that lies before it."""
    file = run / "steps.jsonl"
    content = file.read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    state_at(run, 5)
    for place in range(len(content)):
        line = sum(end < place for end in ends) + 1
        for flip in (1 << place % 8, 0xFF):
            file.write_bytes(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
            past = journal.read(file)
            lost = {line, line + 1} if place in ends and line < STEPS else {line}
            assert set(range(1, STEPS + 1)) - past.records.keys() == lost
            torn = line == STEPS and place in ends
            assert past.damaged == (() if torn else (line,))
    lines = content.splitlines(keepends=True)
    for line in (1, 3, 5, 6, 9, 12):
        file.write_bytes(b"".join([*lines[: line - 1], b"{}\n", *lines[line:]]))
        assert restored(run, thetas, with_state=True) == (STEPS if line <= 5 else line - 1)
        assert restored(run, thetas, with_state=False) == line - 1


@pytest.mark.parametrize("line", [2, 8])
def test_a_damaged_journal_is_said_and_resumed_from(line: int, run: Path, whole: Path, model: StableDiffusion) -> None:
    state_at(run, 5)
    (run / "pip.safetensors").unlink()
    lines = (run / "steps.jsonl").read_bytes().splitlines(keepends=True)
    damaged = lines[line - 1].replace(b'"t":', b'"t" :')
    (run / "steps.jsonl").write_bytes(b"".join([*lines[: line - 1], damaged, *lines[line:]]))
    told: list[Event] = []
    result = resume_training(run, model=model, on_event=told.append)
    said = [event.text for event in told if isinstance(event, Message) and event.warning]
    assert f"{run / 'steps.jsonl'}: line {line} does not match its checksum, and is left out" in said
    assert ("the steps from 8 on are taken again" in said) == (line == 8)
    assert result.path.read_bytes() == (whole / "pip.safetensors").read_bytes()
    assert (run / "state.safetensors").read_bytes() == (whole / "state.safetensors").read_bytes()
    if line == 8:  # no state led across: all is as if nothing had been
        assert (run / "steps.jsonl").read_bytes() == (whole / "steps.jsonl").read_bytes()


@pytest.mark.parametrize("names", [("steps.jsonl",), ("state.safetensors",), ("steps.jsonl", "state.safetensors")])
def test_files_that_are_gone_cost_no_more_than_their_steps(
    names: tuple[str, ...], run: Path, whole: Path, model: StableDiffusion
) -> None:
    for name in (*names, "pip.safetensors"):
        (run / name).unlink()
    result = resume_training(run, model=model)
    assert len(result.losses) == (STEPS if len(names) == 2 else 0)
    for name in ("pip.safetensors", "state.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_steps_that_come_out_otherwise_are_taken_again(run: Path, whole: Path, model: StableDiffusion) -> None:
    """As where another processor or version rounds differently; here the settings were changed by hand."""
    config = (run / "config.json").read_text()
    (run / "state.safetensors").unlink()
    (run / "config.json").write_text(config.replace('"nu": 0.001', '"nu": 0.5'))
    told: list[Event] = []
    result = resume_training(run, model=model, on_event=told.append)
    assert len(result.losses) == STEPS - 4  # the first projection acts on the fifth
    said = [event.text for event in told if isinstance(event, Message) and event.warning]
    assert [text for text in said if text.startswith("the steps from 5 on are taken again: they come out with other")]


# ---------------------------------------------------------------- the saved state


def test_a_state_cut_or_changed_at_any_byte_is_found(run: Path) -> None:
    file = run / "state.safetensors"
    content, sound = file.read_bytes(), load_file(file)
    header = 8 + int.from_bytes(content[:8], "little")
    folder = RunFolder.open(run)
    places = [*range(header), *range(header, len(content), 17)]
    for place in places:
        for damaged in (content[:place], content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :]):
            file.write_bytes(damaged)
            found = folder.sound_state()
            if found is None:
                with pytest.raises(
                    RunFolderError, match=r"state\.safetensors (is damaged|was written by a newer ZOODiP)"
                ):
                    folder.saved_state()
            else:  # what was changed is beside the point: a blank, or what the library does not look at
                assert found.keys() == sound.keys()
                assert all(torch.equal(found[key], sound[key]) for key in sound)


def test_a_newer_state_is_refused_or_done_without(run: Path, model: StableDiffusion) -> None:
    file = run / "state.safetensors"
    with safe_open(file, framework="pt") as stored:
        about = stored.metadata()["about"]
    save_file(load_file(file), file, {"about": about.replace('"version": 2', '"version": 3')})
    with pytest.raises(RunFolderError, match="newer ZOODiP; update"):
        RunFolder.open(run).saved_state()
    (run / "steps.jsonl").unlink()
    with pytest.raises(RunFolderError, match="newer ZOODiP; update"):
        resume_training(run, model=model)


# ---------------------------------------------------------------- the rest


def test_settings_cut_at_any_byte_are_refused(run: Path) -> None:
    file = run / "config.json"
    content = file.read_bytes()
    for length in range(len(content) - 2):
        file.write_bytes(content[:length])
        with pytest.raises(ConfigError, match=r"config\.json"):
            RunFolder.open(run)


def test_damaged_tokens_and_pictures_are_written_again(run: Path, whole: Path, model: StableDiffusion) -> None:
    for path in (run / "pip.safetensors", run / "loss.png", *(run / "snapshots").iterdir()):
        path.write_bytes(path.read_bytes()[:50])
    resume_training(run, model=model)
    assert_same(run, whole)
    assert (run / "loss.png").read_bytes() == (whole / "loss.png").read_bytes()
