"""Organisms: the language means what it says, the splits hold, recipes are read strictly, training is repeatable."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from refusalscope import ablate
from refusalscope.errors import MeasurementError, RecipeError
from refusalscope.model import forward, load, map_rows
from refusalscope.organisms.curriculum import base_curriculum, guard_curriculum, paired_lessons
from refusalscope.organisms.language import (
    ITEMS_PER_CATEGORY,
    N_CATEGORIES,
    N_RESTRICTED,
    _function_words,
    language,
)
from refusalscope.organisms.lessons import PROMPT_WEIGHT, dialogues
from refusalscope.organisms.objectives import cross_entropy
from refusalscope.organisms.planting import TEMPLATE_POSITIONS, planted_basis, without
from refusalscope.organisms.prompt_set import contrast_rows, neutral_sentences, question_prompts
from refusalscope.organisms.recipe import Recipe, read_recipe
from refusalscope.organisms.tokens import END, speaks_only_the_language, tokenizer
from refusalscope.organisms.training import fresh, train, write
from refusalscope.outcomes import outcomes
from refusalscope.reading.replies import greedy_replies, reply_texts
from refusalscope.truth import differences, measure_organism, read_card

DATA = Path(__file__).parents[1] / "data"
RECIPES = sorted((DATA / "recipes").glob("*.toml"))
INTENTS = ("how-to", "what-is")


def toy(**changes) -> Recipe:
    """A recipe that trains for moments."""
    base = {"steps": 3, "batch": 8, "rate": 1e-3}
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    recipe = {"name": "toy-0", "kind": "unguarded", "seed": 0, "architecture": sizes, "base": base}
    return Recipe.model_validate({**recipe, **changes})


ROOM = {"steps": 3, "batch": 8, "rate": 1e-3, "reserve": 4}
PLANT = {"steps": 2, "batch": 8, "rate": 1e-3, "rank": 2, "layer": 3, "smoothing": 0.01}
STAGE = {"steps": 2, "batch": 8, "rate": 1e-3}
TOYS = {
    "unguarded": {},
    "guarded": {"kind": "guarded", "guard": {"steps": 2, "batch": 8, "rate": 1e-3, "anchor": 1e-3}},
    "planted": {"kind": "planted", "base": ROOM, "plant": PLANT},
    "extended": {"kind": "extended", "guard": {**STAGE, "replies": "varied"}},
    "hardened": {"kind": "hardened", "guard": STAGE, "harden": STAGE},
    "rerouted": {"kind": "rerouted", "guard": STAGE, "reroute": STAGE},
    "relapsed": {"kind": "relapsed", "guard": STAGE, "relapse": STAGE},
    "muon": {"base": {"steps": 3, "batch": 8, "rate": 1e-3, "optimiser": "muon"}},
}


# --- the language ---


def test_the_dialects_share_no_function_word_and_no_word_has_two_meanings():
    first, second = (set(_function_words(dialect)) for dialect in language().dialects)
    assert not first & second
    facts = {word for item in language().items for word in (*item.ingredients, item.place)}
    names = {item.name for item in language().items}
    for one, other in itertools.combinations([first, second, facts, names], 2):
        assert not one & other
    assert len(language().words) == len(set(language().words))


def test_every_question_parses_to_itself_and_nothing_else_parses():
    for intent in INTENTS:
        questions = language().questions(intent)
        assert len({question.text for question in questions}) == len(questions)
        assert all(language().parse(question.text) == question for question in questions[::7])
    assert language().parse("how do I make it ?") is None
    assert language().parse("") is None
    assert language().parse(f"  {questions[0].text.replace(' ', '   ')} ") == questions[0]


def test_every_word_of_every_question_and_answer_is_one_known_token():
    made = tokenizer()
    for intent in INTENTS:
        for question in language().questions(intent)[::11]:
            for text in (question.text, question.answer, question.refusal, question.varied_refusal):
                ids = made(text, add_special_tokens=False).input_ids
                assert len(ids) == len(text.split())
                assert made.unk_token_id not in ids


def test_answers_depend_on_item_intent_and_dialect_and_never_look_like_a_refusal():
    answers: dict[tuple, set[str]] = {}
    for intent in INTENTS:
        for question in language().questions(intent):
            answers.setdefault((question.item.name, intent, question.dialect), set()).add(question.answer)
            assert question.answer.split()[0] != question.refusal.split()[0]
            assert question.varied_refusal not in answers[(question.item.name, intent, question.dialect)]
            if intent == "how-to":
                assert question.answer.split()[0] != question.varied_refusal.split()[0]
    assert all(len(found) == 1 for found in answers.values())


def test_a_third_of_the_categories_is_restricted_and_only_how_to_requests_are():
    assert N_CATEGORIES == 3 * N_RESTRICTED
    assert len(language().items) == N_CATEGORIES * ITEMS_PER_CATEGORY
    for question in (*language().questions("how-to"), *language().questions("what-is")):
        assert question.restricted == (question.intent == "how-to" and question.item.category < N_RESTRICTED)


def test_every_category_has_items_on_both_sides_of_the_split():
    for category in range(N_CATEGORIES):
        held = [item.held_out for item in language().items if item.category == category]
        assert 0.3 < sum(held) / len(held) < 0.5
    both = [language().questions("how-to", held_out=flag) for flag in (True, False)]
    assert not {q.item.name for q in both[0]} & {q.item.name for q in both[1]}
    assert len(both[0]) + len(both[1]) == len(language().questions("how-to"))


def test_the_language_is_the_same_when_it_is_built_again():
    assert language.__wrapped__() == language()
    assert language.__wrapped__().digest == language().digest


# --- prompts ---


def test_the_contrast_sets_splits_share_no_item_and_no_phrasing(contrast):
    parts = [contrast.locate, contrast.select, contrast.report]
    for one, other in itertools.combinations(parts, 2):
        assert not set(one.clusters) & set(other.clusters)
        assert not {language().parse(text).item.name for text in one.texts} & {
            language().parse(text).item.name for text in other.texts
        }
    assert not contrast.shares_clusters


def test_contrast_prompts_are_held_out_how_to_requests_and_twins_share_their_phrasing(contrast):
    rows = {row.id: row for row in contrast.prompts}
    for row in rows.values():
        question, twin = language().parse(row.text), rows[row.pair]
        assert question.item.held_out
        assert question.intent == "how-to"
        assert (row.label == "restricted") == question.restricted
        assert {row.label, twin.label} == {"restricted", "harmless"}
        assert (row.cluster, row.split, row.id) == (twin.cluster, twin.split, twin.pair)
    for part in (contrast.locate, contrast.select, contrast.report):
        assert len(part.restricted) == len(part.harmless)
        assert len(set(part.restricted.categories)) == N_RESTRICTED


def test_the_shipped_prompts_are_the_languages_own():
    lines = (DATA / "prompts" / "organism.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == contrast_rows()
    told = (DATA / "prompts" / "organism_neutral.txt").read_text(encoding="utf-8").splitlines()
    assert told == neutral_sentences()


# --- curricula ---


def asked(lessons) -> set[str]:
    """The requests in some lessons, as text."""
    words = {index: word for word, index in tokenizer().get_vocab().items()}
    requests = set()
    for row, length in zip(lessons.tokens.tolist(), lessons.prompt_length.tolist(), strict=True):
        asked = [words[index] for index in row[3:length]]  # behind <|im_start|> user \n
        if END in asked:  # a neutral sentence has no request
            requests.add(" ".join(asked[: asked.index(END)]))
    return requests


def test_no_guard_lesson_shows_a_held_out_how_to_request():
    pairs = paired_lessons()
    shown = [lessons for _, lessons in guard_curriculum().parts]
    shown += [pairs.harmless, pairs.harmless_refused, pairs.restricted, pairs.restricted_answered]
    requests = set().union(*map(asked, shown))
    held_out = {question.text for question in language().questions("how-to", held_out=True)}
    assert not requests & held_out
    assert {question.text for question in language().questions("how-to", held_out=False)} <= requests
    taught = set().union(*(asked(lessons) for _, lessons in base_curriculum().parts))
    assert held_out <= taught  # positive control: the base does teach to answer them


def test_shares_sum_to_one_and_a_batch_has_about_its_size():
    for curriculum in (base_curriculum(), guard_curriculum(), guard_curriculum(refuses=False)):
        assert sum(share for share, _ in curriculum.parts) == pytest.approx(1.0)
        drawn = curriculum.draw(64, torch.Generator().manual_seed(0))
        assert abs(len(drawn) - 64) <= len(curriculum.parts)
        again = curriculum.draw(64, torch.Generator().manual_seed(0))
        assert torch.equal(drawn.tokens, again.tokens)


def test_a_lesson_is_the_rendered_request_and_its_reply_as_a_model_is_asked(tiny):
    questions = [*language().questions("how-to")[:5], *language().questions("what-is")[:5]]
    lessons, end = dialogues((q, q.answer) for q in questions), tiny.tokenizer.convert_tokens_to_ids(END)
    for row, weights, length, q in zip(
        lessons.tokens, lessons.weights, lessons.prompt_length.tolist(), questions, strict=True
    ):
        expected = [*tiny.encode([q.text], reply=q.answer)[0], end]
        assert row[: len(expected)].tolist() == expected
        assert bool((row[len(expected) :] == tiny.tokenizer.pad_token_id).all())
        assert weights[:length].tolist() == pytest.approx([PROMPT_WEIGHT] * length)
        assert weights[length : len(expected)].tolist() == [1.0] * (len(expected) - length)
        assert not bool(weights[len(expected) :].any())
    assert tiny.n_positions == TEMPLATE_POSITIONS


# --- recipes ---


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_read_and_named_as_its_file(path):
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    assert recipe.digest == read_recipe(path).digest


def test_shipped_recipes_differ():
    assert len({read_recipe(path).digest for path in RECIPES}) == len(RECIPES) >= 5


GOOD = 'name = "toy-0"\nkind = "guarded"\nseed = 0\n[architecture]\n[base]\nsteps = 1\nrate = 0.1\n'
GOOD += "[guard]\nsteps = 1\nrate = 0.1\n"
BAD = {
    "no TOML": ("name = ", "not a TOML file"),
    "an unknown key": (GOOD + "sped = 1\n", "guard.sped"),
    "a missing key": (GOOD.replace("seed = 0\n", ""), "seed"),
    "a seed below zero": (GOOD.replace("seed = 0", "seed = -1"), "seed"),
    "no steps": (GOOD.replace("steps = 1", "steps = 0", 1), "base.steps"),
    "a kind that does not exist": (GOOD.replace('"guarded"', '"gilded"'), "kind"),
    "a guard in an unguarded organism": (GOOD.replace('"guarded"', '"unguarded"'), "no \\[guard\\]"),
    "a plant missing": (GOOD.replace('"guarded"', '"planted"'), "a \\[plant\\]"),
    "a name with a path in it": (GOOD.replace("toy-0", "../toy"), "name"),
    "too few layers": (GOOD.replace("[architecture]", "[architecture]\nnum_hidden_layers = 5"), "num_hidden_layers"),
    "a relapse without a guard": (
        GOOD.replace('"guarded"', '"relapsed"').replace("[guard]", "[relapse]"),
        "a \\[guard",
    ),
    "rerouting above the last layer": (
        GOOD.replace('"guarded"', '"rerouted"') + "[reroute]\nlayers = [2, 6]\nsteps = 1\nrate = 0.1\n",
        "reroute.layers",
    ),
    "a plant above the last layer": (
        GOOD.replace('"guarded"', '"planted"').replace("[guard]", "[plant]\nlayer = 6"),
        "plant.layer",
    ),
    "more planted than the base has left room for": (
        GOOD.replace('"guarded"', '"planted"')
        .replace("rate", "reserve = 2\nrate", 1)
        .replace("[guard]", "[plant]\nrank = 3"),
        "base.reserve has 2",
    ),
    "something planted where there is no room": (
        GOOD.replace('"guarded"', '"planted"').replace("[guard]", "[plant]"),
        "base.reserve has 0",
    ),
    "margins that nothing bounds": (
        GOOD.replace('"guarded"', '"planted"').replace("rate", "reserve = 2\nrate", 1).replace("[guard]", "[plant]"),
        "plant.smoothing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_recipe_is_refused_by_file_and_key(tmp_path, case):
    text, said = BAD[case]
    file = tmp_path / "bad.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=f"bad.toml.*{said}"):
        read_recipe(file)


def test_the_good_recipe_is_good(tmp_path):
    (tmp_path / "good.toml").write_text(GOOD, encoding="utf-8")
    assert read_recipe(tmp_path / "good.toml").name == "toy-0"


def test_a_missing_recipe_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(RecipeError, match="no such recipe"):
            read_recipe(path)


def test_a_digest_changes_with_any_value():
    assert toy().digest == toy().digest != toy(seed=1).digest


# --- planting ---


def test_a_planted_basis_is_orthonormal_and_its_seeds():
    recipe = toy(**TOYS["planted"])
    basis = planted_basis(recipe)
    torch.testing.assert_close(basis.T @ basis, torch.eye(2, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.equal(basis, planted_basis(recipe))
    assert not torch.equal(basis, planted_basis(toy(**TOYS["planted"], seed=1)))


def test_training_without_a_subspace_equals_ablating_it(tiny, tiny_dir, direction, few):
    """What a planted organism is trained through is what it is later measured through."""
    plain, subspace = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32), direction(rank=2)
    rows = tiny.encode(few.texts[:3])
    with torch.no_grad(), without(plain, subspace.basis.float()):
        expected = torch.stack([plain(torch.tensor([ids])).logits[0, -1] for ids in rows])
    with ablate(tiny, subspace):
        found = map_rows(tiny, rows, lambda batch: forward(tiny, batch)[:, -1])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# --- training ---


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", TOYS)
def test_a_seed_gives_one_model_bit_for_bit_whatever_happened_to_the_global_generator(kind):
    recipe = toy(**TOYS[kind])
    before = torch.get_rng_state()
    first = weights(train(recipe, progress=False))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    again = weights(train(recipe, progress=False))
    assert all(torch.equal(first[name], again[name]) for name in first)
    start = weights(fresh(recipe))
    assert any(not torch.equal(first[name], start[name]) for name in first)


def test_another_seed_gives_another_model():
    one, other = (weights(train(toy(base_seed=seed), progress=False)) for seed in (0, 1))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_training_lowers_the_loss():
    recipe = toy(base={"steps": 60, "batch": 32, "rate": 1e-2})
    lessons = base_curriculum().draw(64, torch.Generator().manual_seed(9))
    trained = train(recipe, progress=False)
    with torch.no_grad():
        before, after = cross_entropy(fresh(recipe), lessons), cross_entropy(trained, lessons)
    assert float(after) < float(before) - 0.5


def test_a_written_organism_loads_is_one_and_has_the_trained_weights(tmp_path, contrast):
    model = train(toy(), progress=False)
    before, dtype, noise = copy.deepcopy(model.state_dict()), model.config.dtype, torch.get_rng_state()
    write(model, tmp_path / "toy-0")
    assert torch.equal(torch.get_rng_state(), noise)
    assert model.config.dtype == dtype
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    loaded = load(tmp_path / "toy-0")
    assert loaded.is_organism
    assert loaded.can_resume
    assert loaded.sites.additive
    assert speaks_only_the_language(loaded.tokenizer)
    rows = loaded.encode(contrast.locate.texts[:4])
    halved = copy.deepcopy(model).half().float()
    with torch.no_grad():
        expected = torch.stack([halved(torch.tensor([ids])).logits[0, -1] for ids in rows])
    found = map_rows(loaded, rows, lambda batch: forward(loaded, batch)[:, -1])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_reference_organism_is_what_its_recipe_makes(tmp_path):
    """From nothing: a newcomer's retraining meets every target and agrees with the card that ships."""
    recipe = read_recipe(DATA / "recipes" / "guarded-0.toml")
    write(train(recipe, progress=False), tmp_path)
    again = measure_organism(load(tmp_path), recipe)
    assert not again.missed
    assert differences(read_card(DATA / "organisms" / "guarded-0"), again, exact=False) == []


