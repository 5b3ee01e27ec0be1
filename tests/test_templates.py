"""A matrix of real-world template shapes: what surrounds a request, where its answer begins, and who may say it."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import jinja2
import pytest

import family_templates as shapes
from family_models import CASES, wrapped, written
from refusalscope.errors import ModelError
from refusalscope.model import Chat, load
from refusalscope.model.template import find_template, rendered_texts, tokenized
from refusalscope.model.thinking import ANSWER_CHANNEL, EMPTY

REQUESTS = ("What is it?", "Name one.", "List 7", "(do it)", "a bowl", "Why!!", "ends with a newline\nhere", "é?")
SYSTEM = "Answer in one line."
EMPTY_THOUGHT = f"<think>{EMPTY}</think>{EMPTY}"
BY_FAMILY = {case.family: case for case in CASES}


@cache
def tokenizer_of(family: str):
    return wrapped(BY_FAMILY[family])


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture
def tokenizer(case):
    return tokenizer_of(case.family)


@pytest.fixture
def template(case, tokenizer):
    return find_template(tokenizer, name=case.family)


def with_source(source: str, family: str = "Qwen 3"):
    """A tokenizer of a family, that of Qwen 3 unless another is named, with another template."""
    return wrapped(dataclasses.replace(BY_FAMILY[family], template=source))


def test_a_request_ends_with_what_the_family_puts_before_its_answer(case, tokenizer, template):
    for request, rendered in zip(REQUESTS, rendered_texts(tokenizer, template, REQUESTS), strict=True):
        assert rendered.endswith(request + case.before + case.suffix)
        assert rendered.count(request) == 1


def test_positions_are_the_tokens_of_that_ending_and_none_of_a_request(case, tokenizer, template):
    rendered = rendered_texts(tokenizer, template, REQUESTS)
    n = len(template.suffix)
    for text, ids in zip(rendered, tokenized(tokenizer, rendered), strict=True):
        starts = [
            start for start, _ in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        ]
        assert tuple(ids[-n:]) == template.suffix
        assert text[starts[-n] :] == case.suffix


def test_a_requests_last_character_does_merge_with_what_follows_where_a_template_lets_it():
    """Otherwise the test above could not fail: OLMo 2 puts a plain line break behind a request."""
    made = tokenizer_of("OLMo 2")
    template = find_template(made, name="m")
    asked, named = tokenized(made, rendered_texts(made, template, ["What is it?", "a bowl"]))
    before = [made.convert_ids_to_tokens(ids[: -len(template.suffix)])[-1] for ids in (asked, named)]
    assert before == ["?Ċ", "Ċ"]


def test_the_tokens_are_those_of_hugging_faces_own_rendering_and_then_what_closes_a_thought(tokenizer, template):
    """So BOS stands there exactly as often as the template writes it: once or not at all."""
    for request in REQUESTS:
        chat, off = [{"role": "user", "content": request}], dict.fromkeys(template.switches, False)
        source = pinned(template)
        own = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, chat_template=source, date_string="26 Jul 2024", return_dict=False, **off
        )
        (made,) = tokenized(tokenizer, rendered_texts(tokenizer, template, [request]))
        if template.closing:  # whose first line break may merge with the last of what stands before it
            assert made[: len(own) - 1] == own[:-1]
            assert len(made) > len(own)
        else:
            assert made == own


def pinned(template) -> str:
    return template.source.replace("strftime_now('%Y-%m-%d')", "'2024-07-26'")


def test_bos_is_never_doubled(case, tokenizer, template):
    (rendered,) = rendered_texts(tokenizer, template, ["go"])
    (ids,) = tokenized(tokenizer, [rendered])
    written_by_template = case.specials.bos is not None and rendered.startswith(case.specials.bos)
    assert ids.count(tokenizer.bos_token_id) == (1 if written_by_template else 0)
    careless = tokenizer(rendered).input_ids
    assert careless.count(tokenizer.bos_token_id) == (0 if case.specials.bos is None else 1 + written_by_template)


def test_the_matrix_holds_templates_with_bos_without_it_and_for_models_that_have_none():
    kinds = {
        (
            case.specials.bos is not None,
            rendered_texts(made, find_template(made, name="m"), ["go"])[0].startswith(case.specials.bos or "\0"),
        )
        for case in CASES
        for made in [tokenizer_of(case.family)]
    }
    assert kinds == {(True, True), (True, False), (False, False)}


def test_a_system_message_is_sent_once_or_refused_with_the_templates_own_words(case, tokenizer, template):
    if case.system == "refused":
        with pytest.raises(ModelError, match=r"takes no system message \(TemplateError: .*Load it without one"):
            find_template(tokenizer, name=case.family, chat=Chat(system=SYSTEM))
        return
    told = find_template(tokenizer, name=case.family, chat=Chat(system=SYSTEM))
    (rendered,) = rendered_texts(tokenizer, told, ["go"])
    assert rendered.count(SYSTEM) == 1
    assert rendered.index(SYSTEM) < rendered.index("go" + case.before + case.suffix)
    assert SYSTEM not in rendered_texts(tokenizer, template, ["go"])[0]
    assert (told.suffix, told.thinking, told.closing) == (template.suffix, template.thinking, template.closing)
    assert told.digest != template.digest


def test_a_system_message_of_the_templates_own_is_replaced_and_an_empty_one_silences_it():
    made = tokenizer_of("Qwen 2")
    said = {
        system: rendered_texts(made, find_template(made, name="m", chat=Chat(system=system)), ["go"])[0]
        for system in (None, "", SYSTEM)
    }
    assert "You are a helpful assistant." in said[None]
    assert "<|im_start|>system\n<|im_end|>" in said[""]
    assert "helpful" not in said[SYSTEM]


def test_a_system_message_that_is_left_out_in_silence_is_an_error():
    deaf = "{% for turn in messages if turn['role'] == 'user' %}{{ turn['content'] }}<|im_end|>{% endfor %}"
    with pytest.raises(ModelError, match="leaves a system message out"):
        find_template(with_source(deaf), name="m", chat=Chat(system=SYSTEM))
    assert find_template(with_source(deaf), name="m").suffix


def test_a_thought_is_closed_as_a_model_that_has_a_switch_writes_it():
    closed, off = (
        rendered_texts(made, find_template(made, name="m"), REQUESTS)
        for made in (with_source(shapes.QWEN_3_THINKING), with_source(shapes.QWEN_3))
    )
    assert closed == off
    assert all(text.endswith(EMPTY_THOUGHT) for text in closed)


ENDS = "{{ messages[-1]['content'] }}<|im_end|>"
CUTS = ENDS + "{% if '</think>' in messages[0]['content'] %}{{ '' }}{% endif %}"
MODES = {
    "a thought opened with a line break": (shapes.DEEPSEEK_R1, "closed", "\n</think>\n\n"),
    "a thought expected and not opened": (shapes.DEEPSEEK_R1_FIRST, "closed", EMPTY_THOUGHT),
    "a thought opened without one": (ENDS + "<think>", "closed", "\n\n</think>\n\n"),
    "a thought already begun": (ENDS + "<think>Well", "closed", "\n\n</think>\n\n"),
    "a switch named thinking": (shapes.DEEPSEEK_V31, "off", ""),
    "a switch named enable_thinking": (shapes.QWEN_3, "off", ""),
    "a switch that leaves the thought open": (ENDS + "{{ 1 if enable_thinking }}<think>", "closed", "\n\n</think>\n\n"),
    "a switch that writes no thought": (CUTS + "{{ 'think!' if thinking }}", "off", ""),
    "a name that switches nothing": (ENDS + "{% set enable_thinking = 1 %}", "absent", ""),
    "an empty thought of its own": (ENDS + "<think></think>", "absent", ""),
    "tags in brackets": (ENDS + "[THINK]", "closed", "\n\n[/THINK]\n\n"),
    "channels": (shapes.HARMONY, "closed", ANSWER_CHANNEL),
    "channels with the answer's opened": (shapes.HARMONY + "<|channel|>final<|message|>", "absent", ""),
    "no thought": (shapes.QWEN_2, "absent", ""),
}


@pytest.mark.parametrize(("source", "mode", "closing"), MODES.values(), ids=MODES.keys())
def test_thinking_is_off_closed_or_absent_and_the_mode_says_which(source, mode, closing):
    made = with_source(source)
    found = find_template(made, name="m")
    assert (found.thinking, found.closing) == (mode, closing)
    (rendered,) = rendered_texts(made, found, ["go"])
    assert rendered.endswith(closing)
    assert rendered.rpartition("<think>")[2].count("</think>") == rendered.count("<think>") or not found.closing


def test_tags_in_a_request_or_a_system_message_do_not_change_the_mode():
    made = with_source(shapes.QWEN_3_THINKING)
    told = find_template(made, name="m", chat=Chat(system="Think between <think> and </think>."))
    for template in (told, find_template(made, name="m")):
        (rendered,) = rendered_texts(made, template, ["What does <think> mean?"])
        assert rendered.endswith(f"<|im_start|>assistant\n{EMPTY_THOUGHT}")
    assert find_template(with_source(shapes.QWEN_2), name="m", chat=Chat(system="No <think>.")).thinking == "absent"


def test_what_closes_a_thought_is_in_the_digest():
    found = find_template(with_source(shapes.QWEN_3_THINKING), name="m")
    assert found.digest != dataclasses.replace(found, closing="").digest


def test_gpt_oss_answers_in_the_final_channel_behind_an_empty_analysis():
    made = tokenizer_of("GPT-OSS")
    template = find_template(made, name="m")
    (rendered,) = rendered_texts(made, template, ["go"])
    answer = rendered.rpartition("<|start|>assistant")[2]
    assert answer == "<|channel|>final<|message|>"
    assert "<|channel|>analysis<|message|><|end|>" in rendered


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return written(BY_FAMILY["Qwen 3"], tmp_path_factory.mktemp("published") / "qwen3")


@pytest.fixture(scope="module")
def silent(tmp_path_factory) -> Path:
    """The same directory as a base model's: no chat template."""
    bare = dataclasses.replace(BY_FAMILY["Qwen 3"], template=None)
    return written(bare, tmp_path_factory.mktemp("silent") / "base")


