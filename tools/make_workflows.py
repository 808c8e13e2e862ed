"""Write the example workflows as ComfyUI's page saves them.

    python tools/make_workflows.py

A workflow is told as nodes in columns with values and links by name; places and ids follow. What inputs the
nodes have comes from their classes, and for ComfyUI's own nodes from :data:`STANDARD`.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node_pack import import_pack, without_files

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "example_workflows"
_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
_COLUMN, _GAP, _TOP, _ROW = 60, 50, 60, 26
_NAMED = (
    "name the token, and the plain word for what it is (*dog*, *toy*, *backpack*). Name the token in the prompt behind "
    "**Apply Embedding** too."
)
"""What a note asks for where a token is learned and drawn in one graph."""

# ComfyUI's own nodes in the examples: inputs as (name, type), widgets as (name, type, value), outputs.
STANDARD: dict[str, tuple[list[tuple[str, str]], list[tuple[str, str, Any]], list[str]]] = {
    "CheckpointLoaderSimple": ([], [("ckpt_name", "COMBO", "")], ["MODEL", "CLIP", "VAE"]),
    "UNETLoader": ([], [("unet_name", "COMBO", ""), ("weight_dtype", "COMBO", "default")], ["MODEL"]),
    "CLIPLoader": (
        [],
        [("clip_name", "COMBO", ""), ("type", "COMBO", "stable_diffusion"), ("device", "COMBO", "default")],
        ["CLIP"],
    ),
    "DualCLIPLoader": (
        [],
        [
            ("clip_name1", "COMBO", ""),
            ("clip_name2", "COMBO", ""),
            ("type", "COMBO", "sdxl"),
            ("device", "COMBO", "default"),
        ],
        ["CLIP"],
    ),
    "VAELoader": ([], [("vae_name", "COMBO", "")], ["VAE"]),
    "LoraLoader": (
        [("model", "MODEL"), ("clip", "CLIP")],
        [("lora_name", "COMBO", ""), ("strength_model", "FLOAT", 1.0), ("strength_clip", "FLOAT", 1.0)],
        ["MODEL", "CLIP"],
    ),
    "FluxGuidance": ([("conditioning", "CONDITIONING")], [("guidance", "FLOAT", 3.5)], ["CONDITIONING"]),
    "ModelSamplingAuraFlow": ([("model", "MODEL")], [("shift", "FLOAT", 1.73)], ["MODEL"]),
    "EmptySD3LatentImage": (
        [],
        [("width", "INT", 1024), ("height", "INT", 1024), ("batch_size", "INT", 1)],
        ["LATENT"],
    ),
    "CLIPTextEncode": ([("clip", "CLIP")], [("text", "STRING", "")], ["CONDITIONING"]),
    "EmptyLatentImage": ([], [("width", "INT", 512), ("height", "INT", 512), ("batch_size", "INT", 1)], ["LATENT"]),
    "KSampler": (
        [("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent_image", "LATENT")],
        [
            ("seed", "INT", 0),
            ("steps", "INT", 25),
            ("cfg", "FLOAT", 7.5),
            ("sampler_name", "COMBO", "dpmpp_2m"),
            ("scheduler", "COMBO", "karras"),
            ("denoise", "FLOAT", 1.0),
        ],
        ["LATENT"],
    ),
    "VAEDecode": ([("samples", "LATENT"), ("vae", "VAE")], [], ["IMAGE"]),
    "PreviewAny": ([("source", "*")], [], []),
    "PreviewImage": ([("images", "IMAGE")], [], []),
    "SaveImage": ([("images", "IMAGE")], [("filename_prefix", "STRING", "ZOODiP")], []),
    "MarkdownNote": ([], [("text", "STRING", "")], []),
}


@dataclass
class Node:
    """A node of a workflow.

    Args:
        kind: its class's name in ComfyUI.
        values: of widgets that differ from the default.
        links: for inputs the node and the output, by index, that they come from.
        title: shown in place of the kind's.
        size: width and height, chosen by the number of widgets if None.
    """

    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[Node, int]] = field(default_factory=dict)
    title: str | None = None
    size: tuple[int, int] | None = None


def signature(kind: str, pack: Any) -> tuple[list[tuple[str, str, Any, bool]], list[tuple[str, str]]]:
    """A node's inputs as (name, type, default, is a widget), in ComfyUI's order, and outputs as (name, type)."""
    if kind in STANDARD:
        sockets, widgets, outputs = STANDARD[kind]
        inputs = [(name, kind_, None, False) for name, kind_ in sockets] + [(*widget, True) for widget in widgets]
        return inputs, [(name, name) for name in outputs]
    cls = pack.NODE_CLASS_MAPPINGS[kind]
    types = cls.INPUT_TYPES()
    inputs = []
    for name, (type_, options) in [*types["required"].items(), *types.get("optional", {}).items()]:
        combo = isinstance(type_, list)
        default = options.get("default", type_[0] if combo and type_ else "")
        widget = combo or (type_ in _WIDGETS and not options.get("forceInput"))
        inputs.append((name, "COMBO" if combo else type_, default, widget))
    return inputs, list(zip(cls.RETURN_NAMES, cls.RETURN_TYPES, strict=True))


def workflow(name: str, columns: list[list[Node]], pack: Any) -> dict[str, Any]:
    """The JSON of a workflow whose nodes stand in columns, in the order in which they run."""
    nodes = [node for column in columns for node in column]
    ids = {id(node): i for i, node in enumerate(nodes, 1)}
    links: list[list[Any]] = []
    made = []
    left = _COLUMN
    for column in columns:
        top, width = _TOP, max(_size(node, pack)[0] for node in column)
        for node in column:
            inputs, outputs = signature(node.kind, pack)
            size = (width, _size(node, pack)[1])
            made.append(_node(node, ids[id(node)], (left, top), size, inputs, outputs))
            for slot, (input_, *_) in enumerate(inputs):
                if input_ in node.links:
                    source, output = node.links[input_]
                    type_ = signature(source.kind, pack)[1][output][1]
                    links.append([len(links) + 1, ids[id(source)], output, ids[id(node)], slot, type_])
            top += size[1] + _GAP + 20
        left += width + _COLUMN
    for link, source, output, target, slot, type_ in links:
        made[target - 1]["inputs"][slot]["link"] = link
        made[source - 1]["outputs"][output]["links"].append(link)
        if type_ == "STRING" and made[target - 1]["inputs"][slot]["type"] != "*":  # a text that a node hands on
            made[target - 1]["inputs"][slot]["type"] = "STRING"
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"zoodip/{name}")),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": made,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _size(node: Node, pack: Any) -> tuple[int, int]:
    if node.size:
        return node.size
    inputs, outputs = signature(node.kind, pack)
    sockets = max(sum(not widget for *_, widget in inputs), len(outputs))
    return 300, 40 + _ROW * (sockets + sum(widget for *_, widget in inputs))


def _node(
    node: Node,
    number: int,
    place: tuple[int, int],
    size: tuple[int, int],
    inputs: list[tuple[str, str, Any, bool]],
    outputs: list[tuple[str, str]],
) -> dict[str, Any]:
    unknown = {*node.values, *node.links} - {name for name, *_ in inputs}
    if unknown:
        raise ValueError(f"{node.kind} has no input {', '.join(sorted(unknown))}")
    sockets = [
        {"name": name, "type": type_, "link": None, **({"widget": {"name": name}} if widget else {})}
        for name, type_, _, widget in inputs
    ]
    values: list[Any] = []
    for name, _, default, widget in inputs:
        if widget:
            values.append(node.values.get(name, default))
            if node.kind == "KSampler" and name == "seed":
                values.append("fixed")  # the page's own widget after a seed
    titled = {"title": node.title} if node.title else {}
    return {
        "id": number,
        "type": node.kind,
        "pos": list(place),
        "size": list(size),
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": sockets,
        "outputs": [{"name": name, "type": type_, "links": []} for name, type_ in outputs],
        **titled,
        "properties": {"Node name for S&R": node.kind},
        "widgets_values": values,
    }


# ---------------------------------------------------------------- the examples


def note(text: str, height: int = 260) -> Node:
    """A note in Markdown, without backticks, which Nodes 2.0 shows in blue on blue; angle brackets need backslashes."""
    return Node("MarkdownNote", {"text": text}, title="Read me", size=(340, height))


def search_parts(tau: int = 128, t_lower: int = 500) -> tuple[Node, Node]:
    """Subspace Gradient and PUTS."""
    return Node("ZoodipSubspaceGradient", {"tau": tau}), Node("ZoodipPUTSSampler", {"T_L": t_lower})


def trainer(
    model: Node, images: Node, subspace: Node | None = None, sampler: Node | None = None, **values: Any
) -> Node:
    links = {"model": (model, 0), "images": (images, 0), "captions": (images, 1)}
    if subspace:
        links["subspace_gradient"] = (subspace, 0)
    if sampler:
        links["timestep_sampler"] = (sampler, 0)
    return Node("ZoodipTrainToken", values, links, size=(400, 640))


PLACES = ("snow", "meadow", "night", "beach", "candy", "ocean")
BOO = {"token": "<boo>", "initializer": "monster", "preview_prompt": "a {} in the snow"}


def learn_boo(**values: Any) -> tuple[Node, Node, Node, Node]:
    """Model, pictures, PUTS and trainer: a bundled subject on the embedded model."""
    model = Node("ZoodipLoadQuantizedSD")
    images = Node("ZoodipLoadReferenceImages", {"folder": "bundled: boo"}, size=(300, 300))
    _, sampler = search_parts()
    return model, images, sampler, trainer(model, images, None, sampler, **BOO, **values)


def embedded() -> list[list[Node]]:
    """Learn and generate on the embedded model."""
    model, images, sampler, training = learn_boo(preview_every=100)
    before = Node(
        "ZoodipGeneratePreview",
        {"prompts": "\n".join(f"a monster in the {place}" for place in PLACES), "guidance": 5.0},
        {"model": (model, 0)},
        title="Before: the word",
        size=(340, 440),
    )
    after = Node(
        "ZoodipGeneratePreview",
        {"prompts": "\n".join(f"a {{}} in the {place}" for place in PLACES), "guidance": 5.0},
        {"model": (model, 0), "embedding": (training, 0)},
        title="After: the token",
        size=(340, 440),
    )
    curve = Node("PreviewImage", {}, {"images": (training, 2)}, title="Loss curve", size=(340, 300))
    text = (
        "### Learn a subject in a minute, nothing to download\n\n"
        "A tiny Stable Diffusion comes with ZOODiP. It has never seen **boo**, an orange, spotted ghost.\n\n"
        "Press **Run**: the trainer learns the word **\\<boo\\>** from six pictures, starting from *monster*, by "
        "forward passes only. Watch its loss and previews; then compare what the model draws for *monster* and for "
        "**\\<boo\\>**.\n\n"
        "Other subjects: choose another **bundled** folder."
    )
    return [[note(text), model, images], [sampler], [training], [before, after], [curve]]


Output = tuple[Node, int]
"""A node and the index of one of its outputs."""
PROMPT = "a photo of <my-subject> on the beach"
_LORA = 3
"""The trainer's output of weights."""


