"""Apply, Save and Load Embedding: in a CLIP with the attributes of ComfyUI's, and in the user's folder."""

from __future__ import annotations

import copy
import importlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import zoodip_core
from tests.fake_host import FakeHost


@pytest.fixture
def apply_node(pack: Any) -> Any:
    return pack.NODE_CLASS_MAPPINGS["ZoodipApplyEmbedding"]()


@pytest.fixture
def save_node(pack: Any) -> Any:
    return pack.NODE_CLASS_MAPPINGS["ZoodipSaveEmbedding"]()


@pytest.fixture
def load_node(pack: Any) -> Any:
    return pack.NODE_CLASS_MAPPINGS["ZoodipLoadEmbedding"]()


def learned(token: str = "<boo>", seed: int = 0, widths: tuple[int, ...] = (768,), vectors: int = 1) -> Any:
    """A token of random vectors, of the pack's own core."""
    generator = torch.Generator().manual_seed(seed)
    tensors = tuple(torch.randn(vectors, width, generator=generator) for width in widths)
    return importlib.import_module("zoodip_pack.zoodip_core.model.embedding").Embedding(
        token, tensors, {"steps": str(seed)}
    )


def same(one: Any, other: Any) -> bool:
    pairs = zip(one.tensors, other.tensors, strict=True)
    return one.token == other.token and all(torch.equal(a, b) for a, b in pairs)


# ---------------------------------------------------------------- a CLIP like ComfyUI's


class Inner:
    """A text encoder's tokenizer, with the attributes of ``comfy.sd1_clip.SDTokenizer``."""

    def __init__(self, directory: Any, size: int) -> None:
        self.embedding_directory = directory
        self.embedding_size = size
        self.embedding_identifier = "embedding:"


class Tokenizer:
    """Like ``SD1Tokenizer`` and ``SDXLTokenizer``; its tokens are the text as it arrived."""

    def __init__(self, directory: Any, **sizes: int) -> None:
        for name, size in sizes.items():
            setattr(self, name, Inner(directory, size))

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> Any:
        return (text, return_word_ids, options)

    def untokenize(self, pair: Any) -> Any:
        return ("words", pair)


class Clip:
    """Like ``comfy.sd.CLIP``: a clone shares the tokenizer."""

    def __init__(self, directory: Any = "/embeddings", **sizes: int) -> None:
        self.tokenizer = Tokenizer(directory, **(sizes or {"clip_l": 768}))
        self.patcher = object()

    def clone(self) -> Clip:
        return copy.copy(self)

    def reads(self, text: str) -> str:
        """The text that its tokenizers are given."""
        return str(self.tokenizer.tokenize_with_weights(text)[0])


def names_in(prompt: str) -> list[tuple[str, float]]:
    """The embeddings that ComfyUI reads in a prompt, and their weights.

    A name begins after ``embedding:`` where that stands first in the text or in its brackets, or after a space or
    a line's end, and goes to the next white space. Brackets that a backslash precedes are ordinary letters.
    """
    found: list[tuple[str, float]] = []
    plain = prompt.replace("\\(", "\1").replace("\\)", "\2")
    for segment, closing in re.findall(r"([^()]+)(\)?)", plain):
        weight = 1.1 if closing else 1.0
        stated = re.fullmatch(r"(.+):\s*([-+\d.e]+)\s*", segment, re.DOTALL) if closing else None
        if stated:
            segment, weight = stated[1], float(stated[2])
        found += [(name, weight) for name in re.findall(r"(?:^|[ \n])embedding:(\S*)", segment)]
    assert len(found) == prompt.count("embedding:"), f"ComfyUI would not see each of them: {prompt!r}"
    return found


def test_the_reader_of_these_tests_reads_as_documented() -> None:
    assert names_in("a embedding:x, b\nembedding:y (embedding:z:1.3)") == [("x,", 1), ("y", 1), ("z", 1.3)]
    for glued in ("my-embedding:x", "\\(embedding:x \\)", "\tembedding:x"):
        with pytest.raises(AssertionError, match="would not see"):
            names_in(glued)


# ---------------------------------------------------------------- Apply Embedding


