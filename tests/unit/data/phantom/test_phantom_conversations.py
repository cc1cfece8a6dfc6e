from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from medplib.data.phantom import PhantomConfig, catalog
from medplib.data.phantom.case import Facts, Seen
from medplib.data.phantom.conversations import build_questions, sentence
from medplib.data.phantom.grounding import answer_text
from medplib.data.phantom.records import NamedTarget
from medplib.data.phantom.templates import QUESTIONS, SEEN_TEMPLATES


@pytest.fixture(scope="module")
def train(random_facts):
    return build_questions(PhantomConfig(), "train", random_facts("train", 1200))


def test_the_question_alone_leaves_closed_answers_at_chance(train):
    by_text = defaultdict(Counter)
    for c in train.closed:
        if c.cell[0] != "modality":
            by_text[c.question][c.answer] += 1
    common = [counts for counts in by_text.values() if sum(counts.values()) >= 8]
    assert len(common) > 50
    share = sum(max(counts.values()) for counts in common) / sum(sum(counts.values()) for counts in common)
    assert share < 0.56
    modality = Counter(c.answer for c in train.closed if c.cell[0] == "modality")
    assert max(modality.values()) / sum(modality.values()) < 0.18


def test_closed_answers_are_even_in_every_cell(train):
    cells = defaultdict(Counter)
    for c in train.closed:
        if c.cell[0] != "modality":
            cells[c.cell][c.answer] += 1
    assert {cell[0] for cell in cells} == {"exists", "contains", "side", "size", "larger"}
    assert all(len(counts) == 2 and len(set(counts.values())) == 1 for counts in cells.values())


def test_balance_costs_few_questions(train):
    assert len(train.closed) / 1200 > 4.3


def test_presence_cannot_be_guessed_from_modality_region_and_name(train):
    cells = defaultdict(Counter)
    for c in train.grounding:
        for target in c.targets:
            if target.name in catalog.names_of(c.facts.modality, c.facts.region):
                cells[(c.facts.modality.name, c.facts.region, target.name)][target.mask is not None] += 1
    shares = [counts[True] / sum(counts.values()) for counts in cells.values() if sum(counts.values()) >= 15]
    assert len(shares) > 60
    assert min(shares) >= 0.5
    assert max(shares) <= 0.72
    targets = [t.mask is not None for c in train.grounding for t in c.targets]
    assert 0.55 < sum(targets) / len(targets) < 0.67


def test_three_to_five_grounding_questions_about_different_structures_per_case(train):
    asked = Counter(c.facts.case for c in train.grounding)
    assert set(asked.values()) <= {1, 2, 3, 4, 5}
    pairs = sum(len(c.targets) > 1 for c in train.grounding) / len(train.grounding)
    assert 0.25 < pairs < 0.42
    assert any(c.targets[0].mask is None for c in train.grounding if len(c.targets) == 2)
    assert 0.03 < sum(len(c.targets) == 3 for c in train.grounding) / len(train.grounding) < 0.14


def test_held_out_triplets_are_never_asked_for_but_their_elements_are(train):
    asked = {(c.facts.modality.name, t.name, "grounding") for c in train.grounding for t in c.targets}
    assert not asked & set(catalog.HELD_OUT)
    assert len(catalog.HELD_OUT) == 12
    for modality, name, _ in catalog.HELD_OUT:
        assert any(m == modality for m, _, _ in asked)
        assert any(n == name for _, n, _ in asked)
        assert name in {seen.name for c in train.region for seen in c.facts.seen if c.facts.modality.name == modality}
    assert {modality for modality, _, _ in catalog.HELD_OUT} == {m.name for m in catalog.MODALITIES}


def test_only_held_out_triplets_are_asked_in_the_zero_shot_split(random_facts):
    asked = build_questions(PhantomConfig(), "zero_shot", random_facts("zero_shot", 200)).grounding
    assert {(c.facts.modality.name, t.name, "grounding") for c in asked for t in c.targets} == set(catalog.HELD_OUT)


def test_two_wordings_of_each_kind_are_kept_from_training(train, random_facts):
    tests = build_questions(PhantomConfig(), "test", random_facts("test", 400, seed=1))

    def uses(questions, template):
        form = re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(template)))
        return any(form.fullmatch(c.question) for c in questions.all())

    for kind in ("ground_one", "exists", "region", "caption", "modality"):
        for template in QUESTIONS[kind][SEEN_TEMPLATES:]:
            assert not uses(train, template)
            assert uses(tests, template)
    assert all(uses(train, template) for kind in ("ground_two", "exists", "size") for template in QUESTIONS[kind][:SEEN_TEMPLATES])
    assert all(len(set(texts)) == SEEN_TEMPLATES + 2 for texts in QUESTIONS.values())


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        ([("liver", "masks/a.png")], "<SEG><mask>masks/a.png</mask>"),
        ([("liver", None)], "There is no liver in this image."),
        ([("liver", "m/a.png"), ("spleen", "m/b.png")], "liver <SEG><mask>m/a.png</mask>, spleen <SEG><mask>m/b.png</mask>."),
        ([("liver", "m/a.png"), ("spleen", None)], "liver <SEG><mask>m/a.png</mask>, spleen not visible."),
    ],
)
def test_answers_to_grounding_requests(targets, text):
    assert answer_text(tuple(NamedTarget(*target) for target in targets)) == text


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        ([], "This CT image of the abdomen shows no structure."),
        ([Seen("liver", 0.1, 1)], "This CT image of the abdomen shows the liver."),
        (
            [Seen("liver", 0.1, 1), Seen("spleen", 0.1, 1), Seen("cyst", 0.01, 2, ("liver", "liver"))],
            "This CT image of the abdomen shows the liver, the spleen and two cysts in the liver.",
        ),
        (
            [Seen("oedema", 0.01, 2, ("liver", "spleen"))],
            "This CT image of the abdomen shows an oedema in the liver and an oedema in the spleen.",
        ),
    ],
)
def test_sentences(seen, text):
    assert sentence(Facts("train", 0, 0, catalog.modality_named("CT"), "abdomen", (100, 100), tuple(seen))) == text


def test_questions_depend_on_nothing_but_the_facts_and_the_seed(random_facts):
    first, second, other = (build_questions(PhantomConfig(seed=s), "val", random_facts("val", 24)) for s in (0, 0, 1))
    assert first.all() == second.all()
    assert first.all() != other.all()
