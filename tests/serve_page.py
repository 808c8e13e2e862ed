"""Serves the page by another Python than the one that trains: ``PYTHON tests/serve_page.py PORT HOME TRAINER``.

That Python has a gradio of its own, and of what trains no more than a webui's has. Where gradio warns of how we use it,
this ends.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from zoodip_core.page.page import serve
from zoodip_core.page.standalone import Alone
from zoodip_core.page.studio import Studio


class Host(Alone):
    """The page alone, with a trainer elsewhere."""

    trainer = ""

    def python(self) -> str:
        return self.trainer


def main() -> None:
    port, home, trainer = sys.argv[1:]
    host = Host(Path(home))
    host.trainer = trainer
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", ResourceWarning)
    # Of gradio's use of its own requirements, which are newer than it.
    for module in ("fastapi", "starlette", "gradio.routes", "gradio.queueing", "websockets", "uvicorn", "pydantic"):
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=rf"{module}\b")
    serve(Studio(host), host="127.0.0.1", port=int(port))


if __name__ == "__main__":
    main()
