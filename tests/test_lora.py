"""Weights after the token: the search in two stages, cores between singular vectors, and the LoRA they are kept as."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from tests.fake_model import FakeModel
from zoodip_core import Commands, TrainConfig, resume_training, train_token
from zoodip_core.base.errors import CaptionError, ConfigError, LoraFileError, NonFiniteLossError, RunFolderError
from zoodip_core.base.events import Event, Message, Progress
from zoodip_core.cli.main import main
from zoodip_core.cli.screen import Screen
from zoodip_core.model import frames as module
from zoodip_core.model.embedding import load_embedding
from zoodip_core.model.frames import Frames, frames_of, read_text, with_cores
from zoodip_core.model.generation import with_lora
from zoodip_core.model.load import load_quantized
from zoodip_core.model.lora import Lora, load_lora, lora_of, save_lora, serialize
from zoodip_core.model.quantize import QuantizedLayer
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.token_model import View
from zoodip_core.search.estimators import RGE, SPSA, LeaveOneOut
from zoodip_core.search.guard import Guard
from zoodip_core.search.optimizers import NormalizedSGD
from zoodip_core.search.preconditioner import Axes, Spread
from zoodip_core.search.staged import PURPOSE, StagedSearch
from zoodip_core.search.zeroth_order import ZerothOrderSearch
from zoodip_core.tiny import concepts
from zoodip_core.train.draws import Draw
from zoodip_core.train.loop import TrainResult
from zoodip_core.train.presets import PRESETS, preset_for
from zoodip_core.train.replay import rewind
from zoodip_core.train.rounding import adapted
from zoodip_core.train.run_folder import RunFolder

PIP = concepts.load("pip")
STEPS = 12


def config_of(**settings: Any) -> TrainConfig:
    """A short run of which a third is the token's, and the rest the weights'."""
    own: dict[str, Any] = {
        "images": (str(PIP.images),),
        "captions": str(PIP.captions),
        "token": "<pip>",
        "initializer": "monster",
        "steps": STEPS,
        "n": 2,
        "save_every": 5,
        "adapt_mu": False,
        **({"lora_share": 2 / 3} if settings.get("lora_rank", 4) else {}),
    }
    return TrainConfig.with_preset("two-stage", {**own, **settings})


# ---------------------------------------------------------------- the search


def bowl(candidates: torch.Tensor) -> torch.Tensor:
    """Losses whose best token is 1 everywhere, and whose best weights are -1."""
    flat = candidates.double().flatten(1)
    aim = torch.cat([torch.ones(6), -torch.ones(5)]).double()[: flat.shape[1]]
    return (flat - aim).square().sum(dim=1)


def staged(first: int = 4, together: bool = False, patience: int = 0) -> StagedSearch:
    def own(shape: tuple[int, int], **more: Any) -> ZerothOrderSearch:
        return ZerothOrderSearch(
            torch.zeros(shape), LeaveOneOut(3, 0.1), None, NormalizedSGD(0.05), 7, None, Guard(patience), 0.1, **more
        )

    return StagedSearch(own((2, 3)), own((1, 5), purpose=PURPOSE), first, together)


def run(search: StagedSearch | ZerothOrderSearch, steps: int, check: float | None = None) -> None:
    for _ in range(steps):
        search.tell(bowl(search.ask(0.7)), 1.0, check_loss=check, mu_scale=0.7)


def test_the_first_stage_is_the_search_for_the_token() -> None:
    both, alone = staged(), staged().token
    for _ in range(4):
        assert torch.equal(both.ask(), alone.ask())
        assert both.checksum == alone.checksum
        run(both, 1)
        run(alone, 1)
    assert both.in_second
    assert both.began == 4
    assert torch.equal(both.theta, alone.theta)


def test_the_second_stage_leaves_the_token_and_searches_the_weights() -> None:
    search = staged()
    run(search, 4)
    token = search.theta
    alone = staged().cores
    for _ in range(30):
        candidates = search.ask()
        assert candidates.shape == (3, 6 + 5)
        assert torch.equal(candidates[:, :6], token.flatten().expand(3, -1))
        assert torch.equal(candidates[:, 6:], alone.ask()[:, 0])
        losses = bowl(candidates)
        search.tell(losses)
        alone.tell(losses)
    assert torch.equal(search.theta, token)
    assert float(bowl(search.candidate)) < float(bowl(torch.cat([token.flatten(), torch.zeros(5)])[None]))


def test_together_both_move_by_draws_that_have_nothing_in_common() -> None:
    search = staged(together=True)
    run(search, 4)
    before = search.candidate
    moves = []
    for _ in range(400):
        asked = search.ask() - search.ask(0.0)
        moves.append(asked.double())
        run(search, 1)
    drawn = torch.cat(moves)
    across = np.corrcoef(drawn.numpy().T)[:6, 6:]
    assert np.abs(across).max() < 0.15  # of 1,200 draws, whose standard error is 0.03
    assert float(bowl(search.candidate)) < 0.3 * float(bowl(before))
    assert not torch.equal(search.theta.flatten(), before[0, :6])


def test_weights_alone_are_searched_from_the_first_step_on() -> None:
    search = staged(first=0)
    assert search.in_second
    run(search, 3)
    assert (search.began, search.step) == (0, 3)
    assert torch.equal(search.theta, torch.zeros(2, 3))


def test_a_token_that_makes_no_progress_ends_its_stage() -> None:
    search = staged(first=50, patience=2)
    checks = iter([10.0, 5.0, 5.0, 5.0])
    while not search.in_second:
        run(search, 1, next(checks))
    assert search.step == search.began == 4
    assert not search.converged  # the weights are still to come
    assert "guard.idle" not in search.state_dict()
    for loss in (5.0, 4.0, 4.0, 4.0):
        run(search, 1, loss)
    assert search.converged
    assert int(search.state_dict()["guard.idle"]) == 2


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("at", [2, 4, 7])
def test_a_saved_search_goes_on_bit_for_bit(at: int, together: bool) -> None:
    whole = staged(together=together)
    run(whole, at)
    other = staged(together=together)
    other.load_state_dict({name: tensor.clone() for name, tensor in whole.state_dict().items()})
    run(whole, 6)
    run(other, 6)
    assert whole.checksum == other.checksum
    assert (whole.step, whole.began, whole.in_second) == (other.step, other.began, other.in_second)
    assert torch.equal(whole.candidate, other.candidate)


def test_a_step_that_fails_leaves_both_searches_as_they_were() -> None:
    search = staged(together=True)
    run(search, 6)
    before, state = search.checksum, search.state_dict()
    for losses in (torch.tensor([1.0, float("nan"), 1.0]), torch.tensor([1e300, -1e300, 1e300])):
        with pytest.raises(NonFiniteLossError):
            search.tell(losses)
    assert search.checksum == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in search.state_dict().items())


def test_states_of_other_searches_are_refused() -> None:
    search = staged()
    run(search, 6)
    before = search.checksum
    state = search.state_dict()
    broken = [
        staged().token.state_dict(),
        {**state, "second": torch.tensor(1)},
        {**state, "began": torch.tensor(7)},
        {**state, "cores.theta": torch.zeros(1, 4).double()},
        {**state, "token.theta": torch.zeros(2, 4).double()},
    ]
    for each in broken:
        with pytest.raises(ConfigError):
            search.load_state_dict(each)
    assert search.checksum == before
    token, cores = staged().token, staged().cores
    for other in (ZerothOrderSearch(torch.zeros(1, 5), SPSA(2), purpose=PURPOSE), token):
        with pytest.raises(ConfigError, match="as many candidates, and draws of their own"):
            StagedSearch(token, other, 3)
    assert cores.purpose == PURPOSE


def test_each_stage_has_the_whole_of_its_schedules() -> None:
    config = config_of(steps=90, lr_schedule="cosine", checks=9, n=5)
    assert config.token_steps == 30
    assert config.mu_scale(0) == config.mu_scale(30, 30) == config.mu_scale(20, 20) == 1
    assert config.mu_scale(15) == pytest.approx(0.55)
    assert config.mu_scale(60, 30) == pytest.approx(0.55)  # after a stage of 30
    assert config.mu_scale(55, 20) == pytest.approx(0.55)  # after one that ended early
    assert config.lr_scale(60, 30) == pytest.approx(0.5)
    assert config.lr_scale(29) < 0.01
    assert config.checked(30, 30)
    assert config.checked(20, 20)
    assert not config.can_grow
    assert config_of(lora_share=1.0).token_steps == 0
    assert config_of(lora_share=1.0).mu_scale(STEPS // 2) == pytest.approx(0.55)


# ---------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., StableDiffusion]:
    place = tmp_path_factory.mktemp("models")
    known: dict[tuple[str, str], StableDiffusion] = {}

    def model(family: str, weights: str = "none") -> StableDiffusion:
        if (family, weights) not in known:
            file = place / f"{family}.safetensors"
            if family != "tiny" and not file.exists():
                random_models.write_random(file, family, "small")
            source = "tiny" if family == "tiny" else file
            known[family, weights] = load_quantized(source, weights=weights, dtype="float32", device="cpu")
        return known[family, weights]

    return model


FAMILIES = ["tiny", *(pytest.param(family, marks=pytest.mark.slow) for family in ("sd15", "sd21", "sdxl"))]


def test_frames_are_the_largest_singular_triples() -> None:
    draws = np.random.default_rng(0)
    left, right = np.linalg.qr(draws.normal(size=(40, 24)))[0], np.linalg.qr(draws.normal(size=(24, 24)))[0]
    sizes = 5.0 * 0.8 ** np.arange(24)
    weight = torch.from_numpy((left * sizes) @ right.T)
    layer = torch.nn.Linear(24, 40, bias=False)
    layer.weight.data = weight.float()
    unet = torch.nn.Module()
    unet.attn2 = torch.nn.Module()
    unet.attn2.to_k = unet.attn2.to_v = layer
    found = frames_of(unet, 3)
    assert (found.rank, found.numbers) == (3, 18)
    for a, b in found.layers.values():
        u, s, vt = np.linalg.svd(weight.numpy(), full_matrices=False)
        np.testing.assert_allclose(a @ b, (u[:, :3] * s[:3]) @ vt[:3], atol=1e-5)
        np.testing.assert_allclose(a.norm(dim=0).square(), s[:3], rtol=1e-5)  # both sides have the size's root
        np.testing.assert_allclose(b.norm(dim=1).square(), s[:3], rtol=1e-5)
    with pytest.raises(ConfigError, match="lora_rank = 25: this model's weights have ranks of up to 24"):
        frames_of(unet, 25)
    again = Frames.of_tensors(found.tensors())
    assert list(again.layers) == list(found.layers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", ["int8", "int4", "float8", "none"])
def test_a_candidate_s_losses_are_those_of_a_model_with_its_weights(
    models: Callable[..., StableDiffusion], family: str, weights: str
) -> None:
    """Each candidate's cores are written into the dequantised weights, and its loss worked out by itself."""
    model = models(family, weights)
    frames = frames_of(model.unet, 3)
    numbers = 0.3 * torch.randn(3, frames.numbers, generator=torch.Generator().manual_seed(3))
    tokens = 0.05 * torch.randn(3, 2, sum(model.info.dims), generator=torch.Generator().manual_seed(4))
    prompt = model.prompt("a photo of a {} on grass", 2)
    draws = torch.Generator().manual_seed(5)
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=draws)
    view = View(prompt, latents, noise, 600, torch.tensor([64.0, 64, 0, 0, 64, 64]))
    told: list[str] = []
    with torch.no_grad():
        losses_of = model.weights_denoiser([prompt], frames, None, told.append).losses_on(view)
        found = losses_of(torch.cat([tokens.flatten(1), numbers], dim=1))
        shared = losses_of(torch.cat([tokens[:1].flatten(1).expand(3, -1), numbers], dim=1))
        alone = losses_of(tokens)
        zeros = losses_of(torch.cat([tokens.flatten(1), torch.zeros_like(numbers)], dim=1))
        for k in range(3):
            with with_written(model, frames, numbers[k]):
                losses_of_token = model.denoiser([prompt], None, told.append).losses_on(view)
                assert found[k].item() == pytest.approx(losses_of_token(tokens[k : k + 1]).item(), rel=2e-5)
                assert shared[k].item() == pytest.approx(losses_of_token(tokens[:1]).item(), rel=2e-5)
    assert alone.tolist() == pytest.approx(zeros.tolist(), rel=1e-6)
    assert (found - alone).abs().max() > 1e-4 * alone.mean()  # they do something
    assert told == []