def test_the_clip_reads_the_token_from_a_file_of_its_own(apply_node: Any, host: FakeHost) -> None:
    embedding = learned()
    clip, text = apply_node.apply(Clip(), embedding, 1.0)
    (file,) = (host.root / "temp" / "zoodip").iterdir()
    assert text == f"embedding:{file.stem}"
    assert same(zoodip_core.load_embedding(file), embedding)
    assert clip.tokenizer.clip_l.embedding_directory == [str(file.parent), "/embeddings"]
    assert names_in(clip.reads("a photo of a <boo> on grass")) == [(file.stem, 1)]
    assert clip.reads("a photo") == "a photo"
    assert clip.reads(f"a {text} here") == f"a {text} here"


def test_other_arguments_and_methods_of_the_tokenizer_pass_through(apply_node: Any, host: FakeHost) -> None:
    clip, _ = apply_node.apply(Clip(), learned(), 1.0)
    assert clip.tokenizer.tokenize_with_weights("x", True, disable_weights=True) == (
        "x",
        True,
        {"disable_weights": True},
    )
    assert clip.tokenizer.untokenize((1, 2)) == ("words", (1, 2))
    assert isinstance(clip.tokenizer, Tokenizer)


def test_the_clip_that_was_given_stays_as_it_was(apply_node: Any, host: FakeHost) -> None:
    directory = ["/embeddings", "/more"]
    given = Clip(directory, clip_l=768, clip_g=1280)
    tokenizer, inner = given.tokenizer, [given.tokenizer.clip_l, given.tokenizer.clip_g]  # type: ignore[attr-defined]
    before = [dict(vars(each)) for each in (given, tokenizer, *inner)]
    applied, _ = apply_node.apply(given, learned(widths=(768, 1280)), 1.3)
    assert applied is not given
    assert [dict(vars(each)) for each in (given, tokenizer, *inner)] == before
    assert type(tokenizer) is Tokenizer
    assert directory == ["/embeddings", "/more"]
    assert given.reads("a <boo>") == "a <boo>"
    assert applied.patcher is given.patcher  # the weights are shared
    for name in ("clip_l", "clip_g"):
        folders = getattr(applied.tokenizer, name).embedding_directory
        assert folders == [str(host.root / "temp" / "zoodip"), "/embeddings", "/more"]


@pytest.mark.parametrize("directory", [None, "/one", ["/one", "/two"], ("/one",)])
def test_any_embedding_directory_is_kept(directory: Any, apply_node: Any, host: FakeHost) -> None:
    clip, _ = apply_node.apply(Clip(directory), learned(), 1.0)
    kept = [] if directory is None else [directory] if isinstance(directory, str) else list(directory)
    assert clip.tokenizer.clip_l.embedding_directory[1:] == kept


@pytest.mark.parametrize(
    ("sizes", "widths", "needs", "has"),
    [
        ({"clip_h": 1024}, (768,), "1024", "768"),
        ({"clip_l": 768, "clip_g": 1280}, (768,), r"768\+1280", "768"),
        ({"clip_l": 768}, (768, 1280), "768", r"768\+1280"),
        ({"clip_l": 768}, (128,), "768", "128"),
    ],
)
def test_a_token_of_another_family_is_refused(
    sizes: dict[str, int], widths: tuple[int, ...], needs: str, has: str, apply_node: Any, host: FakeHost
) -> None:
    """ComfyUI itself would silently leave it out."""
    with pytest.raises(ValueError, match=rf"embedding.* clip.*width {has} .* needs {needs};"):
        apply_node.apply(Clip(**sizes), learned(widths=widths), 1.0)
    assert not list((host.root / "temp").rglob("*.safetensors"))


def test_a_clip_that_is_none_or_of_another_kind_is_refused(apply_node: Any, host: FakeHost) -> None:
    with pytest.raises(ValueError, match=r"^clip: "):
        apply_node.apply(None, learned(), 1.0)
    other = Clip()
    del other.tokenizer.clip_l  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="clip") as caught:
        apply_node.apply(other, learned(), 1.0)
    assert "needs ;" not in str(caught.value)  # it says what is the matter


