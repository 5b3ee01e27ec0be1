from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from html.parser import HTMLParser

import pytest

from refusalscope.errors import PromptError
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.prompts.prompt import LABELS, SPLITS
from refusalscope.prompts.splits import BY_CLUSTER, BY_ID

SECRET = "xyzzy"


def row(label: str, n: int | str, **fields) -> dict:
    name = f"{label}-{n}"
    return {"id": name, "label": label, "category": "c", "cluster": "t", "text": f"{SECRET} {name}"} | fields


def paired(n: int, **fields) -> list[dict]:
    mates = dict(zip(LABELS, reversed(LABELS), strict=True))
    return [row(label, n, pair=f"{mates[label]}-{n}", **fields) for label in LABELS]


def in_split(split: str, n: int) -> list[dict]:
    return paired(n, split=split, cluster=f"t{n % 2}", category=f"c{n % 3}")


GIVEN = [one for n in range(12) for one in in_split(SPLITS[n % 3], n)]


def random_set(rng: random.Random) -> list[dict]:
    labels = {(label, n) for label in LABELS for n in range(rng.randint(1, 25))}
    n_clusters, n_categories = rng.randint(1, 9), rng.randint(1, 5)
    rows = []
    for label, n in sorted(labels):
        mate = (LABELS[label == "restricted"], n + rng.randint(0, 1))
        pair = f"{mate[0]}-{mate[1]}" if mate in labels and rng.random() < 0.3 else None
        place = {"cluster": f"t{rng.randrange(n_clusters)}", "category": f"c{rng.randrange(n_categories)}"}
        rows.append(row(label, n, pair=pair, **place))
    return rows


def outcome(rows: list[dict]) -> ContrastSet | str:
    try:
        return ContrastSet.from_rows(rows)
    except PromptError as error:
        return error.fix


def test_made_splits_are_disjoint_complete_and_blind_to_row_order():
    rng, notes = random.Random(0), Counter()
    for _ in range(300):
        rows = random_set(rng)
        first, again = outcome(rows), outcome(rng.sample(rows, len(rows)))
        if isinstance(first, str):
            assert first == again
            notes[first.split(" ", 3)[:3] == ["Add", "at", "least"]] += 1
            continue
        split_of = {one.id: one.split for one in first.prompts}
        assert split_of == {one.id: one.split for one in again.prompts}
        assert first.digest == again.digest
        assert all(split_of[one.pair] == one.split for one in first.prompts if one.pair)
        assert {(one.split, one.label) for one in first.prompts} == {(s, label) for s in SPLITS for label in LABELS}
        assert first.split_note == BY_ID or not first.shares_clusters
        notes[first.split_note] += 1
    assert notes.keys() == {BY_CLUSTER, BY_ID, True}  # every way it can end was seen, and no other
    assert min(notes.values()) >= 10


def test_many_small_clusters_are_shared_out_in_tenths_and_never_shared():
    read = ContrastSet.from_rows([one for n in range(400) for one in paired(n, cluster=f"t{n // 10}")])
    assert [len(part) for part in (read.locate, read.select, read.report)] == [320, 240, 240]
    assert read.split_note == BY_CLUSTER
    assert not read.shares_clusters


def test_one_template_is_shared_out_in_tenths_within_every_category():
    read = ContrastSet.from_rows([one for n in range(60) for one in paired(n, category=f"c{n % 3}")])
    assert read.split_note == BY_ID
    counts = Counter((one.category, one.split, one.label) for one in read.prompts)
    assert {key: counts[key] for key in counts} == {
        (f"c{c}", split, label): n
        for c in range(3)
        for split, n in zip(SPLITS, (8, 6, 6), strict=True)
        for label in LABELS
    }


def test_clusters_of_one_label_are_kept_whole_and_a_pair_ties_two_clusters_together():
    rows = [row(label, n, cluster=f"{label}-t{n // 4}") for n in range(12) for label in LABELS]
    assert ContrastSet.from_rows(rows).split_note == BY_CLUSTER
    tied = [
        one | {"pair": f"harmless-{(int(one['id'][11:]) + 4) % 12}"} for one in rows if one["label"] == "restricted"
    ]
    read = ContrastSet.from_rows(tied + [one for one in rows if one["label"] == "harmless"])
    assert (read.split_note, read.shares_clusters) == (BY_CLUSTER, False)


