"""Small models of the kinds that write captions, taught to say one thing of a red picture and another of a blue one.

The classes, processors and files are the library's own; a word-level tokenizer and a layer or two make them small. A
few dozen steps teach them, so that a picture, a question or a task that does not reach them shows in what they say.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from zoodip_core.captioning.captioner import TASK, chat

RED, BLUE = "a dog sitting on grass", "a cat in the room"
_QWEN = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_SPECIALS = {
    "blip": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]"),
    "blip-2": ("<pad>", "<unk>", "<s>", "</s>", "<image>"),
    "florence2": ("<s>", "<pad>", "</s>", "<unk>", "<image>"),
    "git": ("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
}
KINDS = tuple(_SPECIALS)
_NARROW: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
Batch = dict[str, torch.Tensor]


class SmallCaptioners:
    """Models of each kind, taught once.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, kind: str, red: str = RED, blue: str = BLUE) -> Path:
        """The folder of a model of a kind that says these two texts."""
        folder = self._folder / f"{kind}-{abs(hash((red, blue)))}"
        if not folder.exists():
            make: Callable[[Path, Sequence[str]], None] = globals()[f"_make_{kind.replace('-', '_')}"]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                make(folder, (red, blue))
        return folder

    def copy(self, kind: str, place: Path) -> Path:
        """A copy to damage."""
        return Path(shutil.copytree(self.of(kind), place))


def pictures() -> list[Image.Image]:
    """A red one and a blue one."""
    return [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]


def _tokenizer(kind: str, texts: Sequence[str], *, frame: tuple[str, str] | None = None, **roles: Any) -> Any:
    known = [*_SPECIALS[kind], *dict.fromkeys(word for text in texts for word in text.split())]
    asked = chat("") + "Describe in detail what is shown in the image."
    for word in dict.fromkeys(asked.replace(".", " .").replace("\n", " ").split()):
        known += [word] if word not in known and "<" not in word else []
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token=roles["unk_token"]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if frame:
        ends = [(mark, known.index(mark)) for mark in frame]
        made.post_processor = processors.TemplateProcessing(single=f"{frame[0]} $A {frame[1]}", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **roles)


def _images(name: str, **settings: Any) -> Any:
    """The library's image processor that needs no torchvision, in versions that have two."""
    maker = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    return maker(**settings)


def _teach(model: Any, batch: Batch, folder: Path) -> None:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(200):
        loss = model(**batch).loss
        if loss.item() < 0.03:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    else:
        raise AssertionError(f"{type(model).__name__} has not learned its texts")
    model.eval().save_pretrained(folder)


def _make_blip(folder: Path, texts: Sequence[str]) -> None:
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = _tokenizer("blip", texts, frame=("[CLS]", "[SEP]"), bos_token="[DEC]", **roles)
    processor = transformers.BlipProcessor(_images("BlipImageProcessor", size={"height": 32, "width": 32}), tokenizer)
    text = {**_NARROW, "vocab_size": len(tokenizer), "encoder_hidden_size": 32, "projection_dim": 16}
    text |= {"max_position_embeddings": 128, "bos_token_id": 4, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3}
    vision = {**_NARROW, "image_size": 32, "patch_size": 16, "projection_dim": 16}
    config = transformers.BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    batch = dict(processor(images=pictures(), text=list(texts), return_tensors="pt", padding=True))
    batch["input_ids"][:, 0] = 4
    batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == 0, -100)
    _teach(transformers.BlipForConditionalGeneration(config), batch, folder)
    processor.save_pretrained(folder)