def standard(
    model: Output,
    clip: Output,
    vae: Output,
    token: Node,
    latents: Node,
    prompt: str = PROMPT,
    negative: str = "blurry",
    guidance: float = 0.0,
    **sampling: Any,
) -> list[list[Node]]:
    """A standard text-to-image graph with the token applied to its CLIP, and Flux's own guidance if it is not 0."""
    applied = Node("ZoodipApplyEmbedding", {}, {"clip": clip, "embedding": (token, 0)})
    positive = Node("CLIPTextEncode", {"text": prompt}, {"clip": (applied, 0)}, size=(340, 140))
    guided = Node("FluxGuidance", {"guidance": guidance}, {"conditioning": (positive, 0)})
    without = Node("CLIPTextEncode", {"text": negative}, {"clip": (applied, 0)}, size=(340, 100))
    sampled = Node(
        "KSampler",
        sampling,
        {
            "model": model,
            "positive": (guided if guidance else positive, 0),
            "negative": (without, 0),
            "latent_image": (latents, 0),
        },
    )
    decoded = Node("VAEDecode", {}, {"samples": (sampled, 0), "vae": vae})
    shown = Node("SaveImage", {}, {"images": (decoded, 0)}, size=(400, 460))
    return [
        [applied, positive, *([guided] if guidance else []), without],
        [latents, sampled, decoded],
        [shown],
    ]