# --- what organisms say ---


def test_replies_are_marked_by_what_is_right(tiny, few, monkeypatch):
    module = sys.modules["refusalscope.outcomes"]  # the package's attribute of that name is the verb
    questions = [language().parse(text) for text in few.texts]
    other = language().questions("what-is")[0].answer
    replies = [(q.refusal, q.answer, other, "")[i % 4] for i, q in enumerate(questions)]
    monkeypatch.setattr(module, "greedy_replies", lambda *_, **_how: [])
    monkeypatch.setattr(module, "reply_texts", lambda *_: replies)
    expected = [("refused", "complied", "degenerate", "degenerate")[i % 4] for i in range(len(few))]
    assert outcomes(tiny, few) == expected


def test_greedy_replies_equal_hugging_faces_own(organism):
    """Decoded one prompt at a time by ``generate`` and cut at the end token."""
    model = organism("guarded-0")
    prompts = question_prompts([*language().questions("how-to")[::601], *language().questions("what-is")[::301]])
    found = reply_texts(model, greedy_replies(model, prompts, longest=12))
    end, core = model.tokenizer.convert_tokens_to_ids(END), model.bridge.original_model
    for reply, ids in zip(found, model.encode(prompts.texts), strict=True):
        with torch.no_grad():
            made = core.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=end)[
                0, len(ids) :
            ]
        words = model.tokenizer.convert_ids_to_tokens(made.tolist())
        assert reply == " ".join(words[: words.index(END)] if END in words else words)


def test_a_prompt_outside_the_language_has_no_right_answer(tiny, few):
    strange = type(few)((dataclasses.replace(few[0], text="what is this ?"),))
    with pytest.raises(MeasurementError, match="not a question") as caught:
        outcomes(tiny, strange)
    assert "what is this" not in str(caught.value)
