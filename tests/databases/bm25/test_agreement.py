"""The embedded index and a real Elasticsearch see the same terms, give the same scores and the same order."""

import random
import uuid

import numpy as np
import pytest

from remembrandt.databases.bm25 import analysis
from remembrandt.databases.bm25.analysis import analyze
from remembrandt.databases.bm25.elastic_loader import index_body
from remembrandt.databases.bm25.queries import MAX_QUERY_TERMS
from remembrandt.databases.hits import Filter

pytestmark = pytest.mark.elasticsearch


@pytest.fixture
def server_terms(elasticsearch_node):
    """Analyses texts on the server, with the analysis that our indices have."""
    index = f"test-{uuid.uuid4().hex}"
    body = index_body(shards=1)
    body["settings"]["index.analyze.max_token_count"] = 1_000_000
    with elasticsearch_node.client() as client:
        client.indices.create(index=index, **body)

        def terms(texts):
            starts = np.cumsum([0] + [len(text.encode("utf-16-le")) // 2 + 1 for text in texts])
            found = [[] for _ in texts]
            for token in client.indices.analyze(index=index, field="text", text=texts)["tokens"]:
                found[np.searchsorted(starts, token["start_offset"], side="right") - 1].append(token["token"])
            return found

        yield terms
        client.indices.delete(index=index)


def characters_by_class():
    classes = {}
    for first, last, letter in analysis._classes()._ranges:
        classes.setdefault(letter, []).append((first, last))
    return classes


def test_every_class_of_characters_is_told_apart_at_its_borders(server_terms):
    borders = {
        code_point
        for ranges in characters_by_class().values()
        for first, last in ranges
        for code_point in (first - 1, first, last, last + 1)
        if not 0xD800 <= code_point < 0xE000
    }
    contexts = ("{}", "a{}b", "1{}2", "{}{}", "א{}ב", "ア{}ア", "😀\u200d{}")
    texts = [context.replace("{}", chr(point)) for point in sorted(borders) for context in contexts]

    assert len(texts) > 15_000
    assert server_terms(texts) == [analyze(text) for text in texts]


def test_random_texts_of_all_classes_have_the_terms_of_the_server(server_terms):
    random_ = random.Random(3)
    by_class = characters_by_class()
    classes, emoji, joiner = list(by_class.values()), by_class["P"], by_class["Z"]

    def text(classes):
        ranges = (random_.choice(random_.choice(classes)) for _ in range(random_.randint(1, 12)))
        return "".join(chr(random_.randint(first, last)) for first, last in ranges)

    texts = [text([*classes, [(0x20, 0x2F)]]) for _ in range(6000)]
    texts += [text(random_.sample(classes, 3)) for _ in range(12_000)]
    texts += [text([emoji, emoji, joiner, joiner, [(0xFE0F, 0xFE0F)], [(0x1F3FB, 0x1F3FF)]]) for _ in range(6000)]
    texts += ["a" * 600, "x" * 254 + ".yyyy", "é" * 254 + "\u0301\u0301z", "_" * 300 + "a", "𐀀" * 200]

    assert server_terms(texts) == [analyze(text) for text in texts]


@pytest.mark.parametrize("corpus", ["emoji_captions", "taxon_names"])
@pytest.mark.parametrize("shards", [1, 3])
def test_both_backends_answer_alike(request, embed, load, as_documents, corpus, shards):
    texts = request.getfixturevalue(corpus)
    documents = as_documents(texts)
    queries = random.Random(0).sample(texts, 300)

    ours = embed(documents).search(queries, 10)
    theirs = load(documents, shards=shards).search(queries, 10)

    assert np.array_equal(ours.ids, theirs.ids)
    assert np.array_equal(ours.scores, theirs.scores)


@pytest.mark.parametrize(
    "where",
    [
        Filter(equals={"style": ("3d", "flat"), "licence": ("CC-BY-4.0",)}),
        Filter(equals={"key": ("key-7",), "group": ("group-2",)}),
        Filter(equals={"artist": ()}),
        Filter(exclude_ids=tuple(range(0, 400, 2)), exclude_groups=("group-1", "group-5"), exclude_keys=("key-9",)),
    ],
)
def test_both_backends_filter_alike(embed, load, as_documents, taxon_names, where):
    documents = as_documents(taxon_names)
    queries = ["sp.", "uncultured bacterium", *taxon_names[:20]]

    ours = embed(documents).search(queries, 20, where)
    theirs = load(documents).search(queries, 20, where)

    assert np.array_equal(ours.ids, theirs.ids)
    assert np.array_equal(ours.scores, theirs.scores)


def test_both_backends_treat_hard_queries_alike(embed, load, as_documents, emoji_captions):
    documents = as_documents([*emoji_captions, "", "fox fox fox", "x" * 300])
    queries = [
        "",
        "—!?",
        "no-such-word-at-all",
        "red red red fox fox",
        "🙈 👩‍🚀 北京",
        "x" * 300,
        'a AND (b OR c) NOT d* ~2 ^3 /x/ \\ " : [1 TO 2]',
        " ".join(emoji_captions[:200]),
        "fox " * 3000,
        " ".join(f"word{number}" for number in range(2 * MAX_QUERY_TERMS)) + " fox",
    ]

    ours = embed(documents).search(queries, 700)
    theirs = load(documents).search(queries, 700)

    assert np.array_equal(ours.ids, theirs.ids)
    assert np.allclose(ours.scores, theirs.scores, rtol=1e-6)
