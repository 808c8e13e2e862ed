"""Write the CLIP tokenizer that travels with the project, from OpenAI's list of merges.

    pip download --no-deps open_clip_torch
    unzip -j open_clip_torch-*.whl open_clip/bpe_simple_vocab_16e6.txt.gz
    python tools/make_clip_tokenizer.py bpe_simple_vocab_16e6.txt.gz

Writes ``vocab.json``, ``merges.txt`` and the configs to ``zoodip_core/clip``, where transformers reads them.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "zoodip_core" / "clip"
START, END = "<|startoftext|>", "<|endoftext|>"
NUM_TOKENS = 49408
NUM_MERGES = NUM_TOKENS - 2 * 256 - 2
SPECIAL = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
CONFIG = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": 77,
    "do_lower_case": True,
    "add_prefix_space": False,
    "errors": "replace",
    **SPECIAL,
}


def byte_symbols() -> list[str]:
    """One visible character for each of the 256 bytes: printable Latin-1 first, as itself, then the rest."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def read_merges(path: Path) -> list[str]:
    """The merges that CLIP uses: the first 48894 of the file, whose first line is a header."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        merges = lines.read().split("\n")[1 : NUM_MERGES + 1]
    if len(merges) != NUM_MERGES or any(len(merge.split(" ")) != 2 for merge in merges):
        raise SystemExit(f"{path} does not hold CLIP's merges; it is bpe_simple_vocab_16e6.txt.gz that is wanted")
    return merges


def vocabulary(merges: Sequence[str]) -> dict[str, int]:
    """Ids by token: bytes, bytes that end a word, merged pairs, start and end."""
    symbols = byte_symbols()
    ending = [symbol + "</w>" for symbol in symbols]
    tokens = [*symbols, *ending, *(merge.replace(" ", "") for merge in merges), START, END]
    return {token: number for number, token in enumerate(tokens)}


def write(merges: Sequence[str], folder: Path) -> None:
    """Write the tokenizer's four files."""
    vocab = vocabulary(merges)
    if len(vocab) != NUM_TOKENS:
        raise SystemExit(f"{len(vocab)} tokens in place of {NUM_TOKENS}")
    files = {
        "vocab.json": json.dumps(vocab, ensure_ascii=False, separators=(",", ":")),
        "merges.txt": "\n".join(["#version: 0.2", *merges]),
        "tokenizer_config.json": json.dumps(CONFIG, indent=2),
        "special_tokens_map.json": json.dumps(SPECIAL, indent=2),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(f"{text}\n".encode())  # bytes: the same file on every system


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the CLIP tokenizer that travels with the project.")
    parser.add_argument("merges", type=Path, help="bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    options = parser.parse_args(arguments)
    write(read_merges(options.merges), options.folder)


if __name__ == "__main__":
    main()
