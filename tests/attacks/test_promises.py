"""SECURITY.md says what the code does."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import node_pack

from zoodip_core.data import images, kinds, prompts
from zoodip_core.model import embedding_tensors
from zoodip_core.page import draft
from zoodip_webui import api

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_the_limits_are_the_code_s() -> None:
    node_pack.import_pack()
    in_nodes = importlib.import_module(f"{node_pack.NAME}.nodes.pictures").MAX_TOTAL_PIXELS
    rows = dict(re.findall(r"^\| ([a-z].*?) \| (\d.*?) \|$", TEXT, re.MULTILINE))
    assert rows == {
        "pictures of a page, a script or a node": f"{images.MAX_PICTURES}",
        "a picture's file": f"{images.MAX_FILE_BYTES // 10**6} MB",
        "a picture": f"{images.MAX_PIXELS // 10**6} million pixels",
        "a WebP or AVIF picture": f"{images.MAX_WEBP_PIXELS // 10**6} million pixels",
        "all pictures of a page": f"{draft.MAX_TOTAL_BYTES // 10**6} MB",
        "all pictures that a node loads": f"{in_nodes // 10**6} million pixels",
        "a request of a script, with its pictures": f"{api.MAX_REQUEST // 10**6} MB",
        "a file of captions": f"{prompts.MAX_TEXT // 10**6} MB",
        "an embedding": f"{embedding_tensors.MAX_BYTES // 10**6} MB",
    }
    assert kinds.FORMATS == ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
    assert "JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF and HEIC are read" in TEXT


def test_what_it_points_to_is_there() -> None:
    for path in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / path).is_file(), path
    assert (ROOT / "tests" / "attacks" / "__main__.py").is_file()
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