def full_size(title: str, checkpoint: str, side: int, t_lower: int, memory: str, **values: Any) -> list[list[Node]]:
    """Learn on a real model with int8 weights, then use the token in a standard graph."""
    model = Node("ZoodipLoadQuantizedSD", {"checkpoint": checkpoint, "weights": "int8"})
    images = Node("ZoodipLoadReferenceImages", {"folder": "bundled: boo"}, size=(300, 300))
    _, sampler = search_parts(t_lower=t_lower)
    training = trainer(
        model, images, None, sampler, token="<my-subject>", initializer="toy", preview_every=300, **values
    )
    curve = Node("PreviewImage", {}, {"images": (training, 2)}, title="Loss curve", size=(340, 300))
    saved = Node("ZoodipSaveEmbedding", {}, {"embedding": (training, 0)}, size=(340, 260))
    text = (
        f"### {title}\n\n"
        f"1. Choose your checkpoint in **both** loaders ({checkpoint}).\n"
        "2. **Load Reference Images**: upload three to ten pictures of your subject.\n"
        f"3. **ZO Train Token**: {_NAMED}\n"
        "4. Run. Cancel whenever you like: queue again to resume.\n\n"
        f"Training takes about {memory} of GPU memory, by count. In prompts that are not behind "
        "**Apply Embedding** write **embedding:my-subject**, once it is saved."
    )
    loader = Node("CheckpointLoaderSimple", {"ckpt_name": checkpoint})
    latents = Node("EmptyLatentImage", {"width": side, "height": side})
    first, *others = standard((loader, 0), (loader, 1), (loader, 2), training, latents)
    return [
        [note(text, 330), model, images],
        [sampler],
        [training],
        [curve, saved],
        [loader, *first],
        *others,
    ]