class with_written:  # noqa: N801 - a context
    """A model whose weights have the cores in them, as float layers."""

    def __init__(self, model: StableDiffusion, frames: Frames, numbers: torch.Tensor) -> None:
        self._unet, self._frames, self._cores = model.unet, frames, frames.cores(numbers)

    def __enter__(self) -> None:
        self._before: dict[str, Any] = {}
        for name, (a, b) in self._frames.layers.items():
            owner, _, part = name.rpartition(".")
            attention = self._unet.get_submodule(owner)
            layer = getattr(attention, part)
            whole = torch.nn.Linear(b.shape[1], len(a), bias=False)
            whole.weight.data = layer.weight + a @ self._cores[name] @ b
            self._before[name] = layer
            setattr(attention, part, whole)

    def __exit__(self, *_: object) -> None:
        for name, layer in self._before.items():
            owner, part = name.rsplit(".", 1)
            setattr(self._unet.get_submodule(owner), part, layer)


def test_nothing_stays_in_the_model(models: Callable[..., StableDiffusion]) -> None:
    model = models("tiny")
    frames = frames_of(model.unet, 2)
    x = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(0))
    name, layer = next(iter(read_text(model.unet).items()))
    before = layer(x)
    with contextlib.suppress(KeyboardInterrupt), with_cores(model.unet, frames, torch.ones(2, frames.numbers)):
        assert not torch.equal(layer(x), before)
        raise KeyboardInterrupt
    assert torch.equal(layer(x), before)
    assert name in frames.layers