def test_the_files_name_is_its_contents(apply_node: Any, host: FakeHost) -> None:
    """Else ComfyUI, which remembers by text, would show the token of before."""
    texts = [apply_node.apply(Clip(), embedding, 1.0)[1] for embedding in (learned(), learned(seed=1), learned())]
    assert texts[0] == texts[2] != texts[1]
    assert len(list((host.root / "temp" / "zoodip").iterdir())) == 2
    assert apply_node.apply(Clip(), learned("<other>"), 1.0)[1] not in texts


def test_a_file_that_was_deleted_is_written_again(apply_node: Any, host: FakeHost) -> None:
    clip, _ = apply_node.apply(Clip(), learned(), 1.0)
    (file,) = (host.root / "temp" / "zoodip").iterdir()
    content = file.read_bytes()
    file.unlink()
    file.parent.rmdir()
    clip.reads("a <boo>")
    assert file.read_bytes() == content


def test_two_tokens_may_be_applied_one_after_the_other(apply_node: Any, host: FakeHost) -> None:
    given = Clip()
    first, boo = apply_node.apply(given, learned("<boo>"), 1.0)
    both, zig = apply_node.apply(first, learned("<zig>", 1), 1.0)
    prompt = "a <boo> with a <zig>, and <boo>"
    names = [text.removeprefix("embedding:") for text in (boo, zig, boo)]
    assert [name for name, _ in names_in(both.reads(prompt))] == names
    assert [name for name, _ in names_in(first.reads(prompt))] == [names[0], names[2]]
    assert "<zig>" in first.reads(prompt)
    assert given.reads(prompt) == prompt
    for file in (host.root / "temp" / "zoodip").iterdir():
        file.unlink()
    both.reads(prompt)
    assert {f"embedding:{file.stem}" for file in (host.root / "temp" / "zoodip").iterdir()} == {boo, zig}


@pytest.mark.parametrize("tokens", [("dog", "dog-2"), ("rex", "<rex>"), ("dog-2", "dog"), ("<rex>", "rex")])
def test_no_applied_token_is_looked_for_in_another(tokens: tuple[str, str], apply_node: Any, host: FakeHost) -> None:
    clip, texts = Clip(), {}
    for seed, token in enumerate(tokens):
        clip, texts[token] = apply_node.apply(clip, learned(token, seed), 1.0)
    read = clip.reads(f"a {tokens[0]} and a {tokens[1]}, {tokens[0]}")
    called = [f"embedding:{name}" for name, _ in names_in(read)]
    assert called == [texts[tokens[0]], texts[tokens[1]], texts[tokens[0]]]
    assert clip.tokenizer.clip_l.embedding_directory == [  # type: ignore[attr-defined]
        str(host.root / "temp" / "zoodip"),
        "/embeddings",
    ]


def test_a_token_applied_again_is_the_later_one(apply_node: Any, host: FakeHost) -> None:
    once, _ = apply_node.apply(Clip(), learned(seed=1), 1.0)
    twice, text = apply_node.apply(once, learned(seed=2), 1.2)
    assert twice.reads("a <boo>") == f"a {text}"


def test_what_another_pack_put_around_the_tokenizer_stays(apply_node: Any, host: FakeHost) -> None:
    clip, boo = apply_node.apply(Clip(), learned(), 1.0)

    class Shouting(type(clip.tokenizer)):  # type: ignore[misc]
        def tokenize_with_weights(self, text: str, *args: Any, **options: Any) -> Any:
            return super().tokenize_with_weights(f"{text}!", *args, **options)

    clip.tokenizer = copy.copy(clip.tokenizer)
    clip.tokenizer.__class__ = Shouting
    both, zig = apply_node.apply(clip, learned("<zig>", 1), 1.0)
    assert both.reads("<boo> <zig>") == f"{boo} {zig}!"


@pytest.mark.parametrize(("strength", "shown"), [(1.3, "1.3"), (0.05, "0.05"), (0.0, "0"), (4.0, "4")])
def test_strength_weighs_the_token_in_prompts(strength: float, shown: str, apply_node: Any, host: FakeHost) -> None:
    clip, text = apply_node.apply(Clip(), learned(), strength)
    (file,) = (host.root / "temp" / "zoodip").iterdir()
    assert text == f"(embedding:{file.stem}:{shown})"
    for prompt in ("a <boo> here", "<boo>", "<boo>, sharp", "my-<boo>"):
        assert names_in(clip.reads(prompt)) == [(file.stem, strength)]


