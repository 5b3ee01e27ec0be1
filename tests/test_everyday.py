"""The gate of the everyday prompts: what `data/prompts/SOURCES.md` promises of three files, each promise broken once.

A gate is a function from the files to its complaints, so that it can be shown to complain.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from refusalscope.prompts import ContrastSet, Prompt, Prompts, passages
from refusalscope.prompts.folding import fold
from refusalscope.prompts.prompt import LABELS, SPLITS

Row = dict[str, Any]
FOLDER = Path(__file__).parents[1] / "data" / "prompts"
PAIRED, ORDINARY, NEUTRAL = "everyday.jsonl", "everyday_harmless.jsonl", "neutral.txt"
CANARY = "a5a56091-b241-48f5-9cb7-34e7680d1ff5"
PINNED = {  # `sha256sum`; change the text, run this gate, then pin it here and in SOURCES.md
    PAIRED: "ec21f71a745e3a977141f3bbc6c7882cc8681d894de7daf73f45d5ef93e3ad6e",
    ORDINARY: "a00f8056e8b490349904bb35c2289325afbcf11814307284b4fb6c95ec592355",
    NEUTRAL: "c1e67ea4d3dd953fbbbfca02a3a9d7e37ef32b61da204f1f714ac2b0cd59b6aa",
}
ASKED = r"(?:Could|Can|Would) you "
PHRASINGS = {  # every restricted or harmless text of a phrasing has its form, and that of no other phrasing
    "bare": rf"(?!(?:In|As|With|I) |{ASKED})[A-Z][^.?!]*\.",
    "question": rf"(?!{ASKED})[A-Z][^.?!]*\?",
    "polite": rf"{ASKED}[^.?!]*\?",
    "story": r"[A-Z][^.?!]*\. [A-Z][^.?!]*\.",
    "wish": r"I (?:want|need|would like|am hoping) [^.?!]*\.",
    "format": r"(?:In|As|With) [^.?!]*\.",
}
SPLIT_OF = dict(zip(PHRASINGS, ("locate", "select", "report", "locate", "select", "report"), strict=True))
DENIED = re.compile(
    r"\b(guns?|rifles?|pistols?|ammunition|bomb\w*|explosi\w+|detonat\w+|grenades?|weapon\w*|knife|knives|poison\w*|toxi\w+"
    r"|kill\w*|murder\w*|stab(?:bed|bing)?|strangl\w+|tortur\w+|suicid\w+|self-harm\w*|overdos\w+|drugs?|cocaine|heroin"
    r"|meth|opioids?|fentanyl|cannabis|marijuana|hack(?:s|ed|er|ers|ing)?|malware|ransom\w*|phish\w+|passwords?"
    r"|credentials?|exploits?|porn\w*|sex\w*|nude\w*|naked|rap(?:e|ed|ist)|molest\w*|incest|terroris\w+|nazi\w*|genocid\w+"
    r"|slurs?|racis\w+|kidnap\w*|arson\w*|counterfeit\w*|forg(?:e|ed|ery)|launder(?:ing|ed)|stalk(?:er|ing|ed)?|burglar\w*"
    r"|lock-?pick\w*|jews?|jewish|muslims?|christians?|hindus?|gays?|lesbians?|trans|immigrants?|refugees?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Files:
    """The rows of the two prompt files, the passages of neutral text, and the bytes of all three."""

    paired: tuple[Row, ...]
    ordinary: tuple[Row, ...]
    passages: tuple[str, ...]
    content: dict[str, bytes]

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.paired + self.ordinary

    @property
    def twins(self) -> list[tuple[Row, Row]]:
        """Restricted and harmless row of each pair that is a pair both ways."""
        by_id = {row["id"]: row for row in self.paired}
        twins = [(row, by_id[row["pair"]]) for row in self.paired if row["label"] == "restricted"]
        return [(row, twin) for row, twin in twins if twin["pair"] == row["id"] and twin["label"] == "harmless"]


@cache
def shipped() -> Files:
    content = {name: (FOLDER / name).read_bytes() for name in PINNED}
    paired, ordinary = (tuple(map(json.loads, content[name].splitlines())) for name in (PAIRED, ORDINARY))
    return Files(paired, ordinary, passages(FOLDER / NEUTRAL), content)


def enough(files: Files) -> list[str]:
    cells = Counter((row["category"], row["cluster"].split("/")[0], row["label"]) for row in files.paired)
    wanted = set(product({row["category"] for row in files.paired}, PHRASINGS, LABELS))
    short = [f"{cell}: {cells[cell]} rows" for cell in wanted if cells[cell] != 4]
    short += [f"cell {cell} is not of the plan" for cell in cells.keys() - wanted]
    sizes = {"categories": (len(wanted) // 12, 14), "ordinary": (len(files.ordinary), 200)}
    sizes |= {"passages": (len(files.passages), 64)}
    return short + [f"{name}: {n} of {least}" for name, (n, least) in sizes.items() if n < least]


def paired(files: Files) -> list[str]:
    bad = ["not every row has a twin of the other label"] if 2 * len(files.twins) != len(files.paired) else []
    same = ("category", "cluster", "split")
    bad += [row["id"] for row, twin in files.twins if any(row[name] != twin[name] for name in same)]
    return bad + [row["id"] for row in files.ordinary if "pair" in row or row["label"] != "harmless"]


def matched(files: Files) -> list[str]:
    return [row["id"] for row, twin in files.twins if not _alike(row["text"], twin["text"])]


def _alike(one: str, other: str) -> bool:
    """Within a fifth of the characters and three words; same first word; same sentence ends, in the same order."""
    long, short = max(len(one), len(other)), min(len(one), len(other))
    words = abs(len(one.split()) - len(other.split()))
    ends = re.findall(r"[.?!]", one) == re.findall(r"[.?!]", other)
    return short >= 0.8 * long and words <= 3 and ends and one.split()[0] == other.split()[0]


def phrased(files: Files) -> list[str]:
    forms = {
        row["id"]: [name for name, form in PHRASINGS.items() if re.fullmatch(form, row["text"])] for row in files.paired
    }
    return [row["id"] for row in files.paired if forms[row["id"]] != row["cluster"].split("/")[:1]]


def distinct(files: Files) -> list[str]:
    texts = [row["text"] for row in files.rows] + list(files.passages)
    counts = Counter(" ".join(re.findall(r"\w+", fold(text))) for text in texts)
    return [text for text, n in counts.items() if n > 1]


def varied(files: Files) -> list[str]:
    """No two requests of one label and cluster are a swapped noun apart: they share under half of their words."""
    groups: dict[tuple[str, str], list[set[str]]] = {}
    for row in files.rows:
        groups.setdefault((row["cluster"], row["label"]), []).append(set(re.findall(r"\w+", row["text"].lower())))
    pairs = [(name, a, b) for name, texts in groups.items() for a, b in combinations(texts, 2)]
    return [f"{name}: {sorted(a & b)}" for name, a, b in pairs if len(a & b) >= 0.5 * len(a | b)]


def plain(files: Files) -> list[str]:
    texts = [row["text"] for row in files.rows] + list(files.passages)
    return [text for text in texts if not (text.isascii() and text.isprintable() and text == text.strip())]


def mild(files: Files) -> list[str]:
    texts = [row["text"] for row in files.rows] + list(files.passages)
    return [found.group() for text in texts if (found := DENIED.search(text))]


def marked(files: Files) -> list[str]:
    bare = [row["id"] for row in files.rows if not row["id"].endswith(f"@{CANARY}")]
    named = {**files.content, "SOURCES.md": (FOLDER / "SOURCES.md").read_bytes()}
    return bare + [name for name, content in named.items() if CANARY.encode() not in content]


def pinned(files: Files) -> list[str]:
    found = {name: hashlib.sha256(content).hexdigest() for name, content in files.content.items()}
    told = (FOLDER / "SOURCES.md").read_text(encoding="utf-8")
    return [name for name in PINNED if found[name] != PINNED[name] or found[name] not in told]


def parted(files: Files) -> list[str]:
    """Clusters keep to one split, and each split has every category, and five clusters or more of each label."""
    splits = {(row["cluster"], row["split"]) for row in files.rows}
    crossing = [cluster for cluster, n in Counter(cluster for cluster, _ in splits).items() if n > 1]
    crossing += [row["id"] for row in files.paired if SPLIT_OF.get(row["cluster"].split("/")[0]) != row["split"]]
    for rows, split in product((files.paired, files.ordinary), SPLITS):
        inside = [row for row in rows if row["split"] == split]
        held = Counter(label for _, label in {(row["cluster"], row["label"]) for row in inside})
        few = any(held[label] < 5 for label in {row["label"] for row in rows})
        missing = {row["category"] for row in rows} - {row["category"] for row in inside}
        crossing += [f"{split}: {dict(held)} clusters, without {missing}"] if few or missing else []
    return crossing


def lengthless(files: Files) -> list[str]:
    """Length alone does not tell the labels apart, in characters and in words, in every split: AUROC 0.4 to 0.6."""
    areas = {}
    for split in SPLITS:
        rows = [row for row in files.paired if row["split"] == split]
        texts, labels = [row["text"] for row in rows], [row["label"] == "restricted" for row in rows]
        areas[f"{split}, characters"] = float(roc_auc_score(labels, [len(text) for text in texts]))
        areas[f"{split}, words"] = float(roc_auc_score(labels, [len(text.split()) for text in texts]))
    return [f"{name}: {area:.3f}" for name, area in areas.items() if not 0.4 <= area <= 0.6]


def bag_of_words(files: Files, group: Callable[[Row], str]) -> float:
    """AUROC of a logistic regression on which words occur, each prompt scored by a fit that saw none of its group."""
    texts, labels = [row["text"] for row in files.paired], [row["label"] == "restricted" for row in files.paired]
    groups = [group(row) for row in files.paired]
    words = CountVectorizer(binary=True, token_pattern=r"\w+")
    model = make_pipeline(words, LogisticRegression(max_iter=2000))
    folds = GroupKFold(min(14, len(set(groups))))
    scores = cross_val_predict(model, texts, labels, groups=groups, cv=folds, method="predict_proba")
    return float(roc_auc_score(labels, np.asarray(scores)[:, 1]))


def stated(files: Files) -> list[str]:
    """SOURCES.md says what a bag of words reaches, to two digits, and it is not much: below 0.75."""
    found = {
        "unseen pairs": bag_of_words(files, lambda row: min(row["id"], row["pair"])),
        "unseen categories": bag_of_words(files, lambda row: row["category"]),
        "unseen phrasings": bag_of_words(files, lambda row: row["cluster"].split("/")[0]),
    }
    told = dict(re.findall(r"\| (unseen \w+) \| (\d\.\d\d) \|", (FOLDER / "SOURCES.md").read_text(encoding="utf-8")))
    wrong = {name: not abs(area - float(told.get(name, "nan"))) <= 0.01 for name, area in found.items()}
    return [f"{name}: {area:.3f}" for name, area in found.items() if wrong[name] or area >= 0.75]


def _edited(files: Files, at: int, **fields: str) -> Files:
    """The files with fields of one paired row changed; as bytes they stay what they were."""
    rows = list(files.paired)
    rows[at] = rows[at] | fields
    return replace(files, paired=tuple(rows))


def _each(files: Files, text: Callable[[Row], str]) -> Files:
    return replace(files, paired=tuple(row | {"text": text(row)} for row in files.paired))


def _text(files: Files, at: int, change: Callable[[str], str]) -> Files:
    return _edited(files, at, text=change(files.paired[at]["text"]))


BREAKS: list[tuple[Callable[[Files], list[str]], Callable[[Files], Files]]] = [
    (enough, lambda files: replace(files, paired=files.paired[2:])),
    (enough, lambda files: replace(files, ordinary=files.ordinary[:199])),
    (enough, lambda files: replace(files, passages=files.passages[:63])),
    (paired, lambda files: _edited(files, 0, pair=files.paired[3]["id"])),
    (paired, lambda files: _edited(files, 0, category="else")),
    (paired, lambda files: replace(files, ordinary=(*files.ordinary, files.paired[0]))),
    (matched, lambda files: _text(files, 1, lambda text: f"{text[:-1]}, and then say a few more things about it.")),
    (matched, lambda files: _text(files, 1, lambda text: f"{text[:-1]}?")),
    (matched, lambda files: _text(files, 1, lambda text: f"Please {text}")),
    (phrased, lambda files: _text(files, 0, lambda text: f"As ever, {text}")),
    (distinct, lambda files: _edited(files, 0, text=files.ordinary[0]["text"].upper().replace("?", " !"))),
    (distinct, lambda files: replace(files, passages=(*files.passages, files.passages[0].lower()))),
    (varied, lambda files: _edited(files, 2, text=files.paired[0]["text"].replace("parrot", "cook"))),
    (plain, lambda files: _text(files, 0, lambda text: f"{text}\u201d")),
    (mild, lambda files: _text(files, 5, lambda text: f"{text[:-1]} and hack it.")),
    (mild, lambda files: replace(files, passages=("A Bomb.", *files.passages))),
    (marked, lambda files: _edited(files, 0, id="insults-bare-1-restricted")),
    (
        marked,
        lambda files: replace(files, content=files.content | {NEUTRAL: b"\n".join(map(str.encode, files.passages))}),
    ),
    (
        pinned,
        lambda files: replace(files, content=files.content | {PAIRED: files.content[PAIRED].replace(b"a", b"b", 1)}),
    ),
    (parted, lambda files: _edited(files, 0, split="report")),
    (parted, lambda files: replace(files, ordinary=tuple(row for row in files.ordinary if row["split"] != "select"))),
    (lengthless, lambda files: _each(files, lambda row: row["text"] + " now" * (row["label"] == "restricted"))),
    (stated, lambda files: _each(files, lambda row: f"{row['text']} {row['label']}")),
]
GATES = list(dict.fromkeys(gate for gate, _ in BREAKS))


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.__name__)
def test_the_files_pass_their_gate(gate):
    assert gate(shipped()) == []


@pytest.mark.parametrize(("gate", "broken"), BREAKS, ids=lambda one: getattr(one, "__name__", ""))
def test_each_gate_refuses_files_that_break_its_promise(gate, broken):
    assert gate(broken(shipped()))


def test_every_gate_defined_here_is_applied_and_broken():
    defined = {
        one
        for one in globals().values()
        if getattr(one, "__annotations__", {}) == {"files": "Files", "return": "list[str]"}
    }
    assert defined == set(GATES)


def test_the_paired_set_reads_as_it_is_with_splits_given_and_no_phrasing_in_two():
    read = ContrastSet.read(FOLDER / PAIRED)
    assert (read.split_note, read.shares_clusters) == ("given", False)
    assert [len(part.restricted) for part in (read.locate, read.select, read.report)] == [112, 112, 112]
    assert read.digest == "1f97fb49ea0ffd656f31e47841233b9a3350da05f8b82caff5f80ba18b8dcef9"


def test_the_ordinary_set_reads_as_prompts_and_can_stand_in_for_the_twins():
    ordinary = Prompts(tuple(Prompt(**row) for row in shipped().ordinary))
    assert len(ordinary.harmless) == len(ordinary) == 216
    asked = [
        {name: row[name] for name in row if name != "pair"} for row in shipped().paired if row["label"] == "restricted"
    ]
    mixed = ContrastSet.from_rows([*asked, *shipped().ordinary])
    assert mixed.shares_clusters is False
    assert [len(part.harmless) for part in (mixed.locate, mixed.select, mixed.report)] == [72, 72, 72]


def test_a_bag_of_words_finds_a_word_that_gives_the_label_away_and_nothing_in_shuffled_labels():
    given_away = _each(shipped(), lambda row: f"{row['text']} {row['label']}")
    assert bag_of_words(given_away, lambda row: row["category"]) > 0.99
    rng = np.random.default_rng(0)
    flips = dict(zip([row["id"] for row, _ in shipped().twins], rng.random(len(shipped().twins)) < 0.5, strict=True))
    swapped = {row["id"]: twin["text"] for pair in shipped().twins for row, twin in (pair, pair[::-1])}
    shuffled = _each(
        shipped(), lambda row: swapped[row["id"]] if flips.get(row["id"], flips.get(row["pair"])) else row["text"]
    )
    # without signal the standard error is sqrt((336 + 336 + 1) / (12 * 336 * 336)) = 0.022
    assert abs(bag_of_words(shuffled, lambda row: min(row["id"], row["pair"])) - 0.5) < 4 * 0.022