# ---------------------------------------------------------------- files


def made(model: StableDiffusion, rank: int = 4, family: str = "sd1") -> tuple[Frames, torch.Tensor, Lora]:
    frames = frames_of(model.unet, rank)
    numbers = 0.5 * torch.randn(frames.numbers, generator=torch.Generator().manual_seed(1))
    return frames, numbers, lora_of(frames, numbers, {"family": family, "base_model": "small"})


def test_a_lora_is_the_cores_between_their_frames(models: Callable[..., StableDiffusion], tmp_path: Path) -> None:
    frames, numbers, lora = made(models("tiny"))
    file = save_lora(lora, tmp_path / "pip-lora.safetensors")
    assert file.read_bytes() == serialize(load_lora(file))
    tensors = load_file(file)
    assert len(tensors) == 3 * len(frames.layers)
    for i, (name, (a, b)) in enumerate(frames.layers.items()):
        stem = f"lora_unet_{name.replace('.', '_')}"
        core = numbers.view(-1, 4, 4)[i].double().numpy()
        added = tensors[f"{stem}.lora_up.weight"].double() @ tensors[f"{stem}.lora_down.weight"].double()
        np.testing.assert_allclose(added, a.double().numpy() @ core @ b.double().numpy(), rtol=1e-4, atol=1e-7)
        assert tensors[f"{stem}.alpha"].item() == 4
    assert "down_blocks_" in stem or "up_blocks_" in stem or "mid_block_" in stem
    header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])["__metadata__"]
    assert {key: header[key] for key in ("ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_v2")} == {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
        "ss_v2": "False",
    }
    assert header["ss_base_model_version"] == "sd_v1"
    assert list(header) == sorted(header)