PLACES = [
    ("<boo>", "a <boo>", 1),
    ("<boo>", "<boo>", 1),
    ("<boo>", "<boo>, sharp", 1),
    ("<boo>", "sharp,<boo>.", 1),
    ("<boo>", "(<boo>:1.2)", 1),
    ("<boo>", "(<boo>)", 1),
    ("<boo>", "((a <boo>):1.2), (<boo> sharp:0.5)", 2),
    ("<boo>", "<boo>: x", 1),
    ("<boo>", "(<boo>: x)", 1),
    ("<boo>", "(a <boo>:-1)", 1),
    ("<boo>", "<boo>'s house", 1),
    ("<boo>", "my-<boo>", 1),
    ("<boo>", "<boo><boo>", 2),
    ("<boo>", "<boo>(x)", 1),
    ("<boo>", "x\n<boo>\ny", 1),
    ("<boo>", "x\t<boo>\ty", 1),
    ("<boo>", "[<boo>|x]", 1),
    ("<boo>", r"a \(<boo>\) b", 1),
    ("<boo>", "a boo, <Boo>, < boo >", 0),
    ("cat", "a cat", 1),
    ("cat", "a cat's catalogue of cat, concat and cat-like", 3),
    ("cat", "catalogue", 0),
    ("c.t", "a cat and a c.t", 1),
]


@pytest.mark.parametrize(("token", "prompt", "times"), PLACES)
def test_no_name_is_glued_to_its_neighbours(
    token: str, prompt: str, times: int, apply_node: Any, host: FakeHost
) -> None:
    clip, text = apply_node.apply(Clip(), learned(token), 1.0)
    read = clip.reads(prompt)
    assert [name for name, _ in names_in(read)] == [text.removeprefix("embedding:")] * times
    # Nothing else of the prompt is changed but for white space.
    assert "".join(read.replace(text, token).split()) == "".join(prompt.split())
    if not times:
        assert read == prompt


def test_a_weight_of_the_prompts_stays_on_the_token(apply_node: Any, host: FakeHost) -> None:
    clip, _ = apply_node.apply(Clip(), learned(), 1.0)
    assert [weight for _, weight in names_in(clip.reads("<boo> (<boo>:1.2) (<boo>)"))] == [1, 1.2, 1.1]


def test_a_file_that_a_prompt_names_itself_is_left_alone(apply_node: Any, host: FakeHost) -> None:
    """A token without brackets, saved: its own file is embedding:boo."""
    clip, text = apply_node.apply(Clip(), learned("boo"), 1.0)
    assert clip.reads("a embedding:boo here") == "a embedding:boo here"
    assert clip.reads("a embedding:boo-2 here") == "a embedding:boo-2 here"
    assert names_in(clip.reads("a boo here")) == [(text.removeprefix("embedding:"), 1)]


# ---------------------------------------------------------------- Save Embedding


def save(save_node: Any, embedding: Any, filename: str = "", **inputs: Any) -> tuple[str, str]:
    given = {"overwrite": False, "prompt": "a photo of a {}", "unique_id": "1", **inputs}
    assert save_node.VALIDATE_INPUTS(filename) is True
    out = save_node.save(embedding, filename, **given)
    assert out["ui"]["text"] == [f"embedding:{out['result'][1].removesuffix('.safetensors')}"]
    prompt, file = out["result"]
    return prompt, file


def files(host: FakeHost) -> list[str]:
    folder = host.root / "embeddings"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_saved_token_is_a_file_that_others_read(save_node: Any, host: FakeHost) -> None:
    embedding = learned(widths=(768, 1280), vectors=2)
    prompt, file = save(save_node, embedding)
    assert file == "boo.safetensors"
    assert files(host) == [file]
    assert same(zoodip_core.load_embedding(host.root / "embeddings" / file), embedding)
    assert prompt == "a photo of a embedding:boo"


@pytest.mark.parametrize(
    ("filename", "file"),
    [
        ("", "boo"),
        ("  ", "boo"),
        ("mine", "mine"),
        ("mine.safetensors", "mine"),
        ("v1.5", "v1.5"),
        ("sub/mine", "sub/mine"),
        ("sub/folder/mine.safetensors", "sub/folder/mine"),
        ("sub\\mine", "sub/mine"),
        ("Straße", "Straße"),
    ],
)
def test_a_file_is_named_as_asked(filename: str, file: str, save_node: Any, host: FakeHost) -> None:
    prompt, named = save(save_node, learned(), filename)
    assert named == f"{file}.safetensors"
    assert files(host) == [named]
    assert names_in(prompt) == [(file, 1)]


