"""A learned token in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .host import host
from .saving import SavesFile, Written, holds, target
from .tokens import one_of

if TYPE_CHECKING:
    from ..zoodip_core.model.conversion import Conversion
    from ..zoodip_core.model.embedding import Embedding
    from .tokens import Tokens

FORMATS = ("a1111-pt", "diffusers-bin", "diffusers-safetensors", "onetrainer", "safetensors")
"""Those of ``zoodip_core.model.conversion``, which takes torch to import; Save Embedding's is the last."""
_PLACE = "the output folder's embeddings"


class ConvertEmbedding(SavesFile):
    """Writes a learned token as another program's file."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Writes the token in the format of another program into embeddings in ComfyUI's output folder. The numbers "
        "stay as they are; what the format has no place for is said. For ComfyUI itself use Save Embedding."
    )
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("files", "report")
    OUTPUT_TOOLTIPS = ("The paths of the files, one a line.", "The files, and what of the token they do not hold.")
    FUNCTION = "convert"
    OUTPUT_NODE = True
    WRITTEN = Written()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {
            "required": {
                "embedding": (
                    "ZOODIP_EMBEDDING",
                    {"tooltip": "From Load Embedding, ZO Train Token or Merge Embeddings."},
                ),
                "format": (
                    list(FORMATS),
                    {
                        "tooltip": "a1111-pt: A1111's own .pt. diffusers-bin and diffusers-safetensors: for "
                        "load_textual_inversion, two files for SDXL. onetrainer: to train it further there. "
                        "safetensors: as Save Embedding writes it.",
                    },
                ),
                "filename": (
                    "STRING",
                    {"default": "", "tooltip": "Name of the file, perhaps in a subfolder; empty: the token's name."},
                ),
                "overwrite": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Replace other files of this name. Off: the file gets the next free number.",
                    },
                ),
            },
            "optional": {
                "second_half": (
                    "ZOODIP_EMBEDDING",
                    {"tooltip": "The second of diffusers' two files of an SDXL token, to make one token of both."},
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def target(cls, filename: str, token: str, ending: str = ".pt") -> Path:
        return target(filename, token, host().output_folder() / "embeddings", _PLACE, ending)

    def convert(
        self,
        embedding: Tokens,
        format: str,
        filename: str,
        overwrite: bool,
        second_half: Tokens | None = None,
        unique_id: str = "",
    ) -> dict[str, Any]:
        from ..zoodip_core.base.texts import printable
        from ..zoodip_core.model.conversion import joined, save_together

        whole = one_of(embedding, "embedding")
        if second_half:
            whole = joined([whole, one_of(second_half, "second_half")])
        made, files = _free(whole, format, filename, overwrite)
        if not all(holds(*each) for each in files.items()):
            save_together(files)
        self.WRITTEN.add(unique_id, files)
        lines = [path.name for path in files]
        if made.lost:
            lines.append(f"not kept, for the format has no place for it: {printable(', '.join(made.lost))}")
        return {"ui": {"text": lines}, "result": ("\n".join(map(str, files)), "\n".join(lines))}


def _free(embedding: Embedding, to: str, filename: str, overwrite: bool) -> tuple[Conversion, dict[Path, bytes]]:
    """A token in a format, and its files at the first name at which nothing else stands."""
    from ..zoodip_core.model.conversion import FORMATS as KNOWN
    from ..zoodip_core.model.conversion import converted

    ending = KNOWN[to].ending if to in KNOWN else ".safetensors"
    first = ConvertEmbedding.target(filename, embedding.token, ending)
    stem, count = first.stem, 1
    while True:
        made = converted(embedding, to, stem)
        files = {first.with_name(name): content for name, content in made.files.items()}
        if overwrite or all(holds(path, content) or not path.exists() for path, content in files.items()):
            return made, files
        count += 1
        stem = f"{first.stem}-{count}"