@pytest.mark.parametrize("family", [pytest.param("sd15", marks=pytest.mark.slow), "sdxl"])
def test_diffusers_draws_with_the_file_what_we_draw(
    family: str, models: Callable[..., StableDiffusion], tmp_path: Path
) -> None:
    """diffusers' own loader puts it into its UNet, whose predictions are ours to 1e-5."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    model = models(family)
    _, _, lora = made(model, 2, {"sd15": "sd1", "sdxl": "sdxl"}[family])
    file = save_lora(lora, tmp_path / "x-lora.safetensors")
    unet = UNet2DConditionModel.from_config(random_models.configs(family, "small")["unet"])
    unet.load_state_dict({name: p.detach().clone() for name, p in model.unet.state_dict().items()})
    pipeline = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    state, alphas = pipeline.lora_state_dict(str(file))[:2]
    pipeline.load_lora_into_unet(state, network_alphas=alphas, unet=unet)
    draws = torch.Generator().manual_seed(2)
    hidden = torch.randn(1, 77, unet.config.cross_attention_dim, generator=draws)
    noisy = torch.randn(1, 4, 8, 8, generator=draws)
    added = None
    if family == "sdxl":
        added = {"text_embeds": torch.randn(1, 1280, generator=draws), "time_ids": torch.zeros(1, 6)}
    with torch.no_grad():
        theirs = unet(noisy, 500, hidden, added_cond_kwargs=added).sample
        plain = model.unet(noisy, 500, hidden, added_cond_kwargs=added).sample
        with with_lora(model, lora):
            ours = model.unet(noisy, 500, hidden, added_cond_kwargs=added).sample
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    assert float((ours - plain).norm() / plain.norm()) > 1e-3


def test_strength_scales_what_is_added(models: Callable[..., StableDiffusion]) -> None:
    model = models("tiny")
    _, _, lora = made(model, family="tiny")
    layer = read_text(model.unet)[next(iter(frames_of(model.unet, 4).layers))]
    x = torch.randn(1, 5, 128, generator=torch.Generator().manual_seed(0))
    plain = layer(x)
    with with_lora(model, lora):
        once = layer(x)
    for strength in (0.0, 0.5, -1.0):
        with with_lora(model, lora.scaled(strength)):
            torch.testing.assert_close(layer(x) - plain, strength * (once - plain), atol=1e-5, rtol=1e-4)


def test_no_weight_is_made_anew_to_see_whether_a_lora_fits(
    models: Callable[..., StableDiffusion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would cost as much as a forward pass, for each picture that is drawn."""
    model = models("tiny", "int8")
    _, _, lora = made(model, family="tiny")
    monkeypatch.setattr(QuantizedLayer, "weight", property(lambda _layer: pytest.fail("a weight was made")))
    with with_lora(model, lora):
        pass


