"""Templates: post-instruction tokens are found from the template itself, and rendering does not depend on the day."""

from __future__ import annotations

import dataclasses

import pytest

from refusalscope.errors import ModelError
from refusalscope.model.template import find_template, rendered_texts, tokenized
from refusalscope.organisms.tokens import tokenizer

CONTENT = "{{ messages[-1]['content'] }}"
USER, END = "<|im_start|>user\n", "<|im_end|>\n"


def with_template(source: str):
    made = tokenizer()
    made.chat_template = source
    return made


def test_the_positions_of_chatml_are_the_five_tokens_after_the_request(tiny, texts):
    assert list(tiny.positions) == [-5, -4, -3, -2, -1]
    for text, ids in zip(texts, tiny.encode(texts), strict=True):
        assert tiny.tokenizer.decode(ids[:-5]).endswith(text)
        assert tuple(ids[-5:]) == tiny.template.suffix


@pytest.mark.parametrize(
    ("source", "n"),
    [
        (f"{CONTENT}<|im_end|>assistant", 2),
        (f"[INST] {CONTENT} [/INST]", 3),  # three unknown tokens here: requests of unknown words would end alike
        (f"<|im_start|>system\n{END}{USER}{CONTENT}{END}<|im_start|>assistant", 4),
        (f"{USER}{CONTENT} .{END}<|im_start|>assistant", 5),
        (f"{CONTENT} ?", 1),
    ],
)
def test_the_positions_of_other_templates_are_found(source, n):
    made = with_template(source)
    suffix = find_template(made, name="model").suffix
    assert list(suffix) == tokenized(made, [source.rpartition("}}")[2]])[0]
    assert len(suffix) == n


def test_a_template_that_adds_nothing_after_a_request_is_refused():
    with pytest.raises(ModelError, match="no token after a request"):
        find_template(with_template(CONTENT), name="model")


def test_a_thinking_switch_is_off_and_a_thought_that_stays_open_is_closed():
    switch = f"{CONTENT}<|im_end|>{{% if enable_thinking is false %}}<think>\n\n</think>{{% endif %}}"
    assert find_template(with_template(switch), name="model").thinking == "off"
    opened = find_template(with_template(f"{CONTENT}<|im_end|>{{{{ '<think>\n' }}}}"), name="model")
    assert (opened.thinking, opened.closing) == ("closed", "\n</think>\n\n")
    assert find_template(with_template(f"{CONTENT}<|im_end|>"), name="model").thinking == "absent"


@pytest.mark.parametrize(
    "today", ["{{ strftime_now('%d %b %Y') }}", '{{ strftime_now( "%d %b %Y" ) }}', "{{ date_string }}"]
)
def test_a_template_that_writes_todays_date_always_writes_the_same(today):
    made = with_template(f"{today} {CONTENT}<|im_end|>")
    template = find_template(made, name="model")
    assert template.dated
    assert rendered_texts(made, template, ["go"]) == ["26 Jul 2024 go<|im_end|>"]


def test_a_given_system_message_is_sent_and_changes_the_digest(tiny, texts):
    template = dataclasses.replace(tiny.template, system="bona")
    polite = dataclasses.replace(tiny, template=template)
    assert polite.render(texts[:1])[0] == f"<|im_start|>system\nbona<|im_end|>\n{tiny.render(texts[:1])[0]}"
    assert template.digest != tiny.template.digest


def test_a_reply_is_tokenised_by_itself(tiny, texts):
    reply = texts[0]
    assert tiny.encode(texts, reply) == [ids + tiny.encode_reply(reply) for ids in tiny.encode(texts)]
    assert tiny.render(texts, reply) == [f"{text}{reply}" for text in tiny.render(texts)]
    assert tiny.encode([]) == []