def test_a_system_message_given_when_loading_goes_into_prompts_and_digest(published):
    plain, told = load(published), load(published, chat=Chat(system=SYSTEM))
    assert told.template.system == SYSTEM
    assert SYSTEM in told.render(["go"])[0]
    assert SYSTEM not in plain.render(["go"])[0]
    assert told.origin.template == told.template.digest != plain.origin.template


def test_a_model_without_a_template_says_how_to_pass_one_and_loads_with_it(silent, published, tmp_path):
    with pytest.raises(ModelError, match=r"no chat template\. Pass one: load\(\.\.\., chat=Chat\(template="):
        load(silent)
    file = tmp_path / "chat.jinja"
    file.write_text(shapes.QWEN_3, encoding="utf-8")
    for given in (shapes.QWEN_3, file):
        model = load(silent, chat=Chat(template=given))
        assert model.render(REQUESTS) == load(published).render(REQUESTS)
        assert model.origin.template == load(published).origin.template
    other = load(published, chat=Chat(template=shapes.QWEN_2))
    assert other.template.thinking == "absent"
    assert other.origin.template != load(published).origin.template


def test_several_templates_without_a_default_are_named(published):
    made = with_source({"rag": shapes.QWEN_2, "tool_use": shapes.QWEN_2})
    with pytest.raises(ModelError, match=r"has several chat templates \(rag, tool_use\) and no default\. Pass one"):
        find_template(made, name="m")
    assert find_template(with_source({"default": shapes.QWEN_2, "rag": "x"}), name="m").source == shapes.QWEN_2


