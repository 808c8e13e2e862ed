"""All attacks at once, with figures: ``python -m tests.attacks``."""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from tests.attacks import campaign, files
from tests.attacks.canary import Canary
from tests.attacks.entries import entries
from zoodip_core.base.errors import ZoodipError
from zoodip_core.data.images import open_picture
from zoodip_core.data.prompts import read_listed
from zoodip_core.model.embedding import load_embedding
from zoodip_core.model.recognise import identify


def told(title: str, what: str, result: campaign.Result, seconds: float) -> None:
    """Print what came of an attack."""
    memory = f", at most {result.memory / 1e6:.0f} MB" if what == "files" else ""
    counts = f"{result.attempts:>5} {what}{result.refused:>5} refused"
    print(f"{title:<62}{counts}{seconds:>7.2f} s, one at most {result.longest:.2f} s{memory}", flush=True)
    for failure in result.failures:
        print(f"    FAILED: {failure}")


def by_name(canary: Canary) -> Iterable[campaign.Result]:
    """Hostile names at every way in."""
    with entries(canary) as found:
        for entry in found:
            began = time.perf_counter()
            result = campaign.attack(entry, canary)
            told(entry.title, "names", result, time.perf_counter() - began)
            yield result


def by_file(canary: Canary, folder: Path) -> Iterable[campaign.Result]:
    """Hostile files at every reader."""
    texts = [folder / "texts" / f"{name}.json" for name in files.texts()]
    for name in ("pickles", "headers", "pictures", "texts"):
        (folder / name).mkdir()
    for path, content in zip(texts, files.texts().values(), strict=True):
        path.write_bytes(content)
    pickles, headers = [*files.pickles(folder / "pickles", canary.outside)], [*files.safetensors(folder / "headers")]
    for title, paths, reader in (
        ("pickles as embeddings", [path for path in pickles if path.suffix != ".ckpt"], load_embedding),
        ("pickles as models", [path for path in pickles if path.suffix == ".ckpt"], identify),
        ("headers of safetensors, as embeddings", headers, load_embedding),
        ("headers of safetensors, as models", headers, identify),
        ("pictures", [*files.pictures(folder / "pictures")], open_picture),
        ("captions", texts, read_listed),
    ):
        began = time.perf_counter()
        result = campaign.read(paths, reader, ZoodipError, canary)
        told(title, "files", result, time.perf_counter() - began)
        yield result


def main() -> int:
    """Run all; returns 0 if nothing got anywhere."""
    warnings.simplefilter("ignore")  # PyTorch warns of what it then refuses
    with tempfile.TemporaryDirectory() as place:
        root = Path(place).resolve()
        canary = Canary(root / "names")
        results = [*by_name(canary), *by_file(canary, root)]
    failures = sum(len(result.failures) for result in results)
    attempts, refused = sum(result.attempts for result in results), sum(result.refused for result in results)
    longest, memory = max(result.longest for result in results), max(result.memory for result in results)
    print(
        f"{attempts} attempts, {refused} refused, {failures} got through; the longest took {longest:.2f} s, "
        f"the largest {memory / 1e6:.0f} MB"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
