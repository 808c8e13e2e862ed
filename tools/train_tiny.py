"""Train the embedded tiny Stable Diffusion from nothing, on the pictures of ``monsters.py``.

    python tools/train_tiny.py --work build/tiny

Phases, each resumed from its last checkpoint when run again: data, vae, latents, unet, refine,
polish, decoder, judge, export, report. About an hour and a half on two CPU cores with bfloat16
instructions. ``report`` prints how well captions are obeyed (by the judge, over 200 captions) and the
VAE's sharpness, and writes contact sheets beside the checkpoints. ``export`` writes
``zoodip_core/tiny/model``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import monsters
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from zoodip_core.tiny.judge import Judge, to_tensor  # noqa: E402

MODEL = ROOT / "zoodip_core" / "tiny" / "model"
LENGTH = 24
CAPTIONS_AN_IMAGE = 6
SCALING = 0.18215
BFLOAT16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""Where the processor has no instructions for it, it is slower than float32."""
PHASES = ("data", "vae", "latents", "unet", "refine", "polish", "decoder", "judge", "export", "report")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def save_atomically(state: object, path: Path) -> None:
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


# ---------------------------------------------------------------- models


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
        sample_size=monsters.SIZE,
        scaling_factor=SCALING,
    )


def make_unet(cross_attention_dim: int = 128) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=monsters.SIZE // 4,
        layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_scheduler() -> DDPMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        steps_offset=1,
    )


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer in which every word of the captions is one token."""
    rng = np.random.default_rng(7)
    lines = [monsters.caption(monsters.random_monster(rng), rng) for _ in range(20_000)]
    lines += ["blueprint style", *(" ".join(monsters.PREFIXES),) * 5]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=2000, end_of_word_suffix="</w>", continuing_subword_prefix="", show_progress=False
        ),
    )
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": LENGTH,
                "do_lower_case": True,
                "add_prefix_space": False,
                "errors": "replace",
                **special,
            },
            indent=2,
        )
    )
    return CLIPTokenizer.from_pretrained(folder)


# ---------------------------------------------------------------- phases


class Work:
    """The checkpoints and arrays of one training run."""

    def __init__(self, folder: Path, images: int, unet_steps: int) -> None:
        self.folder, self.images, self.unet_steps = folder, images, unet_steps
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self.folder / name

    def state(self, name: str) -> dict:
        return torch.load(self.path(name), weights_only=True)

    def tokenizer(self) -> CLIPTokenizer:
        folder = self.path("tokenizer")
        return CLIPTokenizer.from_pretrained(folder) if folder.exists() else make_tokenizer(folder)

    def vae(self, name: str = "vae.pt") -> AutoencoderKL:
        vae = make_vae()
        vae.load_state_dict(self.state(name))
        return vae.eval().requires_grad_(False)

    def pictures(self) -> np.ndarray:
        return np.load(self.path("pictures.npy"), mmap_mode="r")


_W = TypeVar("_W", bound=Work)


def batch_of(pictures: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures[np.sort(rows)].astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


def held_out_pictures(count: int, seed: int = 99) -> tuple[list[monsters.Monster], list[Image.Image]]:
    rng = np.random.default_rng(seed)
    subjects = [monsters.random_monster(rng) for _ in range(count)]
    return subjects, [monsters.draw(m) for m in subjects]


def cosine(step: int, steps: int, warmup: int = 200) -> float:
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def data(work: Work) -> None:
    rng = np.random.default_rng(0)
    tokenizer = work.tokenizer()
    pictures = np.empty((work.images, monsters.SIZE, monsters.SIZE, 3), np.uint8)
    labels, captions = [], []
    for i in range(work.images):
        subject = monsters.random_monster(rng)
        pictures[i] = np.asarray(monsters.draw(subject))
        keeps = [1.0, 0.85, 0.74, 0.74, 0.6, 0.25]
        captions += [monsters.caption(subject, rng, keep=k) for k in keeps]
        labels.append(
            [
                monsters.SHAPES.index(subject.shape),
                monsters.PATTERNS.index(subject.pattern),
                monsters.EYES.index(subject.eyes),
                monsters.HEADS.index(subject.head),
                list(monsters.PLACES).index(subject.place),
                int(subject.tone is not None),
                *subject.colour,
            ]
        )
    ids = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="np").input_ids
    np.save(work.path("labels.npy"), np.asarray(labels, np.int16))
    np.save(work.path("ids.npy"), ids.reshape(work.images, CAPTIONS_AN_IMAGE, LENGTH).astype(np.int16))
    np.save(work.path("pictures.npy"), pictures)
    say(f"{work.images} pictures, {len(tokenizer)} tokens")


def picture_loss(out: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """L1 + 2 MSE + 0.5 gradient L1: edges count, so that pictures are sharp."""
    edges = sum(F.l1_loss(out.diff(dim=d), real.diff(dim=d)) for d in (2, 3))
    return F.l1_loss(out, real) + 2 * F.mse_loss(out, real) + 0.5 * edges


def psnr(vae: AutoencoderKL, count: int = 500) -> float:
    real = to_tensor(held_out_pictures(count)[1])
    with torch.no_grad():
        out = vae.decode(vae.encode(real).latent_dist.mean).sample.clamp(-1, 1)
    error = (out - real).square().mean((1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())


def train_pictures(
    work: Work, vae: AutoencoderKL, parameters: list, seconds: float, rate: float, out_of: object, seed: int
) -> None:
    """Fit ``parameters`` to reconstruct pictures for ``seconds``, at a cosine rate over the time."""
    pictures, rng = work.pictures(), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4)
    began, step = time.monotonic(), 0
    while (share := (time.monotonic() - began) / seconds) < 1:
        real = batch_of(pictures, rng.integers(0, len(pictures), 16))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * share))
        loss = out_of(vae, real)  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 250 == 0:
            say(f"step {step} {share:.0%} loss {loss.item():.4f}")
        step += 1


def vae(work: Work) -> None:
    torch.manual_seed(1)
    model = make_vae()

    def loss(model: AutoencoderKL, real: torch.Tensor) -> torch.Tensor:
        posterior = model.encode(real).latent_dist
        return (
            picture_loss(model.decode(posterior.sample()).sample, real)
            + 5e-4 * posterior.kl().mean() / posterior.mean[0].numel()
        )

    train_pictures(work, model, list(model.parameters()), float(os.environ.get("VAE_SECONDS", 420)), 2e-3, loss, 1)
    standardise(model, batch_of(work.pictures(), np.arange(min(2000, work.images))))
    say(f"VAE {psnr(model):.2f} dB on held-out pictures")
    save_atomically(model.state_dict(), work.path("vae.pt"))


@torch.no_grad()
def standardise(model: AutoencoderKL, real: torch.Tensor) -> None:
    """Fold each latent channel's mean and scale into the 1 x 1 convolutions around the latents.

    Afterwards latents times SD's own scaling factor have mean 0 and variance 1 in every channel.
    """
    mean = model.encode(real).latent_dist.mean
    shift = mean.mean((0, 2, 3))
    scale = 1 / (SCALING * mean.std((0, 2, 3)))
    weight, bias = model.quant_conv.weight, model.quant_conv.bias
    bias[:4] = (bias[:4] - shift) * scale
    weight[:4] *= scale[:, None, None, None]
    bias[4:] += 2 * scale.log()
    weight, bias = model.post_quant_conv.weight, model.post_quant_conv.bias
    bias += weight[:, :, 0, 0] @ shift
    weight /= scale[None, :, None, None]


@torch.no_grad()
def latents(work: Work) -> None:
    model, pictures = work.vae(), work.pictures()
    means, stds = [], []
    for rows in np.array_split(np.arange(len(pictures)), max(1, len(pictures) // 250)):
        posterior = model.encode(batch_of(pictures, rows)).latent_dist
        means.append((posterior.mean * SCALING).half())
        stds.append((posterior.std * SCALING).half())
    save_atomically({"mean": torch.cat(means), "std": torch.cat(stds)}, work.path("latents.pt"))
    say(f"latents: std {torch.cat(means).float().std((0, 2, 3)).tolist()}")


@dataclass(frozen=True)
class Course:
    """How one stretch of the denoiser's training goes.

    Args:
        high, middle: shares of samples with t in 800-999 and in 300-799; the rest is anywhere.
        captions: how often each of an image's captions is shown, from the full one to the barest.
    """

    name: str
    steps: int
    rate: float
    high: float
    middle: float
    captions: tuple[float, ...]
    seed: int

    def timesteps(self, count: int) -> torch.Tensor:
        anywhere, high = torch.randint(0, 1000, (count,)), torch.randint(800, 1000, (count,))
        chance = torch.rand(count)
        middle = torch.randint(300, 800, (count,))
        return torch.where(chance < self.high, high, torch.where(chance < self.high + self.middle, middle, anywhere))


def unet(work: Work) -> None:
    """From nothing. Many samples at high t, where the caption alone decides colour and place."""
    course = Course("unet", work.unet_steps, 1.2e-3, high=0.35, middle=0.0, captions=(1,) * 6, seed=1_000_000)
    torch.manual_seed(2)
    model = make_denoiser(work.tokenizer())
    train_denoiser(work, model, course)


def refine(work: Work) -> None:
    """More full captions and middle t, where eyes and shapes are decided.

    Without this the number of eyes stays at chance: their words are the last that the model learns to use.
    """
    steps = work.unet_steps * 7 // 12
    course = Course("refine", steps, 8e-4, high=0.25, middle=0.45, captions=(5, 2, 1, 1, 1, 1), seed=2_000_000)
    model = make_denoiser(work.tokenizer())
    model.load_state_dict(work.state("unet_checkpoint.pt")["average"])
    train_denoiser(work, model, course)


def polish(work: Work) -> None:
    """A last short stretch at a low rate, mostly full captions, for counts that still slip."""
    steps = work.unet_steps // 6
    course = Course("polish", steps, 4e-4, high=0.15, middle=0.7, captions=(8, 2, 1, 1, 1, 1), seed=3_000_000)
    model = make_denoiser(work.tokenizer())
    model.load_state_dict(work.state("refine_checkpoint.pt")["average"])
    train_denoiser(work, model, course)


def make_denoiser(tokenizer: CLIPTokenizer) -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict({"unet": make_unet(), "text": make_text_encoder(tokenizer)})


def train_denoiser(work: Work, model: torch.nn.ModuleDict, course: Course) -> None:
    """Fit UNet and text encoder together; goes on from the course's last checkpoint."""
    ids = torch.from_numpy(np.load(work.path("ids.npy")).astype(np.int64))
    empty = work.tokenizer()("", padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids[0]

    def text(rows: torch.Tensor) -> torch.Tensor:
        words = ids[rows, torch.multinomial(torch.tensor(course.captions, dtype=torch.float), len(rows), True)]
        return model["text"](torch.where(torch.rand(len(rows), 1) < 0.1, empty, words)).last_hidden_state

    fit(work, model, course, text)


def fit(work: Work, model: torch.nn.ModuleDict, course: Course, text: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Fit ``model``, whose ``unet`` is shown the latents at some rows with ``text`` of these rows."""
    average = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.rate, weight_decay=1e-2)
    start, checkpoint = 0, work.path(f"{course.name}_checkpoint.pt")
    if checkpoint.exists():
        saved = work.state(checkpoint.name)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, start = saved["average"], saved["step"]
    stored = work.state("latents.pt")
    scheduler, losses, began = make_scheduler(), [], time.monotonic()
    for step in range(start, course.steps):
        torch.manual_seed(course.seed + step)
        rows = torch.randint(0, len(stored["mean"]), (32,))
        z = stored["mean"][rows].float()
        z = z + stored["std"][rows].float() * torch.randn_like(z)
        with torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16):
            hidden = text(rows)
            offset = 0.3 * torch.randn(32, 4, 1, 1) * (torch.rand(32, 1, 1, 1) < 0.5)
            noise, t = torch.randn_like(z) + offset, course.timesteps(32)
            predicted = model["unet"](scheduler.add_noise(z, noise, t), t, hidden).sample
        loss = F.mse_loss(predicted.float(), noise)
        for group in optimizer.param_groups:
            group["lr"] = course.rate * cosine(step, course.steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if value.is_floating_point():
                    average[key].lerp_(value, 1 - min(0.999, (step + 1) / (step + 10)))
        if (step + 1) % 500 == 0 or step + 1 == course.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            save_atomically({**state, "step": step + 1}, checkpoint)
            rate = (step + 1 - start) / (time.monotonic() - began)
            say(f"step {step + 1}/{course.steps} loss {np.mean(losses[-500:]):.4f} {rate:.2f} it/s")


def decoder(work: Work) -> None:
    """Sharpen the decoder on the encoder's frozen latents, made a little noisy as the UNet's are."""
    torch.manual_seed(3)
    model = work.vae()
    parts = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
    for part in parts:
        part.requires_grad_(True)

    def loss(model: AutoencoderKL, real: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            z = model.encode(real).latent_dist.mean
            z = z + 0.04 / SCALING * torch.randn_like(z) * torch.rand(len(z), 1, 1, 1)
        return picture_loss(model.decode(z).sample, real)

    train_pictures(work, model, parts, float(os.environ.get("DECODER_SECONDS", 300)), 1.2e-3, loss, 3)
    say(f"VAE {psnr(model):.2f} dB on held-out pictures after the decoder's training")
    save_atomically(model.state_dict(), work.path("vae_sharp.pt"))


def judge(work: Work) -> None:
    torch.manual_seed(4)
    classes = {
        "shape": list(monsters.SHAPES),
        "pattern": list(monsters.PATTERNS),
        "eyes": [str(n) for n in monsters.EYES],
        "head": list(monsters.HEADS),
        "place": list(monsters.PLACES),
    }
    model, pictures, rng = Judge(classes), work.pictures(), np.random.default_rng(4)
    labels = torch.from_numpy(np.load(work.path("labels.npy")).astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    steps = 3000
    for step in range(steps):
        rows = np.sort(rng.integers(0, len(pictures), 48))
        real, label = batch_of(pictures, rows), labels[rows]
        soft = F.avg_pool2d(F.pad(real, (1, 1, 1, 1), mode="replicate"), 3, 1)
        seen = torch.lerp(real, soft, torch.rand(len(real), 1, 1, 1) * 0.7)
        seen = seen + 0.06 * torch.randn_like(seen)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * cosine(step, steps)
        out, toned = model(seen), label[:, 5].bool()
        loss = sum(F.cross_entropy(out[n], label[:, i]) for i, n in enumerate(("shape", "pattern", "eyes", "head")))
        loss = loss + F.cross_entropy(out["place"][~toned], label[~toned, 4])
        loss = loss + 2 * F.l1_loss(out["colour"][~toned], label[~toned, 6:9].float() / 127.5 - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 500 == 0:
            say(f"step {step} loss {loss.item():.3f}")
    save_file(
        {k: v.half().contiguous() for k, v in model.state_dict().items()},
        work.path("judge.safetensors"),
        metadata={"classes": json.dumps(classes)},
    )
    subjects, drawn = held_out_pictures(500)
    say(f"judge on held-out pictures: {obeyed(Judge.load(work.path('judge.safetensors')), subjects, drawn)}")


def export(work: Work) -> None:
    state = work.state("polish_checkpoint.pt")["average"]
    tokenizer = work.tokenizer()
    both = make_denoiser(tokenizer)
    both.load_state_dict(state)
    pipe = StableDiffusionPipeline(
        vae=work.vae("vae_sharp.pt" if work.path("vae_sharp.pt").exists() else "vae.pt"),
        unet=both["unet"],
        text_encoder=both["text"],
        tokenizer=tokenizer,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(dtype=torch.float16).save_pretrained(MODEL)
    for path in work.path("tokenizer").iterdir():  # the plain files every transformers version reads
        (MODEL / "tokenizer" / path.name).write_bytes(path.read_bytes())
    (MODEL / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    name_as_in_every_checkpoint(MODEL / "text_encoder" / "model.safetensors")
    if work.path("judge.safetensors").exists():
        (MODEL.parent / "judge.safetensors").write_bytes(work.path("judge.safetensors").read_bytes())
    size = sum(p.stat().st_size for p in MODEL.parent.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    say(f"exported to {MODEL}: {size / 1e6:.2f} MB with everything in zoodip_core/tiny")


def name_as_in_every_checkpoint(path: Path) -> None:
    """Put back the ``text_model.`` that transformers 5 leaves out of names and transformers 4 needs."""
    tensors = load_file(path)
    prefix = "text_model."
    save_file({prefix + key.removeprefix(prefix): t for key, t in tensors.items()}, path, metadata={"format": "pt"})


def obeyed(judge: Judge, subjects: list[monsters.Monster], pictures: list[Image.Image]) -> dict[str, float]:
    """Share of pictures in which the judge sees each attribute that the subject names."""
    read = judge.read(pictures)
    right: dict[str, list[bool]] = {}
    names = list(monsters.COLOURS)
    table = torch.tensor(list(monsters.COLOURS.values()), dtype=torch.float32)
    for i, subject in enumerate(subjects):
        if subject.tone:
            continue
        row = []
        for name, wanted in (
            ("shape", subject.shape),
            ("pattern", subject.pattern),
            ("eyes", str(subject.eyes)),
            ("head", subject.head),
            ("place", subject.place),
        ):
            row.append(judge.classes[name][int(read[name][i].argmax())] == wanted)
            right.setdefault(name, []).append(row[-1])
        if subject.colour_name:
            nearest = names[int((table - read["colour"][i]).square().sum(-1).argmin())]
            row.append(nearest == subject.colour_name)
            right.setdefault("colour", []).append(row[-1])
        right.setdefault("all", []).append(all(row))
    return {name: round(float(np.mean(values)), 3) for name, values in right.items()}


def asked_about(count: int, rng: np.random.Generator) -> list[monsters.Monster]:
    """Subjects of which a caption can name everything: of no style, and with a colour that has a word."""
    found: list[monsters.Monster] = []
    while len(found) < count:
        subject = monsters.random_monster(rng)
        if subject.colour_name and not subject.tone:
            found.append(subject)
    return found


def drawn(pipe: StableDiffusionPipeline, prompts: list[str], sheet: Path) -> list[Image.Image]:
    """A picture of each prompt, and all of them in rows of twenty as a file."""
    made: list[Image.Image] = []
    for start in range(0, len(prompts), 40):
        generator = torch.Generator().manual_seed(start)
        some = prompts[start : start + 40]
        made += pipe(some, num_inference_steps=25, guidance_scale=5.0, generator=generator).images
    whole = Image.new("RGB", (20 * monsters.SIZE, -(-len(made) // 20) * monsters.SIZE))
    for i, picture in enumerate(made):
        whole.paste(picture, ((i % 20) * monsters.SIZE, (i // 20) * monsters.SIZE))
    whole.resize((whole.width * 2, whole.height * 2), Image.Resampling.NEAREST).save(sheet)
    return made


def report(work: Work) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    subjects = asked_about(200, np.random.default_rng(123))
    made = drawn(pipe, [monsters.full_caption(m) for m in subjects], work.path("obey.png"))
    scores = Judge.load(work.path("judge.safetensors"))
    say(f"captions obeyed, 200 generated: {obeyed(scores, subjects, made)}")
    say(f"the same, drawn (the judge's ceiling): {obeyed(scores, subjects, [monsters.draw(m) for m in subjects])}")
    say(f"VAE {psnr(pipe.vae):.2f} dB on 500 held-out pictures")
    styles = [f"a {shape} monster in {style} style" for style in monsters.STYLES for shape in ("round", "star")]
    loose = [
        "a monster",
        "a red monster",
        "a heart monster",
        "a monster in the night",
        "",
        "a photo of a striped creature",
    ]
    made = pipe(
        [*styles, *loose] * 1, num_inference_steps=25, guidance_scale=5.0, generator=torch.Generator().manual_seed(5)
    ).images
    sheet = Image.new("RGB", (len(made) * monsters.SIZE, monsters.SIZE))
    for i, picture in enumerate(made):
        sheet.paste(picture, (i * monsters.SIZE, 0))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(work.path("loose.png"))


DONE = {
    "data": "pictures.npy",
    "vae": "vae.pt",
    "latents": "latents.pt",
    "decoder": "vae_sharp.pt",
    "judge": "judge.safetensors",
}


def run_phases(work: _W, phases: dict[str, Callable[[_W], None]], done: dict[str, str], chosen: list[str]) -> None:
    """Those that were chosen, or all but those whose file in ``done`` is there already."""
    for name, phase in phases.items():
        if name in chosen if chosen else not (name in done and work.path(done[name]).exists()):
            say(f"== {name}")
            phase(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for arrays and checkpoints (about 1 GB)")
    parser.add_argument("--phase", choices=PHASES, action="append", default=[], help="run these alone (default: all)")
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--unet-steps", type=int, default=12_000)
    args = parser.parse_args()
    work = Work(args.work, args.images, args.unet_steps)
    run_phases(work, {phase: globals()[phase] for phase in PHASES}, DONE, args.phase)


if __name__ == "__main__":
    main()
