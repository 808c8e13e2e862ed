"""Several tokens on nodes: what ZO Train Token gives of them, and what the other nodes do with a token or several."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.fake_host import FakeHost
from tests.test_node_embeddings import Clip, names_in
from tests.test_node_evaluate import judges_at as judges_at
from tests.test_node_evaluate import model as model
from tests.test_node_evaluate import models as models
from tests.test_node_evaluate import run as evaluate
from tests.test_node_training import one_preview as one_preview
from tests.test_node_training import pictures, train

CAPTIONS = ["a <boo> in snow", "a <pip> in snow", "a <boo>", "a <pip>", "a <pip> and a <boo>", "<boo>"]


def learned(token: str, seed: int = 0, width: int = 128) -> Any:
    vector = 0.2 * torch.randn(1, width, generator=torch.Generator().manual_seed(seed))
    return core("model.embedding").Embedding(token, (vector,), {"initializer": "monster"})


def core(name: str) -> ModuleType:
    return importlib.import_module(f"zoodip_pack.zoodip_core.{name}")


def node(pack: Any, name: str) -> Any:
    return pack.NODE_CLASS_MAPPINGS[name]()


@pytest.mark.usefixtures("one_preview")
def test_a_run_of_two_tokens_gives_both(pack: Any, host: FakeHost, model: Any) -> None:
    two = {"token": "<boo>, <pip>", "initializer": "ghost, monster", "captions": CAPTIONS}
    out = train(pack, model, **two, preview_prompt="a {} in the sunset")
    tokens = out["result"][0]
    assert [each.token for each in tokens] == ["<boo>", "<pip>"]
    assert [each.metadata["initializer"] for each in tokens] == ["ghost", "monster"]
    (folder,) = (host.root / "output" / "zoodip").iterdir()
    assert folder.name.startswith("boo-pip-")
    assert {path.name for path in (folder / "run").glob("*p*.safetensors")} >= {"pip.safetensors"}
    again = train(pack, model, **two, preview_prompt="a {} in the sunset")["result"][0]  # it is resumed, and done
    assert all(torch.equal(one.vectors, other.vectors) for one, other in zip(tokens, again, strict=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"captions": None}, r"captions: text 1, '', names no token; write <boo> or <pip>"),
        ({"captions": ["a {}", *CAPTIONS[1:]]}, r"captions: text 1, 'a {}', holds {}, which may be any of 2 tokens"),
        ({"captions": ["a dog", *CAPTIONS[1:]]}, r"captions: text 1, 'a dog', has no place for the token; write <boo>"),
        ({"captions": ["a <pip>"]}, r"no picture shows <boo>"),
        ({"initializer": "ghost, star, monster"}, r"initializer = .* one for each of the 2 tokens"),
        ({"preview_prompt": "a dog"}, r"preview_prompt: 'a dog' has no place for the token"),
    ],
)
def test_what_does_not_fit_several_is_refused(
    changes: dict[str, Any], said: str, pack: Any, host: FakeHost, model: Any
) -> None:
    given = {"token": "<boo>, <pip>", "initializer": "ghost, monster", "captions": CAPTIONS, **changes}
    if given["captions"] is None:
        given["captions"] = []
    with pytest.raises(ValueError, match=said):
        train(pack, model, images=pictures(), **given)
    assert not list((host.root / "output").rglob("*.safetensors"))


def test_names_are_checked_before_the_queue(pack: Any) -> None:
    checked = pack.NODE_CLASS_MAPPINGS["ZoodipTrainToken"].VALIDATE_INPUTS
    assert checked(token=["<boo>, <pip>"]) is True
    assert "would have the same file" in checked(token=["<boo>, <boo>"])


def test_all_are_applied(pack: Any, host: FakeHost) -> None:
    two = (learned("<rex>", 0, 768), learned("<tom>", 1, 768))
    clip, text = node(pack, "ZoodipApplyEmbedding").apply(Clip(), two, 1.0)
    names = [name for name, _ in names_in(clip.reads("a <tom> and a <rex> on grass"))]
    load = core("model.embedding").load_embedding
    read = [load(host.root / "temp" / "zoodip" / f"{name}.safetensors").token for name in names]
    assert read == ["<tom>", "<rex>"]
    assert text == f"embedding:{names[1]}, embedding:{names[0]}"
    with pytest.raises(ValueError, match="'<tom>' has width 1024"):
        node(pack, "ZoodipApplyEmbedding").apply(Clip(), (two[0], learned("<tom>", 1, 1024)), 1.0)


def test_all_are_saved(pack: Any, host: FakeHost) -> None:
    two = (learned("<rex>"), learned("<rex-2>", 1))
    saves = node(pack, "ZoodipSaveEmbedding")
    out = saves.save(two, "", False, "a {} by a <rex-2> and a <rex>", "3")
    assert out["result"] == (
        "a embedding:rex by a embedding:rex-2 and a embedding:rex",
        "rex.safetensors, rex-2.safetensors",
    )
    assert out["ui"]["text"] == ["embedding:rex", "embedding:rex-2"]
    before = type(saves).IS_CHANGED("3")
    (host.root / "embeddings" / "rex-2.safetensors").unlink()
    assert type(saves).IS_CHANGED("3") != before
    named = saves.save(two, "mine/dogs", False, "", "4")["result"][1]
    assert named == "mine/dogs-rex.safetensors, mine/dogs-rex-2.safetensors"
    assert saves.save(learned("<rex>"), "one", False, "a {}")["result"] == ("a embedding:one", "one.safetensors")


def test_previews_of_several(pack: Any, host: FakeHost, model: Any) -> None:
    one, other = learned("<rex>", 0), learned("<tom>", 1)
    how = {"seed": 3, "steps": 2, "guidance": 5.0, "resolution": 0}
    draw = node(pack, "ZoodipGeneratePreview").draw
    prompt = "a <rex> and a <tom> in the snow"
    generate = core("model.generation").generate
    (expected,) = generate(model, [prompt], [3], embedding=[one, other], num_inference_steps=2, guidance_scale=5.0)
    for given in ({"embedding": (one, other)}, {"embedding": one, "embedding_2": other}):
        (image,) = draw(model, prompt, **how, **given)["result"]
        seen = (image[0].numpy() * 255).round().astype("uint8")
        assert seen.tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="which may be any of 2 tokens"):
        draw(model, "a {}", **how, embedding=(one, other))
    with pytest.raises(ValueError, match="2 embeddings have the same token <rex>"):
        draw(model, prompt, **how, embedding=one, embedding_2=learned("<rex>", 5))


@pytest.mark.slow
def test_one_is_scored_beside_another(pack: Any, host: FakeHost, model: Any, models: Path) -> None:
    """As the core does it; what was learned together and is not named does not count."""
    one, other = learned("<boo>", 0), learned("<tom>", 1)
    plain = evaluate(pack, model, embedding=one)["result"][2:]
    assert evaluate(pack, model, embedding=(one, other))["result"][2:] == plain
    beside = evaluate(pack, model, embedding=(one, other), prompts="a {} in the snow\na {} by a <tom>")["result"][2:]
    assert beside != plain
    texts = core("evaluate.evaluation").Texts
    plan = core("evaluate.evaluation").EvaluationPlan(("a {} in the snow", "a {} by a <tom>"), "ghost")
    found = texts.of(one, plan, [other])
    assert found.before == ("a ghost in the snow", "a ghost by a monster")
    assert [each.token for each in found.tokens][1:] == ["<tom>"]
    with pytest.raises(ValueError, match="no prompt names <tom>"):
        evaluate(pack, model, embedding=one, embedding_2=other)