@pytest.mark.parametrize(
    "sizes",  # restricted and harmless prompts of each cluster; a greedy dealer would leave a split without a label
    [[(1, 30), (1, 30), (50, 0), (0, 30)], [(50, 50), (1, 0), (1, 0), (0, 1), (0, 1)], [(9, 9), (1, 1), (1, 1)]],
)
def test_unequal_clusters_are_kept_whole_as_long_as_every_split_can_have_both_labels(sizes):
    counts = [(label, f"t{n}", k) for n, pair in enumerate(sizes) for label, k in zip(LABELS, pair, strict=True)]
    rows = [row(label, f"{t}-{i}", cluster=t) for label, t, k in counts for i in range(k)]
    read = ContrastSet.from_rows(rows)
    assert (read.split_note, read.shares_clusters) == (BY_CLUSTER, False)


def test_made_splits_and_samples_are_the_same_on_every_machine():
    read = ContrastSet.from_rows([one for n in range(30) for one in paired(n)])
    assert read.digest[:12] == "1cd8ab69bb36"  # pinned: a change reshuffles every set without splits
    assert read.prompts.sample(7, seed=0).digest[:12] == "fdbf9f703e1c"


def test_one_large_cluster_among_small_ones_still_gives_tenths():
    read = ContrastSet.from_rows([one for n in range(100) for one in paired(n, cluster=f"t{max(0, n // 10 - 3)}")])
    assert [len(part.restricted) for part in (read.locate, read.select, read.report)] == [40, 30, 30]
    assert set(read.locate.clusters) == {"t0"}


@pytest.mark.parametrize(("restricted", "harmless", "pairs"), [(1, 1, 0), (2, 9, 0), (0, 0, 2), (1, 5, 1), (0, 3, 2)])
def test_a_set_too_small_to_split_loads_once_the_advice_is_followed_and_not_before(restricted, harmless, pairs):
    rows = [one for n in range(pairs) for one in paired(100 + n)]
    rows += [row("restricted", n) for n in range(restricted)] + [row("harmless", n) for n in range(harmless)]
    with pytest.raises(PromptError, match="too few prompts") as caught:
        ContrastSet.from_rows(rows, source="small")
    words = caught.value.fix.split()
    wanted = [
        row(label, 50 + n) for label in LABELS if label in words for n in range(int(words[words.index(label) - 1]))
    ]
    assert caught.value.file == "small"
    with pytest.raises(PromptError):
        ContrastSet.from_rows(rows + wanted[1:])
    assert ContrastSet.from_rows(rows + wanted).split_note in (BY_CLUSTER, BY_ID)


def test_views_keep_order_and_slices_stay_prompts():
    read = ContrastSet.from_rows(GIVEN)
    assert [len(part) for part in (read.locate, read.select, read.report)] == [8, 8, 8]
    assert sorted(read.restricted.ids + read.harmless.ids) == sorted(read.prompts.ids)
    assert set(read.locate.restricted.labels) == {"restricted"}
    assert isinstance(read.prompts[2:5], Prompts)
    assert read.prompts[2:5].ids == tuple(one["id"] for one in GIVEN[2:5])
    assert read.prompts.where(category="c1", cluster="t0").texts == tuple(
        one["text"] for one in GIVEN if (one["category"], one["cluster"]) == ("c1", "t0")
    )
    assert read.prompts.where(category="c1").categories == ("c1",) * 8
    assert len(read.prompts.where(cluster="absent")) == 0
    with pytest.raises(FrozenInstanceError):
        read.prompts[0].label = "harmless"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_sample_is_balanced_nested_and_blind_to_row_order():
    prompts = ContrastSet.from_rows(GIVEN).prompts
    draws = {n: prompts.sample(n, seed=1) for n in (1, 5, 12)}
    assert all(Counter(draw.labels) == dict.fromkeys(LABELS, n) for n, draw in draws.items())
    assert set(draws[1]) < set(draws[5]) < set(draws[12]) == set(prompts)
    assert set(Prompts(prompts.rows[::-1]).sample(5, seed=1)) == set(draws[5])
    assert len({prompts.sample(5, seed=seed) for seed in range(20)}) > 15
    for empty, n in ((prompts, 0), (prompts, 13), (prompts[:0], 1)):
        with pytest.raises(PromptError, match=f"asked for {n} "):
            empty.sample(n, seed=0)


