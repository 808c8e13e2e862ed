"""ComfyUI nodes over :mod:`zoodip_core`. What a node asks of ComfyUI goes through :mod:`.host`.

Importing this is cheap: torch, the core and ComfyUI's own modules are imported when a node is used.
"""

from __future__ import annotations

from typing import Any

from .caption import CaptionImages
from .compare import CompareEmbeddings
from .convert import ConvertEmbedding
from .embeddings import ApplyEmbedding, LoadEmbedding, SaveEmbedding
from .evaluate import EvaluateEmbedding
from .from_comfyui import ModelFromComfyUI
from .generate import GeneratePreview
from .loras import ApplyLora, LoadLearnedLora, SaveLora
from .merge import MergeEmbeddings
from .models import LoadQuantizedSD
from .nearest import NearestWords
from .pictures import LoadReferenceImages
from .search import PUTSSampler, SubspaceGradient
from .train import ZOTrainToken
from .words import WordAsEmbedding

NODE_CLASS_MAPPINGS: dict[str, type[Any]] = {
    "ZoodipLoadQuantizedSD": LoadQuantizedSD,
    "ZoodipModelFromComfyUI": ModelFromComfyUI,
    "ZoodipLoadReferenceImages": LoadReferenceImages,
    "ZoodipCaptionImages": CaptionImages,
    "ZoodipSubspaceGradient": SubspaceGradient,
    "ZoodipPUTSSampler": PUTSSampler,
    "ZoodipTrainToken": ZOTrainToken,
    "ZoodipApplyEmbedding": ApplyEmbedding,
    "ZoodipSaveEmbedding": SaveEmbedding,
    "ZoodipLoadEmbedding": LoadEmbedding,
    "ZoodipConvertEmbedding": ConvertEmbedding,
    "ZoodipWordAsEmbedding": WordAsEmbedding,
    "ZoodipMergeEmbeddings": MergeEmbeddings,
    "ZoodipNearestWords": NearestWords,
    "ZoodipApplyLora": ApplyLora,
    "ZoodipSaveLora": SaveLora,
    "ZoodipLoadLearnedLora": LoadLearnedLora,
    "ZoodipGeneratePreview": GeneratePreview,
    "ZoodipCompareEmbeddings": CompareEmbeddings,
    "ZoodipEvaluateEmbedding": EvaluateEmbedding,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ZoodipLoadQuantizedSD": "Load Quantized SD",
    "ZoodipModelFromComfyUI": "Model from ComfyUI",
    "ZoodipLoadReferenceImages": "Load Reference Images",
    "ZoodipCaptionImages": "Caption Images",
    "ZoodipSubspaceGradient": "Subspace Gradient",
    "ZoodipPUTSSampler": "PUTS Sampler",
    "ZoodipTrainToken": "ZO Train Token",
    "ZoodipApplyEmbedding": "Apply Embedding",
    "ZoodipSaveEmbedding": "Save Embedding",
    "ZoodipLoadEmbedding": "Load Embedding",
    "ZoodipConvertEmbedding": "Convert Embedding",
    "ZoodipWordAsEmbedding": "Word as Embedding",
    "ZoodipMergeEmbeddings": "Merge Embeddings",
    "ZoodipNearestWords": "Nearest Words",
    "ZoodipApplyLora": "Apply LoRA",
    "ZoodipSaveLora": "Save LoRA",
    "ZoodipLoadLearnedLora": "Load Learned LoRA",
    "ZoodipGeneratePreview": "Generate Preview",
    "ZoodipCompareEmbeddings": "Compare Embeddings",
    "ZoodipEvaluateEmbedding": "Evaluate Embedding",
}
