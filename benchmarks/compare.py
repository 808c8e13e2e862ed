"""Our training against the paper's procedure and gradient textual inversion: speed, arithmetic, memory.

The same model, images, image size and device for all; each arm runs in a process of its own, one after
another, so that its memory figures are its own.

    a      our engine: cached image posteriors, the candidates of a step in one batch; on CUDA a step is one graph
    a-off  as a without graphs
    b      our engine, candidates one after another
    c      the paper's procedure: image encoded at each step, n + 1 forwards one after another, 16-bit activations,
           VAE, UNet and text encoder stored in int8 by optimum-quanto (supplement S1.3)
    c16    as c with 16-bit weights
    d      textual inversion with gradients, as diffusers' example does it: the whole embedding table is trained by
           autograd and AdamW, all other rows put back after each step, image encoded at each step, batch 1; float32
    d-amp  as d with mixed precision: VAE and UNet 16-bit, the text encoder float32 under autocast

The baselines (c to d-amp) use diffusers, transformers and quanto directly. What they do differently from the
scripts they stand for costs them nothing or spares them something: photographs and token ids are prepared once,
no tokenizer is loaded, weights are read in the type they are used in, and c has no Subspace Gradient.

The random models have a family's full size and random weights: cost and memory do not depend on the values.
They are written once, as a single file for our engine and as a diffusers folder for the baselines.

    python benchmarks/compare.py [--model random-sd15] [--arms a,a-off,b,c,c16,d,d-amp] [--steps 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

ARMS = {
    "a": "ours, candidates in a batch",
    "a-off": "ours, graphs off",
    "b": "ours, candidates in turn",
    "c": "paper's procedure, quanto",
    "c16": "paper's procedure, 16-bit",
    "d": "gradient TI, float32",
    "d-amp": "gradient TI, AMP",
}
REFERENCES = ("c", "c16", "d", "a-off")
FORWARDS_TO_QUALITY = {"ours": 513, "paper": 4500, "gradient": 300}
"""To the loss that the paper's search has at 4,500 on the embedded model: ours on the geometric mean (RESULTS.md), the
gradient's at most, since it is beyond at the first look."""
SIZES = {"random-sd15": 512, "random-sd21": 768, "random-sdxl": 1024}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
WARM_UP = 1
GRAPH_WARM_UP = 3
"""The first step is plain, the second is captured."""
MU, LR = 1e-3, 5e-3  # the paper's; their values cost nothing
PUTS = (500, 900)


@dataclass(frozen=True)
class Job:
    """What a child process is to do, handed to it as JSON.

    ``model`` is what our engine loads and ``folder`` the same model for the baselines; ``dtype`` is the
    type of our activations and ``half`` the baselines' 16-bit type.
    """

    arm: str
    model: str
    folder: str
    images: str
    size: int
    n: int
    steps: int
    weights: str
    dtype: str
    half: str
    device: str


# ---------------------------------------------------------------- memory


def _status(name: str) -> int | None:
    """A figure of /proc/self/status in bytes, or None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), None)


def _process_peak() -> int | None:
    """Peak resident bytes since the last reset, or of the process's whole life where it cannot be reset."""
    peak = _status("VmHWM")
    if peak is None and sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak


def _reset_process_peak() -> bool:
    """Let the peak start again from what is resident now; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class Memory:
    """Peaks above what the process held when this was made, of the host and of the GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.resettable = self.reset()
        self.before = {**self._peaks(), "host": _status("VmRSS") or _process_peak() or 0}

    def reset(self) -> bool:
        """Give back what is free, then start the peaks again."""
        gc.collect()
        with contextlib.suppress(OSError, AttributeError, TypeError):  # glibc alone has it
            ctypes.CDLL(None).malloc_trim(0)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        return _reset_process_peak()

    def read(self) -> dict[str, int]:
        """Bytes by name: ``host``, and on CUDA torch's two peaks and what the driver says is in use now."""
        return {name: peak - self.before[name] for name, peak in self._peaks().items()}

    def _peaks(self) -> dict[str, int]:
        peak = _process_peak()
        figures = {} if peak is None else {"host": peak}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            free, total = torch.cuda.mem_get_info(self.device)
            figures["allocated"] = torch.cuda.max_memory_allocated(self.device)
            figures["reserved"] = torch.cuda.max_memory_reserved(self.device)
            figures["driver"] = total - free
        return figures


# ---------------------------------------------------------------- arithmetic