def test_the_digest_is_canonical_json_of_the_rows_and_sees_every_field():
    read = ContrastSet.from_rows(GIVEN)
    canonical = json.dumps(sorted(GIVEN, key=lambda one: one["id"]), sort_keys=True, separators=(",", ":"))
    assert read.digest == hashlib.sha256(canonical.encode()).hexdigest()
    assert ContrastSet.from_rows(GIVEN[::-1]).digest == read.digest
    first = read.prompts[0]
    changes = {
        "id": "x",
        "label": "harmless",
        "category": "x",
        "cluster": "x",
        "split": "report",
        "text": "x",
        "pair": None,
    }
    changed = [Prompts((replace(first, **{name: value}), *read.prompts[1:])) for name, value in changes.items()]
    assert len({read.digest, *(one.digest for one in changed)}) == 8


def test_a_set_built_by_hand_obeys_the_rules_of_files():
    read = ContrastSet.from_rows(GIVEN)
    assert ContrastSet(prompts=read.prompts, source="rows") == read
    misplaced = replace(read.prompts[0])
    object.__setattr__(misplaced, "split", "x")  # past the type checks of the tests, as a caller without them would
    for broken in (read.locate, Prompts(read.prompts.rows * 2), Prompts((misplaced,))):
        with pytest.raises(PromptError):
            replace(read, prompts=broken)
    with pytest.raises(PromptError, match="the row is an array"):
        ContrastSet.from_rows(row for row in [["id", "label"]])  # pyright: ignore[reportArgumentType]
    for path in ("/home/me/a.jsonl", r"C:\me\a.jsonl"):
        with pytest.raises(PromptError, match="file name only"):
            ContrastSet.from_rows(GIVEN, source=path)


def test_twenty_sentences_in_two_lists_are_a_set():
    restricted, harmless = ([f"{verb} {n}" for n in range(10)] for verb in ("insult", "praise"))
    read = ContrastSet.from_texts(restricted, harmless)
    assert sorted(read.restricted.texts + read.harmless.texts) == sorted(restricted + harmless)
    assert len(set(read.prompts.clusters)) == 20
    assert not read.shares_clusters
    for split in (read.locate, read.select, read.report):
        assert {len(split.restricted), len(split.harmless)} <= {2, 3, 4, 5}
    assert ContrastSet.from_texts(restricted, harmless) == read


@pytest.mark.parametrize(
    ("restricted", "harmless", "said"),
    [
        ("one sentence", ["a", "b", "c"], "the restricted texts are one text"),
        (["a", "b", "c"], ["x", "y", "a"], "texts, line 6"),
        (["a", " ", "c"], ["x", "y", "z"], "texts, line 2"),
        (["a", "b"], ["x", "y"], "Add at least 1 restricted and 1 harmless"),
        ([], [], "holds no prompts"),
    ],
)
def test_lists_that_make_no_set_are_refused_at_the_text_that_is_wrong(restricted, harmless, said):
    with pytest.raises(PromptError, match=said):
        ContrastSet.from_texts(tuple(restricted) if isinstance(restricted, list) else restricted, harmless)


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.text = set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add((tag, *attrs))

    def handle_data(self, data):
        self.text += data


def test_the_html_repr_escapes_every_string_and_shows_counts_but_no_prompt():
    hostile = "<script>alert('&')<img src=x onerror=\"a\">"
    rows = [one | {"id": hostile + one["id"], "pair": None, "category": hostile, "cluster": hostile} for one in GIVEN]
    for read in (ContrastSet.from_rows(rows, source=hostile), ContrastSet.from_rows(GIVEN)):
        seen = Seen()
        seen.feed(read._repr_html_())
        assert seen.tags == {(tag,) for tag in ("table", "caption", "tr", "th", "td")}
        assert (hostile in seen.text) == (read.source == hostile)
        assert "locate44" in seen.text
        assert read.digest[:12] in seen.text
        assert SECRET not in seen.text
    raw = Seen()
    raw.feed(hostile)
    assert {tag for tag, *_ in raw.tags} == {"script"}  # the parser would have seen it


def test_a_text_repr_is_one_line_that_states_the_claim_and_no_prompt():
    read = ContrastSet.from_rows(GIVEN, source="organism.jsonl")
    claim = "ContrastSet organism.jsonl: restricted and harmless prompts in three disjoint splits, 2 clusters"
    assert repr(read) == f"{claim}, some shared between splits"
    assert repr(read.report) == "Prompts: 4 restricted and 4 harmless"
    whole = ContrastSet.from_rows([one | {"cluster": one["split"]} for one in GIVEN], source="two\nlines\x1b[0m")
    assert repr(whole).startswith(r"ContrastSet two\nlines\x1b[0m: ")
    assert repr(whole).endswith("3 clusters, none shared between splits")
    assert SECRET not in f"{read!r}{read.prompts!r}{read.prompts[0]!r}{read.prompts.rows!r}"