def test_files_that_are_not_such_a_lora_are_refused_by_what_they_are(
    models: Callable[..., StableDiffusion], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    _, _, lora = made(models("tiny"))
    good = load_file(save_lora(lora, tmp_path / "good.safetensors"))
    stem = next(iter(good)).rsplit(".", 1)[0].split(".lora")[0]

    def refused(name: str, tensors: dict[str, torch.Tensor]) -> str:
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(LoraFileError) as told:
            load_lora(tmp_path / f"{name}.safetensors")
        return str(told.value)

    assert "it is empty" in refused("empty", {})
    assert "it holds lora_te_text_model" in refused("text", {**good, "lora_te_text_model.alpha": torch.ones(())})
    assert "it holds <rex>" in refused("token", {"<rex>": torch.ones(1, 768)})
    conv = {**good, f"{stem}.lora_up.weight": torch.ones(8, 4, 1, 1)}
    assert "is not of a linear layer, or damaged" in refused("conv", conv)
    missing = {name: tensor for name, tensor in good.items() if name != f"{stem}.lora_down.weight"}
    assert "is not of a linear layer, or damaged" in refused("half", missing)
    ruined = {**good, f"{stem}.lora_up.weight": good[f"{stem}.lora_up.weight"] * float("nan")}
    assert "NaN or infinity" in refused("nan", ruined)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-9])
    with pytest.raises(LoraFileError, match="not a safetensors file, or damaged"):
        load_lora(tmp_path / "cut.safetensors")
    with pytest.raises(LoraFileError, match="does not exist"):
        load_lora(tmp_path / "none.safetensors")
    with pytest.raises(LoraFileError, match="choose that ending"):
        save_lora(lora, tmp_path / "lora.pt")


