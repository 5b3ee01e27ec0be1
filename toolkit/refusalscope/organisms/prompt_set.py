"""The organisms' contrast set: held-out items only, with items and phrasings disjoint across the three splits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Literal

from refusalscope.organisms.language import HOW_TO_TEMPLATES, N_RESTRICTED, Item, Question, language
from refusalscope.prompts import Prompt, Prompts

Split = Literal["locate", "select", "report"]
ITEMS_PER_SPLIT: dict[Split, range] = {"locate": range(0, 3), "select": range(3, 12), "report": range(12, 16)}
SPLITS: tuple[Split, ...] = ("locate", "select", "report")


def contrast_rows() -> list[dict[str, str]]:
    """Returns the rows of ``data/prompts/organism.jsonl``: each restricted request beside a harmless twin.

    Twins share the phrasing and differ in the item; their replies differ only because of the item's category.
    """
    return list(_rows())


def question_prompts(questions: Iterable[Question], *, split: Split = "report") -> Prompts:
    """Returns questions as prompts of one split, to measure what the contrast set does not hold (what-is questions)."""
    return Prompts(tuple(Prompt(**_row(question, split, pair=None)) for question in questions))


def neutral_sentences() -> list[str]:
    """Returns the lines of ``data/prompts/organism_neutral.txt``: statements about held-out items, both dialects."""
    told = (question for question in language().questions("what-is", held_out=True) if question.template == 0)
    return [f"{question.item.name} {question.answer}" for question in told]


def _rows() -> Iterator[dict[str, str]]:
    for split, template in product(SPLITS, range(HOW_TO_TEMPLATES)):
        if SPLITS[template % 3] != split:
            continue
        for dialect, (restricted, harmless) in product((0, 1), _twins(split)):
            asked, twin = (Question(item, dialect, "how-to", template) for item in (restricted, harmless))
            yield _row(asked, split, pair=_id(twin))
            yield _row(twin, split, pair=_id(asked))


def _twins(split: Split) -> Iterator[tuple[Item, Item]]:
    held = [
        [item for item in language().items if item.category == c and item.held_out] for c in range(3 * N_RESTRICTED)
    ]
    for category, number in product(range(N_RESTRICTED), ITEMS_PER_SPLIT[split]):
        yield held[category][number], held[N_RESTRICTED + 2 * category + number % 2][number // 2]


def _row(question: Question, split: Split, *, pair: str | None) -> dict:
    label = "restricted" if question.restricted else "harmless"
    row = {"id": _id(question), "label": label, "category": question.category, "cluster": question.cluster}
    return row | {"split": split, "text": question.text, "pair": pair}


def _id(question: Question) -> str:
    return f"{question.item.name}-{question.dialect}-{question.intent}-{question.template:02d}"