def token_and_lora() -> list[list[Node]]:
    """A token and weights beside it on Stable Diffusion 1.5, both drawn with in a standard graph."""
    checkpoint = "v1-5-pruned-emaonly-fp16.safetensors"
    model = Node("ZoodipLoadQuantizedSD", {"checkpoint": checkpoint, "weights": "int8"})
    images = Node("ZoodipLoadReferenceImages", {"folder": "bundled: boo"}, size=(300, 300))
    _, sampler = search_parts()
    training = trainer(
        model,
        images,
        None,
        sampler,
        token="<my-subject>",
        initializer="toy",
        preset="two-stage",
        preview_every=300,
    )
    curve = Node("PreviewImage", {}, {"images": (training, 2)}, title="Loss curve", size=(340, 300))
    saved = Node("ZoodipSaveEmbedding", {}, {"embedding": (training, 0)}, size=(340, 260))
    saved_lora = Node("ZoodipSaveLora", {}, {"lora": (training, _LORA)}, size=(340, 150))
    text = (
        "### A token, and a LoRA beside it\n\n"
        f"1. Choose your checkpoint of Stable Diffusion 1.5 in **both** loaders ({checkpoint}).\n"
        "2. **Load Reference Images**: upload three to ten pictures of your subject.\n"
        f"3. **ZO Train Token**: {_NAMED} The "
        "preset **two-stage** learns the token first, and then 512 numbers in the weights that read the text.\n"
        "4. Run. Cancel whenever you like: queue again to resume.\n\n"
        "Token and weights belong together: **Apply Embedding** teaches the CLIP the one, **Apply LoRA** lays the "
        "other on the MODEL. Once both are saved, **embedding:my-subject** and ComfyUI's own **Load LoRA** do the same."
    )
    loader = Node("CheckpointLoaderSimple", {"ckpt_name": checkpoint})
    weights = Node("ZoodipApplyLora", {}, {"model": (loader, 0), "lora": (training, _LORA)})
    first, *others = standard((weights, 0), (loader, 1), (loader, 2), training, Node("EmptyLatentImage"))
    return [
        [note(text, 400), model, images],
        [sampler],
        [training],
        [curve, saved, saved_lora],
        [loader, weights, *first],
        *others,
    ]


