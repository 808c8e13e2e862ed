"""Run by ComfyUI-Manager after the packages in requirements.txt, and by webuis at their start.

It installs nothing: a host's packages, torch above all, are the host's. It says what is missing.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NEEDED = ("diffusers", "transformers", "optimum", "safetensors", "matplotlib", "psutil", "tqdm")


def main() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        requirements = Path(__file__).resolve().parent / "requirements.txt"
        command = f'"{sys.executable}" -m pip install -r "{requirements}"'
        print(f"ZOODiP needs {', '.join(missing)}. To install:\n  {command}")


if __name__ == "__main__":
    main()