def test_a_template_that_cannot_be_read_is_one_line(tmp_path):
    made = with_source(shapes.QWEN_3)
    (tmp_path / "latin.jinja").write_bytes(b"\xff\xfe\x00")
    for given, said in (
        (tmp_path / "missing.jinja", r"missing\.jinja cannot be read"),
        (tmp_path / "latin.jinja", r"latin\.jinja cannot be read"),
        ("chat.jinja", "is no Jinja text. For a file, give a Path"),
        ("{% for turn in messages %}", r"cannot be rendered \(TemplateSyntaxError: .*Pass one"),
        ("{{ messages[7]['content'] }}", r"cannot be rendered \(UndefinedError"),
        ("{{ 1 // 0 }}{{ messages }}", r"cannot be rendered \(ZeroDivisionError"),
        ("{{ raise_exception('not today') }}", "not today"),
    ):
        with pytest.raises(ModelError, match=said) as error:
            find_template(made, name="model", chat=Chat(template=given))
        assert str(error.value).startswith("model: ")
        assert "\n" not in str(error.value)


def test_a_template_that_reaches_for_python_is_stopped_before_it_gets_there(published, tmp_path):
    marker = tmp_path / "ran"
    hostile = "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}".replace("MARKER", str(marker)) + ENDS
    with pytest.raises(ModelError, match=r"cannot be rendered \(SecurityError"):
        load(published, chat=Chat(template=hostile))
    assert not marker.exists()
    jinja2.Environment().from_string(hostile).render(messages=[{"content": ""}])  # the control: elsewhere it runs
    assert marker.exists()