def _make_blip_2(folder: Path, texts: Sequence[str]) -> None:
    roles = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = _tokenizer("blip-2", texts, frame=("<s>", "</s>"), additional_special_tokens=["<image>"], **roles)
    processor = transformers.Blip2Processor(
        _images("BlipImageProcessor", size={"height": 32, "width": 32}), tokenizer, num_query_tokens=4
    )
    text = {"model_type": "opt", "vocab_size": len(tokenizer), "hidden_size": 32, "ffn_dim": 64, "dropout": 0.0}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 32, "pad_token_id": 0}
    text |= {"bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 256}
    seen = {**_NARROW, "vocab_size": 10, "encoder_hidden_size": 32, "cross_attention_frequency": 1}
    config = transformers.Blip2Config(
        vision_config={**_NARROW, "image_size": 32, "patch_size": 16},
        qformer_config=seen,
        text_config=text,
        num_query_tokens=4,
        image_token_index=4,
    )
    asked = tokenizer(list(texts), return_tensors="pt", padding=True)
    ids = torch.cat([torch.full((2, 4), 4), asked.input_ids], dim=1)
    batch = dict(processor.image_processor(pictures(), return_tensors="pt"))
    batch |= {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": ids.masked_fill((ids == 0) | (ids == 4), -100),
    }
    _teach(transformers.Blip2ForConditionalGeneration(config), batch, folder)
    processor.save_pretrained(folder)


def _make_florence2(folder: Path, texts: Sequence[str]) -> None:
    roles: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    roles["extra_special_tokens"] = {"image_token": "<image>"}
    tokenizer = _tokenizer("florence2", texts, frame=("<s>", "</s>"), **roles)
    images = _images("CLIPImageProcessor", size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    processor = transformers.Florence2Processor(images, tokenizer, post_processor_config={"pure_text": {}})
    vision: dict[str, Any] = {name: [1, 1, 1, 1] for name in ("depths", "num_heads", "num_groups")}
    vision |= {"embed_dim": [8, 8, 8, 8], "window_size": 2, "projection_dim": 32, "drop_path_rate": 0.0}
    text = {"model_type": "bart", "vocab_size": len(tokenizer), "d_model": 32, "max_position_embeddings": 128}
    text |= {f"{side}_{name}": count for side in ("encoder", "decoder") for name, count in _BART.items()}
    text |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "dropout": 0.0}
    config = transformers.Florence2Config(vision_config=vision, text_config=text, image_token_id=4)
    batch = dict(processor(images=pictures(), text=[TASK] * 2, return_tensors="pt"))
    labels = tokenizer(list(texts), padding=True, return_tensors="pt").input_ids
    batch["labels"] = labels.masked_fill(labels == 1, -100)
    _teach(transformers.Florence2ForConditionalGeneration(config), batch, folder)
    processor.save_pretrained(folder)


_BART = {"layers": 1, "ffn_dim": 64, "attention_heads": 2}


def _make_git(folder: Path, texts: Sequence[str]) -> None:
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = _tokenizer("git", texts, frame=("[CLS]", "[SEP]"), **roles)
    size = {"height": 32, "width": 32}
    images = _images("CLIPImageProcessor", size=size, crop_size=size, do_center_crop=False)
    processor = transformers.GitProcessor(images, tokenizer)
    vision = {**_NARROW, "image_size": 32, "patch_size": 16}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    text = {**_NARROW, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    config = transformers.GitConfig(vision_config=vision, **text)
    batch = dict(processor(images=pictures(), text=list(texts), return_tensors="pt", padding=True))
    batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == 0, -100)
    _teach(transformers.GitForCausalLM(config), batch, folder)
    processor.save_pretrained(folder)


def _make_qwen2_vl(folder: Path, texts: Sequence[str]) -> None:
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    _make_qwen(folder, texts, "Qwen2VL", vision)


def _make_qwen2_5_vl(folder: Path, texts: Sequence[str]) -> None:
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 2}
    _make_qwen(folder, texts, "Qwen2_5_VL", {**vision, "window_size": 56, "fullatt_block_indexes": [1]})


def _make_qwen3_vl(folder: Path, texts: Sequence[str]) -> None:
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 2}
    _make_qwen(folder, texts, "Qwen3VL", {**vision, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}, 16)


def _make_qwen(folder: Path, texts: Sequence[str], name: str, vision: dict[str, Any], patch: int = 14) -> None:
    """A chat of a class of the library's, whose processor of pictures they all have."""
    marks = [mark for mark in _QWEN if mark not in ("<|endoftext|>", "<|im_end|>")]
    roles: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    tokenizer = _tokenizer("qwen2_vl", texts, additional_special_tokens=marks, **roles)
    side = 2 * patch
    images = _images("Qwen2VLImageProcessor", min_pixels=side * side, max_pixels=4 * side * side, patch_size=patch)
    text = {**_NARROW, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "tie_word_embeddings": True}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}
    text |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**vision, "patch_size": patch}
    ids = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **ids
    )
    batch = dict(images(images=pictures(), return_tensors="pt"))
    count = int(batch["image_grid_thw"][0].prod()) // images.merge_size**2
    asked = chat("<|image_pad|>" * count)
    question = len(tokenizer(asked).input_ids)
    batch |= dict(tokenizer([f"{asked}{text}<|im_end|>" for text in texts], padding=True, return_tensors="pt"))
    batch["mm_token_type_ids"] = (batch["input_ids"] == 5).long()
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    batch["labels"][:, :question] = -100
    batch.pop("token_type_ids", None)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    model.generation_config.update(do_sample=True, temperature=0.7)  # as published ones have it
    _teach(model, batch, folder)
    images.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