def _linear_flop(inputs: Any, *_args: Any, out_shape: Any = None, **_kwargs: Any) -> int:
    """Of a quantised linear operation: its inputs times as many outputs a row."""
    return 2 * int(np.prod(inputs)) * int(out_shape[-1])


def _attention_flop(query: Any, key: Any, value: Any, *_args: Any, **_kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flop(gradient: Any, query: Any, key: Any, value: Any, *_args: Any, **_kwargs: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products, convolutions and attentions in ``work``, backward too."""
    aten, quanto = torch.ops.aten, torch.ops.quanto
    formulas: dict[Any, Callable[..., int]] = {  # the counter would take these for free
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,
    }
    for space, name in ((quanto, "qbytes_mm"), (quanto, "gemm_f16i4_awq"), (aten, "_weight_int4pack_mm")):
        if hasattr(space, name):
            formulas[getattr(space, name)] = _linear_flop
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        work()
    return counter.get_total_flops()


# ---------------------------------------------------------------- our engine


def is_ours(arm: str) -> bool:
    return arm[0] in "ab"


def ours(job: Job) -> tuple[Callable[[], object], int]:
    """A step of our training and how many candidates it takes through the UNet."""
    from zoodip_core import TrainConfig
    from zoodip_core.model.kinds import TINY
    from zoodip_core.train.prepared import Training

    settings: dict[str, Any] = {}
    known = {spec.name for spec in dataclasses.fields(TrainConfig)}
    if "batch" in known:
        settings["batch"] = 1 if job.arm == "b" else 0
    if "graphs" in known:
        settings["graphs"] = "off" if job.arm == "a-off" else "auto"
    training = Training(
        TrainConfig(
            images=(job.images,),
            token="<bench>",
            initializer="monster" if job.model == TINY else "dog",
            model=job.model,
            weights=job.weights,
            dtype=job.dtype,
            device=job.device,
            resolution=job.size,
            n=job.n,
            **settings,
        )
    )
    return training.step, job.n + 1


# ---------------------------------------------------------------- the baselines


class Baseline:
    """A Stable Diffusion from a diffusers folder, with one token's row added to each of its embedding tables.

    Args:
        job: the measurement.
        text_dtype: of the text encoders.
        dtype: of the UNet and the VAE.
        quantized: whether quanto stores their weights.
    """

    def __init__(self, job: Job, text_dtype: torch.dtype, dtype: torch.dtype, quantized: bool = False) -> None:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        self.job, self.device, self.dtype, self.quantized = job, torch.device(job.device), dtype, quantized
        self.vae = self._ready(AutoencoderKL, "vae", dtype)
        self.encoders = [self._ready(CLIPTextModel, "text_encoder", text_dtype)]
        if (Path(job.folder) / "text_encoder_2").is_dir():
            self.encoders.append(self._ready(CLIPTextModelWithProjection, "text_encoder_2", text_dtype))
        self.unet = self._ready(UNet2DConditionModel, "unet", dtype)
        self.scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        self.tables = [encoder.get_input_embeddings().weight for encoder in self.encoders]
        self.ids = self._prompt()
        pictures = [path for path in sorted(Path(job.images).iterdir()) if path.suffix.lower() in PICTURES]
        self.pixels = [self._pixels(path) for path in pictures]

    def _ready(self, kind: Any, part: str, dtype: torch.dtype) -> Any:
        """A part, frozen, with the token's row where it is a text encoder, quantised last as quanto wants it."""
        module = kind.from_pretrained(self.job.folder, subfolder=part, torch_dtype=dtype, local_files_only=True)
        module = module.eval().requires_grad_(False).to(self.device)
        if part.startswith("text_encoder"):
            rows = module.get_input_embeddings().weight.shape[0]
            module.resize_token_embeddings(rows + 1, mean_resizing=False)
            module.requires_grad_(False)
            table = module.get_input_embeddings().weight
            table[rows] = table[rows // 2]  # the initializer: any word
        if self.quantized:
            _quantize(module, self.job.weights)
        return module

    def _prompt(self) -> torch.Tensor:
        """Ids of a five-word caption whose fourth word is the token; CLIP's start and end are its last two ids."""
        token = len(self.tables[0]) - 1
        start, end = token - 2, token - 1
        ids = [start, 20, 21, 22, token, 23]
        length = self.encoders[0].config.max_position_embeddings
        return torch.tensor([ids + [end] * (length - len(ids))], device=self.device)

    def _pixels(self, path: Path) -> torch.Tensor:
        size = (self.job.size, self.job.size)
        picture = np.asarray(Image.open(path).convert("RGB").resize(size), dtype=np.float32) / 127.5 - 1
        return torch.from_numpy(picture).permute(2, 0, 1)[None].to(self.device, self.dtype)

    @torch.no_grad()
    def draw(self, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A noisy image, its noise and its timestep; the image goes through the VAE's encoder."""
        pixels = self.pixels[int(torch.randint(len(self.pixels), ()))]
        latents = self.vae.encode(pixels).latent_dist.sample() * self.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        t = torch.randint(low, high, (1,), device=self.device)
        return self.scheduler.add_noise(latents, noise, t), noise, t

    def text(self) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
        """What the UNet is told: hidden states, and SDXL's pooled embedding and image sizes."""
        if len(self.encoders) == 1:
            return self.encoders[0](self.ids)[0].to(self.dtype), None
        outputs = [encoder(self.ids, output_hidden_states=True) for encoder in self.encoders]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        side = self.job.size
        times = torch.tensor([[side, side, 0, 0, side, side]], device=self.device, dtype=self.dtype)
        return hidden.to(self.dtype), {"text_embeds": outputs[1][0].to(self.dtype), "time_ids": times}

    def loss(
        self, draw: tuple[torch.Tensor, torch.Tensor, torch.Tensor], autocast: torch.dtype | None = None
    ) -> torch.Tensor:
        """The denoising loss, of text encoders and UNet; ``autocast`` is for the text encoders."""
        noisy, noise, t = draw
        with torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            hidden, added = self.text()
        predicted = self.unet(noisy, t, encoder_hidden_states=hidden, added_cond_kwargs=added).sample
        return functional.mse_loss(predicted.float(), noise.float())


def _quantize(module: Any, weights: str) -> None:
    from optimum import quanto

    quanto.quantize(module, weights=getattr(quanto, {"float8": "qfloat8"}.get(weights, f"q{weights}")))
    quanto.freeze(module)
    for layer in module.modules():  # quanto's bfloat16 kernel for the CPU fails on any other input
        if isinstance(layer, quanto.QLinear):
            layer.register_forward_pre_hook(lambda _layer, args: (args[0].contiguous(), *args[1:]))


def forward_only(job: Job) -> tuple[Callable[[], object], int]:
    """A step of the paper's procedure: random gradient estimation from n + 1 forwards in turn, then Adam."""
    half = DTYPES[job.half]
    model = Baseline(job, half, half, quantized=job.arm == "c")
    thetas = [table[-1].detach().float().clone() for table in model.tables]
    adam = torch.optim.Adam(thetas, lr=LR)

    def loss_of(candidate: list[torch.Tensor], draw: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        for table, row in zip(model.tables, candidate, strict=True):
            table[-1] = row
        return model.loss(draw)

    @torch.no_grad()
    def step() -> None:
        draw = model.draw(*PUTS)
        base = loss_of(thetas, draw)
        for theta in thetas:
            theta.grad = torch.zeros_like(theta)
        for _ in range(job.n):
            directions = [torch.randn_like(theta) for theta in thetas]
            moved = [theta + MU * direction for theta, direction in zip(thetas, directions, strict=True)]
            slope = (loss_of(moved, draw) - base) / MU
            for theta, direction in zip(thetas, directions, strict=True):
                theta.grad += slope * direction / job.n
        adam.step()

    return step, job.n + 1


def gradient(job: Job) -> tuple[Callable[[], object], int]:
    """A step of gradient textual inversion; with AMP the text encoders stay float32 under autocast."""
    half = DTYPES[job.half] if job.arm == "d-amp" else None
    model = Baseline(job, torch.float32, half or torch.float32)
    for encoder, table in zip(model.encoders, model.tables, strict=True):
        encoder.train()
        table.requires_grad_(True)
    originals = [table.detach().clone() for table in model.tables]
    frozen = [torch.arange(len(table), device=table.device) < len(table) - 1 for table in model.tables]
    adamw = torch.optim.AdamW(model.tables, lr=5e-4, weight_decay=1e-2)
    scaler = torch.amp.GradScaler(model.device.type, enabled=half == torch.float16 and model.device.type == "cuda")

    def step() -> None:
        loss = model.loss(model.draw(0, 1000), autocast=half)
        scaler.scale(loss).backward()
        scaler.step(adamw)
        scaler.update()
        adamw.zero_grad()
        with torch.no_grad():
            for table, original, rows in zip(model.tables, originals, frozen, strict=True):
                table[rows] = original[rows]

    return step, 1


# ---------------------------------------------------------------- a child process


def touch_libraries(device: torch.device) -> None:
    """Import and start all that any arm uses, so that none of it counts as the memory of an arm."""
    import diffusers
    import optimum.quanto
    import transformers

    for library, names in (
        (diffusers, ("AutoencoderKL", "DDPMScheduler", "UNet2DConditionModel")),
        (transformers, ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPTokenizer")),
        (importlib.import_module("zoodip_core.train.loop"), ("Training",)),
    ):
        for name in names:  # they are read at first use
            getattr(library, name)
    transformers.logging.set_verbosity_error()
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 8)).to(device)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(1, 3, 8, 8, device=device)).sum().backward()
    optimizer.step()
    net.requires_grad_(False)
    optimum.quanto.quantize(net, weights=optimum.quanto.qint8)
    optimum.quanto.freeze(net)
    net(torch.randn(1, 3, 8, 8, device=device))


def measure(job: Job) -> dict[str, Any]:
    """All figures of one arm. The operations are counted in a step of their own, after the others."""
    device = torch.device(job.device)
    touch_libraries(device)
    torch.manual_seed(0)
    memory = Memory(device)
    began = time.perf_counter()
    build = ours if is_ours(job.arm) else gradient if job.arm.startswith("d") else forward_only
    step, forwards = build(job)
    load_seconds, loading = time.perf_counter() - began, memory.read()
    memory.reset()
    warm_up = GRAPH_WARM_UP if device.type == "cuda" else WARM_UP
    seconds = [_timed(step, device) for _ in range(warm_up + job.steps)]
    training = memory.read()
    median = statistics.median(seconds[warm_up:])
    return {
        "steps_per_second": 1 / median,
        "forwards_per_second": forwards / median,
        "forwards_per_step": forwards,
        "flop_per_step": None if job.arm in ("a", "b") and device.type == "cuda" else count_flops(step),
        "training_peak": training,
        "loading_peak": loading,
        "before": memory.before,
        "peak_resettable": memory.resettable,
        "load_seconds": load_seconds,
        "warm_up_seconds": seconds[:warm_up],
        "step_seconds": seconds[warm_up:],
    }


def _timed(step: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def build_random(job: Job) -> dict[str, Any]:
    """Write a family's random model in float16: one file for our engine, a diffusers folder for the baselines."""
    random_models = importlib.import_module("random_models")
    family = job.arm.removeprefix("random-")
    modules = random_models.build(family, "full", 0)
    for module in modules.values():
        if isinstance(module, torch.nn.Module):
            module.half()
    random_models.write_ldm(Path(job.model), modules, family, torch.float16)
    random_models.write_diffusers(Path(job.folder), modules, family)
    return {}


# ---------------------------------------------------------------- the parent process


def run_child(job: Job) -> dict[str, Any]:
    """The child's figures, or ``{"error": ...}``."""
    command = [sys.executable, str(Path(__file__).resolve()), "--arm", json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode == 0:
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return figures
    print(done.stderr, file=sys.stderr, end="")
    if done.returncode < 0:
        return {"error": f"killed by {signal.Signals(-done.returncode).name} (out of memory?)"}
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return {"error": lines[-1].strip() if lines else f"exit status {done.returncode}"}


def random_model(job: Job, cache: Path) -> Job:
    """The job with the paths of the random model in ``job.model``, which is written if it is not there yet."""
    name, home = job.model, cache.resolve() / job.model
    if not home.is_dir():
        part = home.with_name(home.name + ".part")  # renamed when complete, so that a killed run leaves no half model
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        print(f"writing {name} to {home} ...", file=sys.stderr, flush=True)
        place = replace(job, arm=name, model=str(part / f"{name}.safetensors"), folder=str(part / "diffusers"))
        if error := run_child(place).get("error"):
            raise SystemExit(f"{name} could not be written: {error}")
        part.rename(home)
    return replace(job, model=str(home / f"{name}.safetensors"), folder=str(home / "diffusers"))


def own_size(folder: Path) -> int:
    """The image size that a diffusers folder's model was made for."""
    unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae"))
    return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)


def noise_images(folder: Path, size: int) -> None:
    random = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{index}.png")


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    from zoodip_core.base.version import __version__

    known = {"python": platform.python_version(), "zoodip": __version__, "torch": torch.__version__}
    for name in ("diffusers", "transformers", "optimum-quanto", "accelerate"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[name] = importlib.metadata.version(name)
    return known


# ---------------------------------------------------------------- the table


def stored_as(job: Job, arm: str) -> str:
    """Weights and activations of an arm, in words."""
    if is_ours(arm):
        return f"{job.weights}, {job.dtype}"
    return {"c": f"{job.weights}, {job.half}", "c16": job.half, "d": "float32"}.get(arm, f"{job.half} + f32 text")


def headline(result: dict[str, Any]) -> dict[str, float | None]:
    """The figures that are compared: the GPU's peak on CUDA, else the process's."""
    peak = result.get("training_peak", {})
    return {
        "speed": result.get("steps_per_second"),
        "flop": result.get("flop_per_step"),
        "peak": peak.get("allocated", peak.get("host")),
    }


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Of each arm to each reference: ``ratios[arm][reference][figure]``."""

    def ratio(mine: float | None, other: float | None) -> float | None:
        return mine / other if mine is not None and other else None

    heads = {arm: headline(result) for arm, result in results.items()}
    return {
        arm: {
            reference: {name: ratio(mine[name], heads[reference][name]) for name in mine}
            for reference in REFERENCES
            if reference in heads
        }
        for arm, mine in heads.items()
    }


def _number(value: float | None, width: int, digits: int = 3) -> str:
    return f"{'-' if value is None else f'{value:,.{digits}f}':>{width}}"


def print_header(cuda: bool) -> None:
    print(f"{'':<6} {'':<28} {'weights, activations':<21} {'steps/s':>9} {'fwd/s':>9} {'GFLOP/step':>11}", end="")
    names = ("train", "reserved", "driver", "load", "host") if cuda else ("train", "load")
    print("".join(f" {name + ' MB':>11}" for name in names), flush=True)


def print_row(job: Job, arm: str, result: dict[str, Any], cuda: bool) -> None:
    print(f"{arm:<6} {ARMS[arm]:<28} {stored_as(job, arm):<21} ", end="")
    if "error" in result:
        print("failed:", textwrap.shorten(result["error"], 100), flush=True)
        return
    train, load = result["training_peak"], result["loading_peak"]
    print(_number(result["steps_per_second"], 9), _number(result["forwards_per_second"], 9), end=" ")
    flop = result["flop_per_step"]
    print(_number(flop and flop / 1e9, 11, 2), end="")
    peaks = [train.get("host"), load.get("host")]
    if cuda:
        peaks = [train["allocated"], train["reserved"], train["driver"], load["allocated"], train.get("host")]
    print("".join(" " + _number(None if peak is None else peak / 1e6, 11, 1) for peak in peaks), flush=True)


def print_ratios(table: dict[str, dict[str, dict[str, float | None]]]) -> None:
    columns = [reference for reference in REFERENCES if any(reference in row for row in table.values())]
    if not columns:
        return
    titles = {"speed": "steps/s", "flop": "GFLOP/step", "peak": "train MB"}
    print("\nratios    " + "".join(f"{f'{title} to':<{9 * len(columns)}}" for title in titles.values()))
    print(f"{'':<6}" + "".join(f"{f'({reference})':>9}" for _ in titles for reference in columns))
    for arm, row in table.items():
        print(f"{arm:<6}" + "".join(_number(row[reference][name], 9) for name in titles for reference in columns))


def quality_of(arm: str) -> str:
    """Whose search an arm's steps belong to, among :data:`FORWARDS_TO_QUALITY`."""
    return "ours" if is_ours(arm) else "gradient" if arm.startswith("d") else "paper"


def print_minutes(results: dict[str, dict[str, Any]]) -> None:
    """Wall time of a training to the same quality: what users wait for."""
    print("\nminutes to the loss that the paper's search ends with: forward passes as RESULTS.md has them for the")
    print("embedded model, over forward passes a second here; the gradient's are an upper bound")
    for arm, result in results.items():
        if "error" not in result:
            forwards = FORWARDS_TO_QUALITY[quality_of(arm)]
            minutes = forwards / result["forwards_per_second"] / 60
            print(f"{arm:<6}{_number(minutes, 9, 2)}   {forwards:,} forward passes")


def print_notes(results: dict[str, dict[str, Any]], cuda: bool) -> None:
    print("\nsteps/s: median step; fwd/s: UNet forwards of one candidate; GFLOP: products, convolutions, attention,")
    print("backward included; those of a graph are not counted. Peaks are above the process with all libraries loaded")
    print("and started; train: weights and warm-up included, from after loading; load: while the model and, for a")
    print("and b, the images are prepared.")
    if cuda:
        print("train and load: torch's allocated peak; reserved: its allocator's peak; driver: what the device lost")
        print("since the libraries started, CUDA's context not included; host: the process's resident peak.")
    elif any(not result.get("peak_resettable", True) for result in results.values()):
        print("This system cannot reset a process's peak (ru_maxrss): train includes the peak of loading.")
    else:
        print("Both are the process's resident peaks (VmHWM, reset after loading).")


def main() -> None:
    parser = argparse.ArgumentParser(description="Our training beside the paper's procedure and gradients.")
    parser.add_argument("--model", default="random-sd15", help=f"{', '.join(SIZES)}, tiny, a folder or a file")
    parser.add_argument("--folder", help="for a --model that is a single file: the same as a diffusers folder")
    parser.add_argument("--size", type=int, default=0, metavar="PIXELS", help="image size (default the model's own)")
    parser.add_argument("--steps", type=int, default=3, help="measured steps (default 3, after one to warm up)")
    parser.add_argument("--n", type=int, default=2, help="directions a step (default 2)")
    parser.add_argument(
        "--weights",
        default="int8",
        choices=("int8", "int4", "float8"),
        help="of a, b and c (int4 on a CPU: quanto compiles C++ for c)",
    )
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", *DTYPES), help="activations (auto: float16 on CUDA, else bfloat16)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--arms", default=",".join(ARMS), help="default %(default)s")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="photographs (default three of noise)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the random models here and use them again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        job = Job(**json.loads(args.arm))
        print(json.dumps(build_random(job) if job.arm in SIZES else measure(job)))
        return
    arms = args.arms.split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"--arms: {', '.join(unknown)} unknown; choose from {', '.join(ARMS)}")
    if args.steps < 1 or args.n < 1:
        parser.error("--steps and --n must be at least 1")
    if args.images and not args.images.is_dir():
        parser.error(f"--images: {args.images} is not a folder")
    with tempfile.TemporaryDirectory() as temporary:
        compare(parser, args, arms, Path(temporary))


def prepare(parser: argparse.ArgumentParser, args: argparse.Namespace, temporary: Path) -> Job:
    """The job that the arms share: model and images in place, size, device and types decided."""
    from zoodip_core.model.kinds import TINY, TINY_PATH

    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    half = args.dtype if args.dtype in ("float16", "bfloat16") else "float16" if device != "cpu" else "bfloat16"
    dtype = half if args.dtype == "auto" else args.dtype
    folder = args.folder or (str(TINY_PATH) if args.model == TINY else args.model)
    if args.model not in SIZES and not (Path(folder) / "unet").is_dir():
        parser.error(f"{folder} is not a diffusers folder; beside a single file give its folder with --folder")
    size = args.size or SIZES.get(args.model) or own_size(Path(folder))
    images = args.images or temporary / "images"
    if not args.images:
        images.mkdir()
        noise_images(images, size)
    job = Job("", args.model, folder, str(images), size, args.n, args.steps, args.weights, dtype, half, device)
    return random_model(job, args.cache or temporary) if args.model in SIZES else job


def compare(parser: argparse.ArgumentParser, args: argparse.Namespace, arms: list[str], temporary: Path) -> None:
    """Run the arms and print them side by side."""
    job = prepare(parser, args, temporary)
    cuda = job.device.startswith("cuda")
    where, known = machine(job.device), versions()
    steps = f"{job.steps} steps after {GRAPH_WARM_UP if cuda else WARM_UP} to warm up"
    print(f"{args.model}, {job.size} x {job.size} pixels, n = {job.n}, {steps}, {job.device}")
    print(f"{where['gpu'] or where['cpu']}, {where['cores']} cores, {where['threads']} threads")
    print(", ".join(f"{name} {version}" for name, version in known.items()) + "\n")
    print_header(cuda)
    results = {}
    for arm in arms:
        results[arm] = run_child(replace(job, arm=arm))
        print_row(job, arm, results[arm], cuda)
    table = ratios(results)
    print_ratios(table)
    print_minutes(results)
    print_notes(results, cuda)
    if args.json:
        figures = {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "machine": where,
            "versions": known,
            "model": args.model,
            "job": {
                key: value for key, value in asdict(job).items() if key not in ("arm", "model", "folder", "images")
            },
            "arms": {arm: {"what": ARMS[arm], "stored_as": stored_as(job, arm), **results[arm]} for arm in arms},
            "ratios": table,
        }
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
