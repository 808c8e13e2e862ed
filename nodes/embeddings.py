"""Learned tokens: applied to a CLIP, saved where ComfyUI finds them, loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .host import host
from .loading import LoadsFile
from .placing import names_in, nfc, replaced, with_token
from .saving import SavesFile, Written, free, holds, name_in, target
from .tokenizer import encoder_names, missing_encoders, text_widths
from .tokens import each_of

if TYPE_CHECKING:
    from ..zoodip_core.model.embedding import Embedding
    from .tokens import Tokens


class ApplyEmbedding:
    """Lets a standard CLIP know a learned token, without a file of the user's."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Teaches a CLIP the learned token, or several, for the standard text encode nodes behind it. Write the token's "
        "name in their prompts, or wire the text output into them."
    )
    RETURN_TYPES = ("CLIP", "STRING")
    RETURN_NAMES = ("clip", "token")
    OUTPUT_TOOLTIPS = (
        "A CLIP that knows the token.",
        "The token with its strength, to put into a prompt; of several all, with commas between.",
    )
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {
            "required": {
                "clip": ("CLIP", {"tooltip": "Of the model family that the token was learned on."}),
                "embedding": ("ZOODIP_EMBEDDING", {"tooltip": "From ZO Train Token or Load Embedding."}),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 4.0,
                        "step": 0.05,
                        "tooltip": "The token's weight in the prompt, as in (token:1.2).",
                    },
                ),
            }
        }

    def apply(self, clip: Any, embedding: Tokens, strength: float) -> tuple[Any, str]:
        from ..zoodip_core.base.errors import EmbeddingFileError

        if clip is None:
            raise EmbeddingFileError("clip: the checkpoint has no text encoder; load one, and connect its CLIP")
        if not text_widths(clip):
            raise EmbeddingFileError("clip: this kind reads no embeddings; connect the CLIP of a Stable Diffusion")
        texts = []
        for each in each_of(embedding):
            self._check(clip, each)
            clip, text = with_token(clip, each, strength, host().temp_folder() / "zoodip")
            texts.append(text)
        return clip, ", ".join(texts)

    def _check(self, clip: Any, embedding: Embedding) -> None:
        """Refuse a token that is not for the CLIP's text encoders.

        Raises:
            EmbeddingFileError: it is not.
        """
        from ..zoodip_core.base.errors import EmbeddingFileError
        from ..zoodip_core.model.embedding import check_fits
        from ..zoodip_core.model.kinds import STABLE_DIFFUSION

        missing = missing_encoders(clip).intersection(embedding.encoders or STABLE_DIFFUSION.get(embedding.dims, ()))
        if missing:
            raise EmbeddingFileError(
                f"clip: it lacks the text encoder {' and '.join(sorted(missing))}, for which the embedding "
                f"{embedding.token!r} has vectors; load it too, as with DualCLIPLoader or TripleCLIPLoader"
            )
        check_fits(embedding, text_widths(clip), "embedding does not fit clip", encoder_names(clip))


class SaveEmbedding(SavesFile):
    """Writes a learned token into the user's embeddings folder."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Writes the token, or several, into ComfyUI's embeddings folder as safetensors. Those for Stable Diffusion "
        "work in A1111, Forge and diffusers as well. embedding:name works at once."
    )
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("prompt", "file")
    OUTPUT_TOOLTIPS = (
        "The prompt with embedding:name in the token's place; wired into a text encode node it is used in this run.",
        "The name of the file; of several tokens all, with commas between.",
    )
    FUNCTION = "save"
    OUTPUT_NODE = True
    WRITTEN = Written()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "embedding": ("ZOODIP_EMBEDDING", {"tooltip": "From ZO Train Token or Load Embedding."}),
                "filename": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Name of the file, perhaps in a subfolder; empty: the token's name. Several "
                        "tokens have their names behind it.",
                    },
                ),
                "overwrite": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Replace another token of this name. Off: the file gets the next free number.",
                    },
                ),
                "prompt": (
                    "STRING",
                    {
                        "default": "a photo of a {}",
                        "multiline": True,
                        "tooltip": "A prompt for text encode nodes; {} or the token's name becomes embedding:name. Of "
                        "several tokens, {} is the first.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def target(cls, filename: str, token: str) -> Path:
        return target(filename, token, host().embeddings_folder(), "the embeddings folder")

    def save(
        self, embedding: Tokens, filename: str, overwrite: bool, prompt: str, unique_id: str = ""
    ) -> dict[str, Any]:
        from ..zoodip_core.base.names import file_stem
        from ..zoodip_core.data.prompts import SLOT
        from ..zoodip_core.model.embedding import save_embedding, serialize

        tokens = each_of(embedding)
        contents: dict[Path, bytes] = {}
        for each in tokens:
            own = f"{filename.strip()}-{file_stem(each.token)}" if filename.strip() and len(tokens) > 1 else filename
            path, content = self.target(own, each.token), serialize(each)
            path = path if overwrite else free(path, content)
            contents[path] = content
            if not holds(path, content):
                save_embedding(each, path)
        self.WRITTEN.add(unique_id, contents)
        names = [name_in(host().embeddings_folder(), path) for path in contents]
        called = [f"embedding:{name}" for name in names]
        by_token = dict(zip((nfc(each.token) for each in tokens), called, strict=True))
        text = replaced(prompt, names_in(by_token, SLOT), lambda found: by_token.get(nfc(found), called[0]))
        return {"ui": {"text": called}, "result": (text, ", ".join(f"{name}.safetensors" for name in names))}


class LoadEmbedding(LoadsFile):
    """Reads an embedding file of any common tool."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = "Reads an embedding file: ours, A1111's, or diffusers'. Code in a file is never run."
    RETURN_TYPES = ("ZOODIP_EMBEDDING", "STRING")
    RETURN_NAMES = ("embedding", "report")
    OUTPUT_TOOLTIPS = (
        "For Apply Embedding and every other ZOODiP node with an input embedding.",
        "What is known of the token.",
    )
    FUNCTION = "load"
    CALLED = "embeddings"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "file": (list(cls.listed()), {"tooltip": "A file in ComfyUI's embeddings folders."}),
            },
            "optional": {
                "which": (
                    "STRING",
                    {
                        "default": "",
                        "advanced": True,
                        "tooltip": "The token to take of a file that holds several; empty: the only one.",
                    },
                ),
            },
        }

    @staticmethod
    def listed() -> dict[str, Path]:
        return host().embeddings()

    def load(self, file: str, which: str = "") -> tuple[Embedding, str]:
        from ..zoodip_core.model.embedding import describe, load_embedding

        embedding = load_embedding(self.path_of(file), which.strip())
        return embedding, "\n".join(f"{label}: {text}" for label, text in describe(embedding))
