"""Rewinding: a run's token as it was after any step, without a model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.run import config_of, train
from zoodip_core.base.errors import RunFolderError
from zoodip_core.cli.main import main
from zoodip_core.model.embedding import load_embedding
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.train.loop import resume_training
from zoodip_core.train.replay import rewind
from zoodip_core.train.run_folder import RunFolder

STEPS = 12
ESTIMATORS = {"rge": "zoadam", "spsa": "zosgd", "one-point": "zoadam"}


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """The finished run without the snapshots but the first, by which all others can be made."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    for path in (run / "snapshots").iterdir():
        if path.name != "step-00000000.safetensors":
            path.unlink()
    return run


@pytest.mark.parametrize("with_state", [True, False])
def test_each_steps_token_is_the_file_that_the_run_saved(run: Path, whole: Path, with_state: bool) -> None:
    if not with_state:
        (run / "state.safetensors").unlink()
    for step in range(STEPS + 1):
        rewound = rewind(run, step)
        assert rewound.differs is None
        assert rewound.path == run / "snapshots" / f"step-{step:08d}.safetensors"
        assert rewound.path.read_bytes() == (whole / "snapshots" / rewound.path.name).read_bytes()


@pytest.mark.parametrize(("estimator", "optimizer"), ESTIMATORS.items())
@pytest.mark.parametrize(
    "more",
    [
        {},
        pytest.param({"subspace_gradient": False, "lr_schedule": "constant"}, marks=pytest.mark.slow),
        {"num_vectors": 3, "averaging": 0.3},
    ],
)
def test_every_kind_of_search_is_rebuilt(
    estimator: str, optimizer: str, more: dict[str, Any], model: StableDiffusion, tmp_path: Path
) -> None:
    settings = {"estimator": estimator, "optimizer": optimizer, "steps": 9, "save_every": 1, **more}
    trained = train(tmp_path / "run", model, **settings)
    for step in (0, 1, 4, 8, 9):
        path = rewind(tmp_path / "run", step, tmp_path / f"{step}.safetensors").path
        assert path.read_bytes() == RunFolder.open(tmp_path / "run").snapshot_path(step).read_bytes()
    assert (tmp_path / "9.safetensors").read_bytes() == trained.path.read_bytes()


def test_another_number_of_threads_gives_the_same_bits(run: Path, whole: Path) -> None:
    """A host may use more of them, or fewer, than the run did."""
    wide = train_wide(run.parent / "wide")
    before = torch.get_num_threads()
    for threads in (1, 3):
        output = run.parent / f"{threads}.safetensors"
        torch.set_num_threads(threads)
        try:
            assert rewind(wide, 140, output).differs is None
        finally:
            torch.set_num_threads(before)
        assert output.read_bytes() == RunFolder.open(wide).snapshot_path(140).read_bytes()


def train_wide(path: Path) -> Path:
    """A run's folder as a model of 768 numbers would leave it; its losses are those of a bowl."""
    from zoodip_core.model.embedding import Embedding
    from zoodip_core.search.preconditioner import spread_of
    from zoodip_core.train.journal import Journal, Record

    config = config_of(steps=140, tau=128, lr_schedule="constant", averaging=0.1, directions="vocabulary")
    folder = RunFolder.create(path, config)
    generator = torch.Generator().manual_seed(1)
    start, scale = torch.randn(1, 768, generator=generator), torch.rand(768, generator=generator)
    folder.save_snapshots((Embedding("<pip>", (start,), {"steps": "0"}),), 0)
    spread = spread_of([torch.randn(2000, 768, generator=generator) * scale])
    folder.save_spread(spread)
    search = config.make_search(start, spread)
    with Journal(folder.journal_path, 0) as journal:
        for step in range(1, 141):
            losses = (search.ask().double().square() * scale).sum(dim=(1, 2))
            search.tell(losses, 1.0)
            journal.append(Record(step, 0, 0, 600, tuple(losses.tolist()), 3, search.checksum))
    folder.save_snapshots((Embedding("<pip>", (search.theta,), {"steps": "140"}),), 140)
    return path


# ---------------------------------------------------------------- what cannot be


def test_steps_that_the_run_has_not_come_to_are_refused(run: Path) -> None:
    for step in (-1, 13):
        with pytest.raises(RunFolderError, match=f"has no step {step}; choose one from 0 to 12"):
            rewind(run, step)
    with pytest.raises(RunFolderError, match="is not a run folder"):
        rewind(run.parent, 1)


def test_a_gap_in_the_journal_is_said_with_the_way_round(run: Path) -> None:
    lines = (run / "steps.jsonl").read_bytes().splitlines(keepends=True)
    (run / "steps.jsonl").write_bytes(b"".join([*lines[:3], *lines[4:]]))
    assert rewind(run, 3).differs is None
    assert rewind(run, 12).differs is None  # the saved state's
    with pytest.raises(
        RunFolderError, match=r"step 9 cannot be rebuilt.* nothing of step 4; take the nearest token in"
    ):
        rewind(run, 9)


def test_without_its_first_token_a_run_says_how_to_get_it_back(run: Path, model: StableDiffusion) -> None:
    (run / "snapshots" / "step-00000000.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"step-00000000\.safetensors does not exist.*[Rr]esuming the run"):
        rewind(run, 3)
    resume_training(run, model=model)
    assert rewind(run, 3).differs is None


def test_settings_that_were_changed_by_hand_are_noticed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace('"nu": 0.001', '"nu": 0.5'))
    assert rewind(run, 4).differs is None  # nothing was projected yet
    assert rewind(run, 7).differs == 5
    assert main(["rewind", str(run), "--step", "7"]) == 0
    assert "warning: from step 5 on it may differ from what it was" in capsys.readouterr().err


def test_the_command(run: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "embeddings" / "early.safetensors"
    assert main(["rewind", str(run), "--step", "7", "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert output.read_bytes() == (whole / "snapshots" / "step-00000007.safetensors").read_bytes()
    assert load_embedding(output).metadata["steps"] == "7"
    for more, words in (
        (["--output", str(output)], "already exists; choose another file"),
        (["--output", str(tmp_path / "x.pt")], "saved as .safetensors"),
        ([], "has no step 99; choose one from 0 to 12"),
    ):
        step = "7" if more else "99"
        assert main(["rewind", str(run), "--step", step, *more]) == 2
        assert words in capsys.readouterr().err