def test_the_tokens_brackets_do_not_get_into_a_files_name(save_node: Any, host: FakeHost) -> None:
    """Windows has no such names; the token's own form is what a user may well type."""
    if save_node.VALIDATE_INPUTS("<boo>") is True:
        save(save_node, learned(), "<boo>")
    assert files(host) in ([], ["boo.safetensors"])


def test_another_token_of_the_name_is_not_overwritten(save_node: Any, host: FakeHost) -> None:
    tokens = [learned(seed=i) for i in range(3)]
    assert [save(save_node, each)[1] for each in tokens] == [
        "boo.safetensors",
        "boo-2.safetensors",
        "boo-3.safetensors",
    ]
    for embedding, file in zip(tokens, ("boo", "boo-2", "boo-3"), strict=True):
        assert same(zoodip_core.load_embedding(host.root / "embeddings" / f"{file}.safetensors"), embedding)
    assert save(save_node, tokens[1])[0] == "a photo of a embedding:boo-2"  # it stands there already
    assert len(files(host)) == 3
    assert save(save_node, tokens[2], overwrite=True)[1] == "boo.safetensors"
    assert same(zoodip_core.load_embedding(host.root / "embeddings" / "boo.safetensors"), tokens[2])
    assert len(files(host)) == 3


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_token_again_writes_nothing(overwrite: bool, save_node: Any, host: FakeHost) -> None:
    save(save_node, learned())
    file = host.root / "embeddings" / "boo.safetensors"
    os.utime(file, (1, 1))
    assert save(save_node, learned(), overwrite=overwrite)[1] == "boo.safetensors"
    assert file.stat().st_mtime == 1
    assert files(host) == ["boo.safetensors"]


OUTSIDE = [
    "../boo",
    "sub/../../boo",
    "sub/../boo",
    "./boo",
    "..",
    "/tmp/boo",
    "//server/boo",
    "..\\boo",
    "sub\\..\\..\\boo",
    "\\boo",
    "C:\\boo",
    "C:boo",
    "sub//boo",
    "boo/",
    "~/boo",
    "link/boo",
    "con",
    "NUL.txt",
    "sub/com1",
    "aux/boo",
    ".boo",
    "boo.",
    "my boo",
    "boo\nx",
    "boo\0x",
    "a*b",
    "x" * 300,
]


@pytest.mark.parametrize("filename", OUTSIDE)
def test_names_that_lead_out_or_that_systems_reserve_are_refused(filename: str, save_node: Any, host: FakeHost) -> None:
    """When the prompt is queued, and when it runs: the name may come from another node."""
    (host.root / "outside").mkdir()
    (host.root / "embeddings" / "link").symlink_to(host.root / "outside", target_is_directory=True)
    before = sorted(host.root.rglob("*"))
    why = save_node.VALIDATE_INPUTS(filename)
    assert isinstance(why, str)
    assert why.startswith("filename")
    with pytest.raises(ValueError, match=r"^filename"):
        save_node.save(learned(), filename, True, "a {}")
    assert sorted(host.root.rglob("*")) == before


def test_a_name_from_another_node_is_checked_later(save_node: Any, host: FakeHost) -> None:
    assert save_node.VALIDATE_INPUTS(None) is True


def test_a_token_that_can_not_name_a_file_needs_a_name(save_node: Any, host: FakeHost) -> None:
    """A stranger's file may say what it likes of its token."""
    with pytest.raises(ValueError, match=r"^filename"):
        save_node.save(learned("../../up"), "", False, "a {}")
    assert files(host) == []
    assert save(save_node, learned("../../up"), "mine")[1] == "mine.safetensors"


