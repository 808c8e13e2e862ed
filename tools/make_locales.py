"""Write locales/en/nodeDefs.json, the English texts of the ComfyUI nodes, as its page reads them.

    python tools/make_locales.py

They are the nodes' own: names, descriptions and tooltips in their classes. A page without a translation shows those
anyway; the file is what translations are made from and compared with.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from node_pack import import_pack, without_files

OUTPUT = Path(__file__).resolve().parent.parent / "locales" / "en" / "nodeDefs.json"
SYNTAX = re.compile("[{}@|]")
"""What a translation cannot hold: vue-i18n takes these for syntax and fails. Writing them its own way does not help:
newer pages show tooltips unparsed."""


def node_texts() -> dict[str, dict[str, Any]]:
    """All that a user reads on the nodes, by the nodes' ids. Choices of inputs have no translations on the page."""
    pack = import_pack()
    with without_files():
        return {
            name: {
                "display_name": pack.NODE_DISPLAY_NAME_MAPPINGS[name],
                "description": node.DESCRIPTION,
                "inputs": _inputs(node.INPUT_TYPES()),
                "outputs": {
                    str(i): {"name": output, "tooltip": tooltip}
                    for i, (output, tooltip) in enumerate(zip(node.RETURN_NAMES, node.OUTPUT_TOOLTIPS, strict=True))
                },
            }
            for name, node in pack.NODE_CLASS_MAPPINGS.items()
        }


def _inputs(kinds: dict[str, Any]) -> dict[str, dict[str, str]]:
    visible = {**kinds["required"], **kinds.get("optional", {})}
    return {name: {"name": name, "tooltip": options["tooltip"]} for name, (_, options) in visible.items()}


def text() -> str:
    """The file. Texts that translations cannot hold are left out, so that the page takes the nodes' own."""
    return json.dumps(_without_syntax(node_texts()), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _without_syntax(texts: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_syntax(value) if isinstance(value, dict) else value
        for key, value in texts.items()
        if isinstance(value, dict) or not SYNTAX.search(value)
    }


def main() -> None:
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(text(), encoding="utf-8", newline="\n")
    print(OUTPUT)


if __name__ == "__main__":
    main()