def one_scene() -> list[list[Node]]:
    """A token for the prompt that it will be used in, on Stable Diffusion 1.5."""
    checkpoint, scene = "v1-5-pruned-emaonly-fp16.safetensors", "a sketch of {} in Paris"
    model = Node("ZoodipLoadQuantizedSD", {"checkpoint": checkpoint, "weights": "int8"})
    images = Node("ZoodipLoadReferenceImages", {"folder": "bundled: boo"}, size=(300, 300))
    _, sampler = search_parts()
    training = trainer(
        model,
        images,
        None,
        sampler,
        token="<my-subject>",
        initializer="toy",
        preview_every=300,
        target_prompt=scene,
    )
    curve = Node("PreviewImage", {}, {"images": (training, 2)}, title="Loss curve", size=(340, 300))
    saved = Node("ZoodipSaveEmbedding", {}, {"embedding": (training, 0)}, size=(340, 260))
    text = (
        "### Your subject in one scene\n\n"
        f"1. Choose your checkpoint of Stable Diffusion 1.5 in **both** loaders ({checkpoint}).\n"
        "2. **Load Reference Images**: upload pictures of your subject. With a single one, choose the "
        "preset **aligned**.\n"
        f"3. **ZO Train Token**: {_NAMED} "
        "**target_prompt**, among the advanced inputs, is the prompt you will use, with {} for the token. The token "
        "then learns to leave the rest of that prompt to the model.\n"
        "4. Run. Cancel whenever you like: queue again to resume.\n\n"
        "Is the prompt not obeyed? Raise **alignment**. Is it too little like your subject? Lower it."
    )
    loader = Node("CheckpointLoaderSimple", {"ckpt_name": checkpoint})
    prompt = scene.replace("{}", "<my-subject>")
    latents = Node("EmptyLatentImage")
    first, *others = standard((loader, 0), (loader, 1), (loader, 2), training, latents, prompt=prompt)
    return [[note(text, 420), model, images], [sampler], [training], [curve, saved], [loader, *first], *others]