def test_a_deleted_file_is_noticed_and_written_again(save_node: Any, host: FakeHost) -> None:
    """ComfyUI would not run the node again: its inputs are the same."""
    state = save_node.IS_CHANGED(unique_id="7", filename="", overwrite=False)
    save(save_node, learned(), unique_id="7")
    assert save_node.IS_CHANGED(unique_id="7", filename="", overwrite=False) == state
    file = host.root / "embeddings" / "boo.safetensors"
    content = file.read_bytes()
    file.unlink()
    lost = save_node.IS_CHANGED(unique_id="7", filename="", overwrite=False)
    assert lost != state
    assert save_node.IS_CHANGED(unique_id="8", filename="", overwrite=False) == state  # another node
    save(save_node, learned(), unique_id="7")
    assert file.read_bytes() == content
    # The prompt after the repair is the same as the one that repaired it: nothing runs again.
    assert save_node.IS_CHANGED(unique_id="7", filename="", overwrite=False) == lost
    file.write_bytes(b"another's")
    assert save_node.IS_CHANGED(unique_id="7", filename="", overwrite=False) not in (state, lost)


@pytest.mark.usefixtures("host")
def test_braces_stand_for_a_plain_word_even_within_another(save_node: Any) -> None:
    """A token without angle brackets is looked for as a word; its place is marked all the same."""
    prompt, _ = save(save_node, learned("qzcat"), prompt="two {}s and a qzcat")
    assert prompt == "two embedding:qzcat s and a embedding:qzcat"


@pytest.mark.parametrize(
    ("prompt", "times"),
    [("a photo of a {}", 1), ("<boo>", 1), ("{}, <boo>", 2), ("({}:1.2)", 1), ("the {}'s", 1), ("a photo", 0), ("", 0)],
)
def test_the_prompt_names_the_file_where_the_token_stood(
    prompt: str, times: int, save_node: Any, host: FakeHost
) -> None:
    text, _ = save(save_node, learned(), "mine", prompt=prompt)
    assert [name for name, _ in names_in(text)] == ["mine"] * times
    assert "".join(text.replace("embedding:mine", "#").split()) == "".join(
        prompt.replace("{}", "#").replace("<boo>", "#").split()
    )


# ---------------------------------------------------------------- Load Embedding


def test_a_saved_token_is_loaded_again(save_node: Any, load_node: Any, host: FakeHost) -> None:
    embedding = learned(vectors=3)
    save(save_node, embedding, "sub/mine")
    assert load_node.INPUT_TYPES()["required"]["file"][0] == ["sub/mine.safetensors"]
    assert load_node.VALIDATE_INPUTS("sub/mine.safetensors") is True
    loaded, report = load_node.load("sub/mine.safetensors")
    assert same(loaded, embedding)
    for expected in ("<boo>", "Stable Diffusion 1.x", "3 x 768"):
        assert expected in report


def test_files_of_other_tools_load_and_code_in_them_does_not_run(load_node: Any, host: FakeHost) -> None:
    folder = host.root / "embeddings"
    vector = torch.randn(2, 1024, generator=torch.Generator().manual_seed(0))
    torch.save({"string_to_param": {"*": vector}, "name": "zig"}, folder / "a1111.pt")
    loaded, report = load_node.load("a1111.pt")
    assert torch.equal(loaded.tensors[0], vector)
    assert "zig" in report
    torch.save({"x": Path("touched")}, folder / "hostile.bin")
    with pytest.raises(ValueError, match="hostile"):
        load_node.load("hostile.bin")


def test_changed_content_is_noticed(load_node: Any, save_node: Any, host: FakeHost) -> None:
    save(save_node, learned())
    before = load_node.IS_CHANGED("boo.safetensors")
    file = host.root / "embeddings" / "boo.safetensors"
    os.utime(file, (1, 1))
    assert load_node.IS_CHANGED("boo.safetensors") == before
    save(save_node, learned(seed=1), overwrite=True)
    assert load_node.IS_CHANGED("boo.safetensors") != before


def test_a_file_that_is_not_among_the_embeddings_is_refused(load_node: Any, host: FakeHost) -> None:
    (host.root / "secret.safetensors").write_bytes(b"")
    for name in ("gone.safetensors", "../secret.safetensors", str(host.root / "secret.safetensors")):
        assert load_node.VALIDATE_INPUTS(name).startswith("file: ")
        with pytest.raises(ValueError, match=r"^file: .* is not among ComfyUI's embeddings"):
            load_node.load(name)
    assert load_node.VALIDATE_INPUTS(None) is True
