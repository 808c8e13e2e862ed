"""Pictures between files, ComfyUI's IMAGE tensors and Pillow; loading reference images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .host import host

if TYPE_CHECKING:
    import torch
    from PIL import Image

BUNDLED = "bundled: "
_LARGEST = 2048
"""No model is trained on more pixels a side; a camera's picture would only fill memory."""
MAX_TOTAL_PIXELS = 400_000_000
"""Of a folder's pictures as they are loaded, twelve bytes each."""
_THUMBNAILS = 9


# ---------------------------------------------------------------- tensors


def to_image(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size as an IMAGE: float32 ``[N, height, width, 3]`` in [0, 1]."""
    import numpy as np
    import torch

    return (
        torch.from_numpy(np.stack([np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in pictures])) / 255
    )


def to_mask(mask: Image.Image | None) -> torch.Tensor:
    """A mask "L" as a MASK: float32 ``[1, height, width]`` in [0, 1]; zeros if there is none, as LoadImage's."""
    import numpy as np
    import torch

    if mask is None:
        return torch.zeros(1, 64, 64)
    return torch.from_numpy(np.asarray(mask, dtype=np.float32))[None] / 255


def to_pictures(images: Sequence[Any], name: str) -> list[Image.Image]:
    """The pictures of an IMAGE or a list of them, of any sizes; transparency is laid on white.

    Args:
        name: of the node's input, for errors.

    Raises:
        ImagesError: nothing, or something that is not a picture.
    """
    import torch
    from PIL import Image

    from ..zoodip_core.base.errors import ImagesError

    pictures = []
    for batch in images:
        shape = batch.shape if isinstance(batch, torch.Tensor) else ()
        if len(shape) != 4 or shape[-1] not in (3, 4) or 0 in shape[1:]:
            have = list(shape) or type(batch).__name__
            raise ImagesError(
                f"{name}: expected IMAGE batches [count, height, width, 3 or 4 channels], got {have}; connect an IMAGE"
            )
        if not torch.isfinite(batch).all():
            raise ImagesError(f"{name}: a picture holds NaN or infinity; the node that made it failed")
        for tensor in batch.float().cpu():
            if tensor.shape[-1] == 4:
                tensor = tensor[..., :3] * tensor[..., 3:] + 1 - tensor[..., 3:]
            pictures.append(Image.fromarray((tensor.clamp(0, 1) * 255).round().to(torch.uint8).numpy()))
    if not pictures:
        raise ImagesError(f"{name}: the list is empty; give 3 to 10 pictures of the subject")
    return pictures


def to_masks(masks: Sequence[Any] | None, pictures: Sequence[Image.Image]) -> list[Image.Image | None]:
    """The masks of pictures, "L" and white at the subject; None where there is none, as where nothing was painted.

    Args:
        masks: a MASK or a list of them, one for each picture: float ``[count, height, width]`` in [0, 1]. LoadImage
            gives zeros of 64 x 64 where a picture has none.
        pictures: whose they are.

    Raises:
        ImagesError: they are too few or too many, of other shapes than the pictures, or no masks.
    """
    import torch
    from PIL import Image

    from ..zoodip_core.base.errors import ImagesError
    from ..zoodip_core.base.texts import how_many
    from ..zoodip_core.data.masks import alike

    found: list[Image.Image | None] = []
    for batch in masks or ():
        shape = batch.shape if isinstance(batch, torch.Tensor) else ()
        if len(shape) not in (2, 3) or 0 in shape[-2:] or not torch.isfinite(batch).all():
            have = list(shape) or type(batch).__name__
            raise ImagesError(
                f"masks: expected MASK batches [count, height, width] of finite numbers, got {have}; connect a MASK"
            )
        for tensor in (batch if len(shape) == 3 else batch[None]).float().cpu():
            grey = (tensor.clamp(0, 1) * 255).round().to(torch.uint8)
            found.append(Image.fromarray(grey.numpy()) if grey.any() else None)
    if masks is None or not any(found):
        return [None] * len(pictures)
    if len(found) != len(pictures):
        raise ImagesError(
            f"masks: {how_many(len(found), 'mask')} for {how_many(len(pictures), 'image')}; give one for each, in "
            "their order: an empty one where all of a picture is to be learned"
        )
    for number, (mask, picture) in enumerate(zip(found, pictures, strict=True), 1):
        if mask and not alike(mask.size, picture.size):
            raise ImagesError(
                f"masks: mask {number} is {mask.width} x {mask.height}, another shape than its picture of "
                f"{picture.width} x {picture.height}; connect the MASK that belongs to the picture"
            )
    return found


def thumbnails(pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """What a node returns as ``ui`` so that ComfyUI shows pictures on it; the files are temporary."""
    folder = host().temp_folder() / "zoodip"
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for picture in pictures[:_THUMBNAILS]:
        small = picture.copy()
        small.thumbnail((512, 512))
        name = hashlib.sha256(small.tobytes() + str(small.size).encode()).hexdigest()[:20] + ".png"
        small.save(folder / name)
        shown.append({"filename": name, "subfolder": "zoodip", "type": "temp"})
    return {"images": shown}


# ---------------------------------------------------------------- files


class LoadReferenceImages:
    """Reference images and captions from a folder in ComfyUI's input, one of the bundled subjects, or an upload."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Reads three to ten pictures of a subject, and their captions, from a folder in ComfyUI's input folder. The "
        "button uploads pictures into a new one."
    )
    RETURN_TYPES = ("IMAGE", "STRING", "MASK")
    RETURN_NAMES = ("images", "captions", "masks")
    OUTPUT_IS_LIST = (True, True, True)
    OUTPUT_TOOLTIPS = (
        "The pictures, each in its own size.",
        "A text for each picture, empty where it has none: its entry in captions.json, the .txt or .caption beside it, "
        "or its entry in metadata.jsonl.",
        "A mask for each picture, empty where it has none: NAME.mask.png beside it, NAME-masklabel.png, or a picture "
        "of its name in a folder masks.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {
            "required": {
                "folder": (
                    [*_bundled(), *_folders()],
                    {
                        "tooltip": "A folder in ComfyUI's input folder, a single picture there, or a bundled subject "
                        "for the embedded model. Captions: a .txt or .caption beside each picture, a captions.json, or "
                        "a metadata.jsonl.",
                    },
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, folder: str | None) -> bool | str:  # noqa: N802
        try:
            _ = folder is None or _captions(folder, _files(folder))
        except (ValueError, OSError) as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, folder: str) -> str:  # noqa: N802
        from ..zoodip_core.base.files import sha256_of

        digest, files = hashlib.sha256(), _files(folder)
        for file in (*files, *_caption_files(folder, files), *_mask_files(files)):
            if file.is_file():
                digest.update(f"{file.name} {sha256_of(file)}".encode())
        return digest.hexdigest()

    def load(self, folder: str) -> dict[str, Any]:
        from ..zoodip_core.base.errors import ImagesError
        from ..zoodip_core.data.images import only_first, read_picture
        from ..zoodip_core.data.masks import Masks, masked_of

        files = _files(folder)
        pictures: list[Image.Image] = []
        moving = []
        masks, own = Masks(), []
        for file in files:
            try:
                picture, has_more = read_picture(file)
            except ImagesError as error:
                raise ImagesError(f"folder: {error}; take it out of the folder, or replace it") from error
            pictures.append(_bounded(picture))
            mask = masks.of(file, picture.size)
            own.append(mask and mask.resize(pictures[-1].size))
            moving += [file.name] if has_more else []
            if sum(each.width * each.height for each in pictures) > MAX_TOTAL_PIXELS:
                raise ImagesError(
                    f"folder: the pictures have more than {MAX_TOTAL_PIXELS // 10**6} million pixels together; scale "
                    "them down, or take some out"
                )
        return {
            "ui": {
                **thumbnails(pictures),
                "text": [
                    *_unused(folder, files, masks.known),
                    *only_first(moving),
                    *masks.lines,
                    *masked_of(dict(zip(files, map(bool, own), strict=True))),
                ],
            },
            "result": (
                [to_image([picture]) for picture in pictures],
                _captions(folder, files),
                list(map(to_mask, own)),
            ),
        }


def _bounded(picture: Image.Image) -> Image.Image:
    scale = _LARGEST / min(picture.size)
    return picture if scale >= 1 else picture.resize((round(picture.width * scale), round(picture.height * scale)))


def _bundled() -> list[str]:
    from ..zoodip_core.tiny import concepts

    return [BUNDLED + name for name in concepts.names()]


def _folders() -> list[str]:
    """The folders with pictures in the input folder, then the single pictures."""
    from ..zoodip_core.data.images import seems_picture

    root, folders, single = host().input_folder(), [], []
    for folder, _, names in os.walk(root):
        here = Path(folder)
        if here == root:
            single = [name for name in names if seems_picture(here / name)]
        elif any(seems_picture(here / name) for name in names):
            folders.append(here.relative_to(root).as_posix())
    return sorted(folders) + sorted(single)


def _files(folder: str) -> list[Path]:
    """The picture files that a choice stands for.

    Raises:
        ImagesError: it is outside of the input folder, or holds none.
    """
    from ..zoodip_core.base.errors import ImagesError
    from ..zoodip_core.base.paths import contains
    from ..zoodip_core.data.images import MAX_PICTURES, find_images
    from ..zoodip_core.tiny import concepts

    if folder.startswith(BUNDLED):
        name = folder.removeprefix(BUNDLED)
        if name not in concepts.names():
            raise ImagesError(f"folder: there is no bundled subject {name!r}; choose one of {', '.join(_bundled())}")
        return find_images([concepts.load(name).images])
    try:
        found = find_images([_chosen(folder)])
    except ImagesError as error:
        raise ImagesError(f"folder: {error}") from None
    if len(found) > MAX_PICTURES:
        raise ImagesError(
            f"folder: {len(found)} pictures are too many; three to ten good ones are enough, and at most "
            f"{MAX_PICTURES} are taken"
        )
    for file in (*found, *_caption_files(folder, found), *_mask_files(found)):
        if not contains(host().input_folder(), file):
            raise ImagesError(f"folder: {file.name} leads out of ComfyUI's input folder; put a copy in its place")
    return found


def _chosen(folder: str) -> Path:
    """The path in the input folder that a choice stands for.

    Raises:
        ImagesError: it would lie elsewhere.
    """
    from ..zoodip_core.base.errors import ImagesError, PathError
    from ..zoodip_core.base.paths import inside

    try:
        return inside(host().input_folder(), folder.removesuffix(" [input]"), "ComfyUI's input folder")
    except PathError as error:
        raise ImagesError(f"folder: {error}, or upload the pictures") from None


def _is_single(folder: str) -> bool:
    """Whether a choice is one picture; the captions beside it may be of others."""
    return not folder.startswith(BUNDLED) and _chosen(folder).is_file()


def _listing(folder: str, files: Sequence[Path]) -> Path:
    """Where the captions of all of a choice's pictures may stand."""
    from ..zoodip_core.data.prompts import LISTING
    from ..zoodip_core.tiny import concepts

    if folder.startswith(BUNDLED):
        return concepts.load(folder.removeprefix(BUNDLED)).captions
    return files[0].parent / LISTING


def _caption_files(folder: str, files: Sequence[Path]) -> list[Path]:
    """All files that :func:`_captions` may read."""
    from ..zoodip_core.data.prompts import METADATA, caption_file

    beside = [found for file in files if (found := caption_file(file))]
    return [_listing(folder, files), files[0].parent / METADATA, *beside]


def _mask_files(files: Sequence[Path]) -> list[Path]:
    """All files that the pictures' masks may be read from."""
    from ..zoodip_core.data.masks import Masks

    masks = Masks()
    return [mask for file in files for mask in masks.files_of(file)]


def _listed(folder: str, files: Sequence[Path]) -> dict[str, list[str]]:
    """The captions in the file for all pictures, by their names."""
    from ..zoodip_core.data.prompts import read_listed

    listing = _listing(folder, files)
    names = None if _is_single(folder) else [file.name for file in files]
    return read_listed(listing, names) if listing.is_file() else {}


def _captions(folder: str, files: Sequence[Path]) -> list[str]:
    """A text for each file, empty if it has none. Several captions of one picture are lines."""
    from ..zoodip_core.data.prompts import noted_captions, own_captions

    listed, noted = _listed(folder, files), noted_captions(files[0].parent)
    texts = []
    for file in files:
        each = listed.get(file.name) or own_captions(file, noted)[0]
        texts.append("\n".join(" ".join(text.split()) for text in each))
    return texts


def _unused(folder: str, files: Sequence[Path], masks: Collection[Path]) -> list[str]:
    """Lines on what is in the chosen folder and not used, for the node."""
    from ..zoodip_core.data.images import left_out
    from ..zoodip_core.data.prompts import of_no_picture, unused_captions

    if folder.startswith(BUNDLED) or _is_single(folder):
        return []
    listing, listed = _listing(folder, files), _listed(folder, files)
    names = sorted(set(listed) - {file.name for file in files})
    chosen = [files[0].parent]
    return [
        *left_out(chosen, masks),
        *of_no_picture(listing.name, names, len(listed)),
        *unused_captions(None, files, chosen),
    ]


def write_references(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    folder: Path,
    masks: Sequence[Image.Image | None] = (),
) -> dict[str, Any]:
    """Write pictures, unchanged, their captions and masks into a run's folder, so that it can be resumed by itself.

    Returns:
        The settings ``images`` and ``captions`` of :class:`TrainConfig` that stand for them.
    """
    from ..zoodip_core.base.stopping import check_stop
    from ..zoodip_core.data.prompts import LISTING, write_listed
    from ..zoodip_core.data.sheets import save_png

    images = folder / "images"
    listed = {}
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True), 1):
        check_stop()
        name = f"{i:04}.png"
        save_png(picture, images / name)
        mask = masks[i - 1] if masks else None
        if mask:
            save_png(mask, images / f"{i:04}.mask.png")
        lines = [line for line in caption.splitlines() if line.strip()]
        if lines:
            listed[name] = lines
    if not listed:
        return {"images": (str(images),), "captions": None}
    write_listed(folder / LISTING, listed)
    return {"images": (str(images),), "captions": str(folder / LISTING)}