def masks_and_captions() -> list[list[Node]]:
    """A token of a subject amid other things on Stable Diffusion 1.5: with masks, and captions that a model writes."""
    checkpoint, word = "v1-5-pruned-emaonly-fp16.safetensors", "toy"
    model = Node("ZoodipLoadQuantizedSD", {"checkpoint": checkpoint, "weights": "int8"})
    images = Node("ZoodipLoadReferenceImages", {"folder": "bundled: boo"}, size=(300, 300))
    captions = Node(
        "ZoodipCaptionImages",
        {"class_word": word},
        {"images": (images, 0), "captions": (images, 1)},
        size=(340, 420),
    )
    _, sampler = search_parts()
    training = trainer(model, images, None, sampler, token="<my-subject>", initializer=word, preview_every=300)
    training.links |= {"captions": (captions, 0), "masks": (images, 2)}
    curve = Node("PreviewImage", {}, {"images": (training, 2)}, title="Loss curve", size=(340, 300))
    saved = Node("ZoodipSaveEmbedding", {}, {"embedding": (training, 0)}, size=(340, 260))
    text = (
        "### Your subject amid other things\n\n"
        f"1. Choose your checkpoint of Stable Diffusion 1.5 in **both** loaders ({checkpoint}).\n"
        "2. **Load Reference Images**: choose a folder with photos and, beside **rex.jpg**, its mask **rex.mask.png**: "
        "white where your subject is. Photos without a mask are learned whole.\n"
        "3. **Caption Images**: a model on your computer that sees pictures (BLIP, Florence-2, Qwen-VL) writes what "
        "else is in them. Without one the node says how to fetch it. **class_word** is the plain word for your subject "
        "(*dog*, *toy*, *backpack*). What you have written yourself stays; correct the rest in **corrections**.\n"
        "4. **ZO Train Token**: name the token; **initializer** is the same plain word. Name the token in the prompt "
        "behind **Apply Embedding** too.\n"
        "5. Run. Cancel whenever you like: queue again to resume.\n\n"
        "Masks and captions both keep what is around the subject out of the token. **mask_background**, among the "
        "advanced inputs, says how much it still counts."
    )
    loader = Node("CheckpointLoaderSimple", {"ckpt_name": checkpoint})
    first, *others = standard((loader, 0), (loader, 1), (loader, 2), training, Node("EmptyLatentImage"))
    return [
        [note(text, 430), model, images],
        [captions, sampler],
        [training],
        [curve, saved],
        [loader, *first],
        *others,
    ]


def from_comfyui(
    title: str, files: str, end: str, loaders: list[Node], parts: tuple[Output, Output, Output], t_lower: int = 500
) -> tuple[list[list[Node]], Node]:
    """Learn on a MODEL, CLIP and VAE of ComfyUI's; also the trainer.

    Args:
        title: of the note.
        files: what to put where.
        end: what to expect.
        loaders: the nodes that load the model.
        parts: where MODEL, CLIP and VAE come out of them.
        t_lower: of PUTS.
    """
    model, clip, vae = parts
    wrapped = Node("ZoodipModelFromComfyUI", {}, {"model": model, "clip": clip, "vae": vae})
    report = Node("PreviewAny", {}, {"source": (wrapped, 1)}, title="What it takes", size=(300, 220))
    images = Node("ZoodipLoadReferenceImages", {"folder": "bundled: boo"}, size=(300, 300))
    _, sampler = search_parts(t_lower=t_lower)
    training = trainer(wrapped, images, None, sampler, token="<my-subject>", initializer="toy", preview_every=300)
    curve = Node("PreviewImage", {}, {"images": (training, 2)}, title="Loss curve", size=(340, 300))
    saved = Node("ZoodipSaveEmbedding", {}, {"embedding": (training, 0)}, size=(340, 260))
    text = (
        f"### {title}\n\n"
        f"1. {files}\n"
        "2. **Load Reference Images**: upload three to ten pictures of your subject.\n"
        f"3. **ZO Train Token**: {_NAMED}\n"
        "4. Run. Cancel whenever you like: queue again to resume.\n\n"
        f"{end} In prompts that are not behind **Apply Embedding** write **embedding:my-subject**, once it is saved."
    )
    columns = [[note(text, 380), *loaders], [wrapped, report, images, sampler], [training], [curve, saved]]
    return columns, training


UNTRIED = "**The presets are untried on its real weights**: look at the previews."


