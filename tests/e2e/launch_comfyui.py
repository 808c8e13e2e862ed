"""Run ComfyUI where torchvision does not fit torch: ``python launch_comfyui.py COMFYUI/main.py ARGUMENT...``

torchvision from PyPI is built for CUDA, and cannot be imported beside a torch for CPUs unless its two operators are
declared before. ComfyUI does not call them.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from pathlib import Path

import torch


def declare_torchvision() -> torch.library.Library | None:
    """What lets torchvision be imported where its operators are missing, to be kept alive; None if it needs nothing."""
    try:
        import torchvision  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        return None
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return None
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def end_with_stdin() -> None:
    """End this process when its stdin is closed: when what started it is gone, however that ended."""
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_stdin, daemon=True).start()
    declared = declare_torchvision()
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