def test_a_lora_of_another_family_is_refused_by_both_names(
    models: Callable[..., StableDiffusion], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = models("tiny")
    frames = frames_of(model.unet, 2)
    wide = {name: (torch.ones(320, 2), torch.ones(2, 768)) for name in frames.layers}
    lora = lora_of(Frames(wide), torch.ones(frames.numbers), {"family": "sd1"})
    with (
        pytest.raises(LoraFileError, match=r"for Stable Diffusion 1\.x does not fit this model, whose layer .* shaped"),
        with_lora(model, lora),
    ):
        pytest.fail("it was taken")
    file = save_lora(lora, tmp_path / "x.safetensors")
    args = ["generate", "--prompt", "a monster", "--output", str(tmp_path), "--steps", "1", "--lora", str(file)]
    assert main(args) == 2
    assert "does not fit this model" in capsys.readouterr().err
    assert main([*args[:-2], "--lora-strength", "0.5"]) == 2
    assert "give the LoRA's file as well" in capsys.readouterr().err
    assert main([*args, "--lora-strength", "11"]) == 2
    assert "must be from -10 to 10" in capsys.readouterr().err
    with pytest.raises(LoraFileError, match="load it as ComfyUI's LoRAs are"), with_lora(FakeModel(), lora):
        pytest.fail("it was taken")


# ---------------------------------------------------------------- runs


def train(config: TrainConfig, path: Path, model: StableDiffusion, stop_after: int | None = None) -> TrainResult:
    commands = Commands()

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.step == stop_after:
            commands.stop()

    if (path / "config.json").exists():
        return resume_training(path, model=model, on_event=on_event, commands=commands)
    return train_token(config, path, model=model, on_event=on_event, commands=commands)


@pytest.fixture(scope="module")
def whole(tiny_model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(config_of(), tmp_path_factory.mktemp("whole") / "run", tiny_model)


def test_a_run_keeps_its_lora_beside_its_token(whole: TrainResult, tiny_model: StableDiffusion) -> None:
    folder = whole.path.parent
    assert whole.lora_path == folder / "pip-lora.safetensors"
    assert [path.name for path in sorted((folder / "loras").iterdir())] == [
        f"step-{step:08d}.safetensors" for step in (5, 10, 12)
    ]
    assert whole.lora is not None
    assert serialize(load_lora(whole.lora_path)) == whole.lora_path.read_bytes() == serialize(whole.lora)
    about = load_lora(whole.lora_path).metadata
    assert (about["token"], about["steps"], about["base_model"]) == ("<pip>", "12", "tiny")
    assert json.loads(about["config"])["lora_rank"] == 4
    token = load_embedding(folder / "snapshots" / "step-00000005.safetensors").vectors
    assert torch.equal(load_embedding(whole.path).vectors, token)  # it stays after the fourth step
    losses = [json.loads(line)["losses"] for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert all(len(each) == 2 and each[0] != each[1] for each in losses)
    with with_lora(tiny_model, load_lora(whole.lora_path)):
        pass  # it fits


@pytest.mark.parametrize(("with_token", "later"), [(False, "weights"), (True, "the token and weights")])
def test_a_run_says_what_it_learns(
    with_token: bool, later: str, tiny_model: StableDiffusion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned, screen = {}, Screen()

    def on_event(event: Event) -> None:
        screen(event)
        if isinstance(event, Progress):
            learned[event.step] = event.learns

    train_token(config_of(lora_with_token=with_token), tmp_path / "run", model=tiny_model, on_event=on_event)
    screen.close()
    assert learned == {step: "the token" if step < 4 else later for step in range(1, 13)}
    shown = capsys.readouterr().err.splitlines()
    also = "the token as well" if with_token else "the token stays as it is"
    told = [line for line in shown if "weights are learned" in line]
    assert told == [f"step 4: after the token, weights are learned ({also})"]  # once, and not behind the bar
    assert any(f"learning {later}, loss" in line for line in shown)


def test_stopped_at_any_step_it_goes_on_to_the_same_bytes(
    whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    for stop in (2, 4, 5, 9):
        stopped = train(config_of(), tmp_path / "run", tiny_model, stop_after=stop)
        assert (stopped.step, stopped.finished) == (stop, False)
        assert (stopped.lora is None) == (stop < 4)
        assert not (tmp_path / "run" / "pip-lora.safetensors").exists()
    assert train(config_of(), tmp_path / "run", tiny_model).finished
    for name in ("pip.safetensors", "pip-lora.safetensors", "state.safetensors", "steps.jsonl", "frames.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (whole.path.parent / name).read_bytes(), name


@pytest.mark.parametrize("gone", ["state.safetensors", "frames.safetensors"])
def test_files_that_are_gone_are_done_without(
    gone: str, whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(config_of(), run, tiny_model, stop_after=9)
    (run / gone).unlink()
    said: list[str] = []
    resumed = resume_training(
        run, model=tiny_model, on_event=lambda e: said.append(e.text) if isinstance(e, Message) else None
    )
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert (run / "pip-lora.safetensors").read_bytes() == (whole.path.parent / "pip-lora.safetensors").read_bytes()
    assert ("frames.safetensors is missing or damaged, and is made anew" in " ".join(said)) == gone.startswith("frames")


def test_every_step_can_be_rewound_to(whole: TrainResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = whole.path.parent
    for step in (0, 3, 4, 5, 10, 12):
        rewound = rewind(run, step, tmp_path / f"{step}.safetensors")
        assert rewound.differs is None
        assert (rewound.lora is None) == (step < 4)
        if step in (5, 10, 12):
            assert rewound.lora is not None
            snapshot = RunFolder.open(run).lora_snapshot_path(step)
            assert load_lora(rewound.lora).layers.keys() == load_lora(snapshot).layers.keys()
            assert load_file(rewound.lora).keys() == load_file(snapshot).keys()
            assert all(
                torch.equal(tensor, load_file(snapshot)[name]) for name, tensor in load_file(rewound.lora).items()
            )
    assert main(["rewind", str(run), "--step", "7", "--output", str(tmp_path / "seven.safetensors")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "seven.safetensors"),
        str(tmp_path / "seven-lora.safetensors"),
    ]
    (tmp_path / "seven.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"seven-lora\.safetensors already exists"):
        rewind(run, 7, tmp_path / "seven.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_with_token": True},
        pytest.param({"lora_share": 1.0, "checks": 3, "patience": 6}, marks=pytest.mark.slow),
        pytest.param({"num_vectors": 2, "weights": "int4", "adapt_mu": True, "lora_rank": 2}, marks=pytest.mark.slow),
    ],
)
def test_other_settings_resume_as_well(settings: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(**settings)
    model = load_quantized("tiny", weights=config.weights)
    straight = train(config, tmp_path / "a", model)
    train(config, tmp_path / "b", model, stop_after=7)
    again = train(config, tmp_path / "b", model)
    assert straight.lora_path is not None
    assert again.lora_path is not None
    assert again.path.read_bytes() == straight.path.read_bytes()
    assert again.lora_path.read_bytes() == straight.lora_path.read_bytes()
    start = load_embedding(tmp_path / "a" / "snapshots" / "step-00000000.safetensors").vectors
    moved = not torch.equal(load_embedding(straight.path).vectors, start)
    assert moved == (config.lora_share < 1)


@pytest.mark.slow
def test_two_ranks_learn_the_bytes_of_one(whole: TrainResult, tmp_path: Path) -> None:
    from tests.test_ranks import together

    config = config_of(batch=1)
    one = train_token(config, tmp_path / "one", model=load_quantized("tiny"))
    together(2, lambda ranks: train_token(config, tmp_path / "two", model=load_quantized("tiny"), ranks=ranks))
    for name in ("pip.safetensors", "pip-lora.safetensors", "steps.jsonl", "frames.safetensors"):
        assert (tmp_path / "two" / name).read_bytes() == (one.path.parent / name).read_bytes(), name
    assert whole.finished


def test_a_run_without_weights_has_nothing_of_them(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    result = train(config_of(lora_rank=0), tmp_path / "run", tiny_model)
    assert (result.lora, result.lora_path) == (None, None)
    assert not {"frames.safetensors", "loras", "pip-lora.safetensors"} & {p.name for p in result.path.parent.iterdir()}


def test_weights_of_int8_draw_on_float_with_a_word_about_it(
    whole: TrainResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["generate", "--embedding", str(whole.path), "--prompt", "a <pip>", "--steps", "2", "--output"]
    lora = ["--lora", str(whole.lora_path)]
    assert main([*common, str(tmp_path / "int8"), *lora]) == 0
    assert "LoRA was learned" not in capsys.readouterr().err
    assert main([*common, str(tmp_path / "none"), *lora, "--weights", "none"]) == 0
    assert "learned on int8 weights, this model has none: it draws nearly the same" in capsys.readouterr().err
    assert main([*common, str(tmp_path / "off"), *lora, "--lora-strength", "0"]) == 0
    assert main([*common, str(tmp_path / "without")]) == 0
    drawn = {name: (tmp_path / name / "pip-1-seed0.png").read_bytes() for name in ("int8", "off", "without")}
    assert drawn["off"] == drawn["without"] != drawn["int8"]


# ---------------------------------------------------------------- settings


def test_the_presets() -> None:
    default, staged_ = preset_for("sd1"), preset_for("sd1", preset="two-stage")
    assert {name for name in default if default[name] != staged_[name]} == {"lora_rank"}
    assert staged_["lora_rank"] == 4
    assert preset_for("sdxl", preset="two-stage")["lora_rank"] == 2
    assert preset_for("sd1", preset="coarse")["steps"] == default["steps"] // 6


def test_runs_of_before_decay_have_none() -> None:
    """A config that was kept without one goes on as it began; every preset has one."""
    kept = {name: value for name, value in config_of().to_dict().items() if name != "lora_weight_decay"}
    assert TrainConfig.from_dict(kept).lora_weight_decay == 0
    assert {preset_for("sd1", preset=each)["lora_weight_decay"] for each in PRESETS} == {0.1}


def test_what_cannot_be_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora_rank = 65: must be from 0 to 64"):
        config_of(lora_rank=65)
    with pytest.raises(ConfigError, match=r"lora_weight_decay = 0\.1: a step shrinks weights by this times lora"):
        config_of(lora_lr=10.0)
    with pytest.raises(ConfigError, match=r"lora_mu = 0\.2 is a setting of weights, of which none are learned"):
        config_of(lora_rank=0, lora_mu=0.2)
    with pytest.raises(ConfigError, match="give class_word, the word that the token stands before"):
        config_of(template="adjective")
    with pytest.raises(ConfigError, match="weights are learned on a Stable Diffusion that ZOODiP loads, not on"):
        train_token(config_of(initializer="red", captions=None), tmp_path / "run", model=FakeModel())
    with pytest.raises(CaptionError, match=r"does not say dragon, the class word; nor do \d+ more: write \{\} dr"):
        train_token(config_of(class_word="dragon"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_token_can_be_an_adjective_of_its_class(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    config = config_of(template="adjective", class_word="monster", captions=None, lora_rank=0, steps=1)
    assert config.sample_prompt == "a photo of a {} monster"
    assert TrainConfig.from_json(config.to_json()) == config
    own = dataclasses.replace(config, sample_prompt="the {} monster")
    assert own.sample_prompt == "the {} monster"
    result = train(config, tmp_path / "run", tiny_model)
    assert result.finished


def test_rounding_is_looked_at_for_weights_as_well(tiny_model: StableDiffusion, monkeypatch: Any) -> None:
    """Where losses differ by less than rounding, weights are moved further as tokens are."""
    from zoodip_core.train.objective import DiffusionObjective
    from zoodip_core.train.prepared import Training

    exact = DiffusionObjective.losses

    def rounded(self: DiffusionObjective, candidates: torch.Tensor, draw: Any) -> torch.Tensor:
        return (exact(self, candidates, draw) * 200).round() / 200

    quiet = Training(config_of(adapt_mu=True), tiny_model).config
    assert quiet.lora_mu == 0.1
    monkeypatch.setattr(DiffusionObjective, "losses", rounded)
    noisy = Training(config_of(adapt_mu=True), tiny_model).config
    assert noisy.lora_mu > 0.1
    assert np.log2(noisy.lora_mu / 0.1) == pytest.approx(round(np.log2(noisy.lora_mu / 0.1)))


def test_weights_whose_losses_drown_are_told_of_and_moved_no_further_than_a_setting_can_say() -> None:
    """Losses that the token changes a thousand times as much as the weights do, and rounding."""
    dim, numbers = 768, 512

    class Weak:
        def draw(self, seed: int, step: int) -> Draw:
            raise AssertionError("rounding has draws of its own")

        def __init__(self) -> None:
            self.noise = np.random.default_rng(0)

        def losses(self, candidates: torch.Tensor, _draw: Any, _at: Any = None) -> torch.Tensor:
            flat = candidates.flatten(1).double()
            token, weights = flat[:, :dim].mean(dim=1), flat[:, dim:].sum(dim=1) / numbers
            return 0.1 + token + 1e-6 * weights + torch.from_numpy(1e-6 * self.noise.standard_normal(len(flat)))

    settings = {**preset_for("sd1", preset="two-stage"), "images": ["x"], "token": "<a>", "initializer": "dog"}
    draws = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(dim, 64, generator=draws)).Q.T.contiguous()
    spread = Spread((Axes(basis, torch.full((64,), 0.015), 0.015),))
    theta0 = 0.015 * torch.randn(1, dim, generator=draws)
    found, said = adapted(TrainConfig.from_dict(settings), Weak(), 4, theta0, spread, numbers)
    assert found.lora_mu == 10
    assert said.warning
    assert "of the weights by" in said.text


@pytest.mark.parametrize(("family", "numbers", "most"), [("sd15", 512, 2e6), ("sdxl", 560, 4e6)])
def test_weights_cost_little_on_models_of_full_size(family: str, numbers: int, most: float) -> None:
    """By count: what a layer's cores compute beside the layer itself, and what all frames hold."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(random_models.configs(family, "full")["unet"])
    rank = preset_for({"sd15": "sd1"}.get(family, family), preset="two-stage")["lora_rank"]
    shapes = [tuple(layer.weight.shape) for layer in read_text(unet).values()]
    assert len(shapes) * rank**2 == numbers
    assert 4 * rank * sum(map(sum, shapes)) < most  # bytes
    assert all(rank * (out + wide + rank) < 0.05 * out * wide for out, wide in shapes)


def test_few_directions_are_looked_for_with_private_draws() -> None:
    state = torch.get_rng_state()
    module._largest(torch.eye(12), 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert RGE().num_candidates == 3