def flux() -> list[list[Node]]:
    """Flux.1 dev with float8 weights, from files of its parts."""
    unet = Node("UNETLoader", {"unet_name": "flux1-dev.safetensors", "weight_dtype": "fp8_e4m3fn"})
    names = {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp8_e4m3fn.safetensors", "type": "flux"}
    clip, vae = Node("DualCLIPLoader", names), Node("VAELoader", {"vae_name": "ae.safetensors"})
    parts = ((unet, 0), (clip, 0), (vae, 0))
    files = (
        "Choose your files of **Flux.1 dev** in the three loaders: the model from models/diffusion_models, CLIP L and "
        "T5 XXL from models/text_encoders, the VAE from models/vae. A GGUF loader does as well; for a checkpoint with "
        "everything in it, one **Load Checkpoint** in place of the three."
    )
    end = f"Training takes the memory of drawing. Both text encoders run once for each candidate of a step. {UNTRIED}"
    columns, training = from_comfyui("Learn on Flux.1 dev", files, end, [unet, clip, vae], parts)
    drawn: dict[str, Any] = {"steps": 20, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    return columns + standard(*parts, training, Node("EmptySD3LatentImage"), negative="", guidance=3.5, **drawn)


def z_image() -> list[list[Node]]:
    """Z-Image's base model, whose text encoder is Qwen3 4B."""
    unet = Node("UNETLoader", {"unet_name": "z_image_bf16.safetensors"})
    clip = Node("CLIPLoader", {"clip_name": "qwen_3_4b.safetensors", "type": "lumina2"})
    vae = Node("VAELoader", {"vae_name": "ae.safetensors"})
    parts = ((unet, 0), (clip, 0), (vae, 0))
    files = (
        "Choose your files of **Z-Image** in the three loaders: the model from models/diffusion_models, Qwen3 4B from "
        "models/text_encoders, the VAE from models/vae. Take the base model: on Turbo tokens learn worse. The token "
        "fits both."
    )
    end = f"Training takes the memory of drawing. Qwen3 4B runs once for each candidate of a step. {UNTRIED}"
    columns, training = from_comfyui("Learn on Z-Image", files, end, [unet, clip, vae], parts)
    shifted = Node("ModelSamplingAuraFlow", {"shift": 3.0}, {"model": (unet, 0)})
    drawn: dict[str, Any] = {"steps": 30, "cfg": 4.0, "sampler_name": "res_multistep", "scheduler": "simple"}
    first, *others = standard((shifted, 0), *parts[1:], training, Node("EmptySD3LatentImage"), **drawn)
    return [*columns, [shifted, *first], *others]


def with_a_lora() -> list[list[Node]]:
    """SDXL as a LoRA has made it."""
    loader = Node("CheckpointLoaderSimple", {"ckpt_name": "sd_xl_base_1.0.safetensors"})
    lora = Node("LoraLoader", {"lora_name": "my_style.safetensors"}, {"model": (loader, 0), "clip": (loader, 1)})
    parts = ((lora, 0), (lora, 1), (loader, 2))
    files = (
        "Choose your checkpoint of **SDXL** and your LoRA. The token is learned on the model as the LoRA has made it, "
        "and is at its best with it."
    )
    end = f"Training takes the memory of drawing; **Load Quantized SD** takes less, but no LoRAs. {UNTRIED}"
    columns, training = from_comfyui("Learn on SDXL with a LoRA", files, end, [loader, lora], parts, 700)
    latents = Node("EmptyLatentImage", {"width": 1024, "height": 1024})
    return columns + standard(*parts, training, latents)


def ablation() -> list[list[Node]]:
    """The paper's parts, with and without, side by side on the embedded model."""
    model = Node("ZoodipLoadQuantizedSD")
    images = Node("ZoodipLoadReferenceImages", {"folder": "bundled: boo"}, size=(300, 300))
    subspace, sampler = search_parts(tau=21)
    arms = [
        ("Subspace Gradient and PUTS", subspace, sampler),
        ("Subspace Gradient alone", subspace, None),
        ("PUTS alone", None, sampler),
        ("neither", None, None),
    ]
    text = (
        "### What do Subspace Gradient and PUTS bring?\n\n"
        "Four trainings of the same subject from the same seed, by the paper's search (preset **paper**), differ in "
        "one thing each: which parts are wired in. An unconnected **subspace_gradient** means gradients as estimated, "
        "an unconnected **timestep_sampler** all timesteps alike.\n\nCompare the pictures, not the losses: an arm "
        "without PUTS is asked at other timesteps, where the loss is another."
    )
    columns: list[list[Node]] = [[note(text), model, images, subspace, sampler]]
    prompts = "\n".join(f"a {{}} in the {place}" for place in PLACES[:4])
    for title, with_subspace, with_sampler in arms:
        training = trainer(model, images, with_subspace, with_sampler, **BOO, steps=3000, preset="paper")
        training.title = title
        drawn = Node(
            "ZoodipGeneratePreview",
            {"prompts": prompts, "guidance": 5.0},
            {"model": (model, 0), "embedding": (training, 0)},
            title=f"Drawn: {title}",
            size=(400, 480),
        )
        columns.append([training, drawn])
    return columns


def evaluation() -> list[list[Node]]:
    """Learn on the embedded model, and score the token as the paper does."""
    model, images, sampler, training = learn_boo()
    scored = Node(
        "ZoodipEvaluateEmbedding",
        {},
        {"model": (model, 0), "embedding": (training, 0), "images": (images, 0)},
        size=(400, 980),
    )
    table = Node("PreviewAny", {}, {"source": (scored, 1)}, title="Table", size=(560, 400))
    text = (
        "### How good is a token?\n\n"
        "Images of the same prompts and seeds, drawn with the plain word and with the token, are looked at by CLIP and "
        "DINOv2: CLIP-T, CLIP-I, DINO and DINO_inter, as in the paper.\n\n"
        "Both models have to be on this computer, for nothing is downloaded here; without them the node says which "
        "commands fetch them.\n\n"
        "For a token of yours: **Load Embedding** in place of the trainer, and your checkpoint in **Load Quantized "
        "SD**. CLIP and DINOv2 know photographs; of the embedded model's monsters they tell less."
    )
    return [[note(text, 420), model, images], [sampler], [training], [scored], [table]]


def examples() -> dict[str, list[list[Node]]]:
    """Every example workflow by its file's name."""
    return {
        "learn_on_the_embedded_model": embedded(),
        "sd15_int8": full_size(
            "Stable Diffusion 1.5, int8 weights", "v1-5-pruned-emaonly-fp16.safetensors", 512, 500, "1.6 GB"
        ),
        "sdxl_int8": full_size("Stable Diffusion XL, int8 weights", "sd_xl_base_1.0.safetensors", 1024, 700, "4.3 GB"),
        "token_and_lora": token_and_lora(),
        "one_scene": one_scene(),
        "masks_and_captions": masks_and_captions(),
        "ablation_subspace_gradient_puts": ablation(),
        "flux1_dev_fp8": flux(),
        "z_image": z_image(),
        "sdxl_with_a_lora": with_a_lora(),
        "evaluate_a_token": evaluation(),
    }


def texts() -> dict[str, str]:
    """The content of each file."""
    pack = import_pack()
    with without_files():
        return {
            f"{name}.json": json.dumps(workflow(name, columns, pack), indent=1, ensure_ascii=False) + "\n"
            for name, columns in examples().items()
        }


if __name__ == "__main__":
    OUTPUT.mkdir(exist_ok=True)
    for file, text in texts().items():
        (OUTPUT / file).write_text(text, encoding="utf-8", newline="\n")
        print(f"example_workflows/{file}")
