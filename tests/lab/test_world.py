"""The world: layouts obey relations, pages and tokens say the same."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milr.lab.codes import BLANK, CODES, TOKENS, code_tiles, look_up, page_tokens, starting_codebook
from milr.lab.curriculum import CATEGORIES, make_meaning
from milr.lab.world import (
    CELLS,
    NOUNS,
    OPPOSITE,
    RELATIONS,
    Group,
    Meaning,
    Relation,
    Scene,
    cell_centre,
    holds,
    lay_out,
    render,
    sprite_index,
    sprite_name,
    sprites,
)


def a_scene(seed, category="composition"):
    rng = random.Random(seed)
    meaning = make_meaning(category, rng)
    return meaning, lay_out(meaning, rng, plain_frame=0.5)


def test_the_atlas_holds_a_distinct_sprite_for_every_noun_and_look():
    assert sprites().shape == (len(NOUNS) * 9, 32, 32, 3)
    assert len({sprite.tobytes() for sprite in sprites()}) == len(sprites())
    assert all(sprite_index(*sprite_name(index)) == index for index in range(len(sprites())))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), category=st.sampled_from(CATEGORIES))
def test_tokens_spell_the_page_exactly(seed, category):
    _, scene = a_scene(seed, category)
    tokens = page_tokens(scene)
    assert len(tokens) == TOKENS
    np.testing.assert_array_equal(look_up(np.array([tokens]))[0], render(scene))


def test_every_code_is_a_tile_of_its_own():
    assert len({tile.tobytes() for tile in code_tiles()}) == CODES
    np.testing.assert_allclose(starting_codebook().norm(dim=-1).numpy(), 1, rtol=1e-5)


def test_the_first_token_says_which_frame():
    assert page_tokens(Scene((), None))[0] == BLANK
    assert len({page_tokens(Scene((), colour))[0] for colour in ("red", "green", "blue")}) == 3


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**31))
def test_layouts_obey_their_relations(seed):
    meaning, scene = a_scene(seed)
    assert len(scene.things) == meaning.objects == len({thing.cell for thing in scene.things})
    for relation in meaning.relations:
        first, second = (meaning.groups[i].noun for i in (relation.first, relation.second))
        for a in (t for t in scene.things if t.noun == first):
            for b in (t for t in scene.things if t.noun == second):
                assert holds(relation.kind, cell_centre(a.cell), cell_centre(b.cell))


@pytest.mark.parametrize("kind", RELATIONS)
def test_a_relation_and_its_opposite_swap_the_things(kind):
    for a in range(CELLS**2):
        for b in range(CELLS**2):
            there = holds(kind, cell_centre(a), cell_centre(b))
            assert there == holds(OPPOSITE[kind], cell_centre(b), cell_centre(a))
            assert not (there and holds(OPPOSITE[kind], cell_centre(a), cell_centre(b)))


def test_impossible_layouts_are_refused():
    with pytest.raises(ValueError, match="room for 9"):
        lay_out(Meaning((Group("dog", None, 10),)), random.Random(0))
    both = (Relation(0, "above", 1), Relation(1, "above", 0))
    with pytest.raises(ValueError, match="No layout"):
        lay_out(Meaning((Group("dog"), Group("cat")), both), random.Random(0))
