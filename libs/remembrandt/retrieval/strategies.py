"""The sampling strategies ξ: how the conditioning items of a picture are chosen from a database (P1 §3.1, §3.3, §4.2).

All are pure: the same searcher, queries and seeds give the same answer, and an item's answer never depends on the batch
that it is in. Search normalises; what comes back are raw embeddings.

Letters in names: B pictures, K conditioning items, D embedding.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from remembrandt.databases.hits import PAD_ID, Filter, Hits
from remembrandt.errors import SearchError
from remembrandt.retrieval.conditioning import Conditioning
from remembrandt.retrieval.proposal import ProposalTable, pool_uniforms, proposal_table, pseudo_query_uniforms
from remembrandt.retrieval.searcher import Searcher

Seeds = Sequence[int] | NDArray[np.integer]


def image(searcher: Searcher, images_BD: NDArray[np.float32], k: int, where: Filter | None = None) -> Conditioning:
    """ξ_k(x, D): the `k` nearest rows of each image (P1 §3.2), as in training.

    Args:
        images_BD: φ_CLIP(x), raw or normalised.

    Returns:
        (B, k) rows, nearest first.
    """
    return Conditioning.of_hits(searcher, searcher.search_embeddings(images_BD, k, where))


def text(texts_BD: NDArray[np.float32]) -> Conditioning:
    """φ_CLIP(c_text) itself, without any row: variant i) of P1 §4.2, which generalises best to fictional prompts.

    Returns:
        (B, 1) items that are no rows.
    """
    return Conditioning.of_embeddings(np.asarray(texts_BD, dtype=np.float32)[:, None, :])


def text_and_neighbors(
    searcher: Searcher, texts_BD: NDArray[np.float32], k: int, where: Filter | None = None
) -> Conditioning:
    """φ_CLIP(c_text), then its k - 1 nearest rows: variant ii) of P1 §4.2.

    Returns:
        (B, k) items; the first is no row.
    """
    own = text(texts_BD)
    if k == 1:
        return own
    found = Conditioning.of_hits(searcher, searcher.search_embeddings(texts_BD, k - 1, where))
    return Conditioning.side_by_side([own, found])


def neighbors(searcher: Searcher, texts_BD: NDArray[np.float32], k: int, where: Filter | None = None) -> Conditioning:
    """The `k` rows nearest to φ_CLIP(c_text), without the text: variant iii) of P1 §4.2; γ = CLIP of P2 §3.2.

    Swapping the database stylises the picture.

    Returns:
        (B, k) rows, nearest first.
    """
    return Conditioning.of_hits(searcher, searcher.search_embeddings(texts_BD, k, where))


def neighbors_bm25(searcher: Searcher, texts: Sequence[str], k: int, where: Filter | None = None) -> Conditioning:
    """The `k` rows whose captions match the prompt best: γ = BM25 of P2 §3.2.

    Returns:
        (B, k) rows, best first; fewer where fewer match.
    """
    return Conditioning.of_hits(searcher, searcher.search_bm25(list(texts), k, where))


def class_pool(
    searcher: Searcher,
    classes_BD: NDArray[np.float32],
    seeds_B: Seeds,
    k: int,
    pool_size: int,
    where: Filter | None = None,
) -> Conditioning:
    """`k` adjacent rows, at a random place, of the pool ξ_l(c) of the l nearest rows of a class (P1 §3.3, §4.2).

    Args:
        classes_BD: φ_CLIP of the names of classes in the encoder's `class_prompt`.
        seeds_B: one a picture; it decides where in the pool the rows are taken.
        pool_size: l ≥ k. A pool that a filter leaves smaller is used as far as it goes.

    Returns:
        (B, k) rows, nearest to the class first.

    Raises:
        SearchError: l < k.
    """
    if pool_size < k:
        raise SearchError(f"a pool of {pool_size} rows cannot give {k} neighbours: set pool_size to {k} or more")
    pool = searcher.search_embeddings(classes_BD, pool_size, where)
    found_B = (pool.ids != PAD_ID).sum(axis=1)
    starts_B = np.floor(pool_uniforms(seeds_B) * (np.maximum(found_B - k, 0) + 1)).astype(np.int64)
    places_BK = starts_B[:, None] + np.arange(k)
    adjacent = Hits(np.take_along_axis(pool.ids, places_BK, axis=1), np.take_along_axis(pool.scores, places_BK, axis=1))
    return Conditioning.of_hits(searcher, adjacent)


def pseudo_query(
    searcher: Searcher,
    seeds_B: Seeds,
    k: int,
    top_m: float = 1.0,
    where: Filter | None = None,
    proposal: ProposalTable | None = None,
) -> Conditioning:
    """ξ_k(x̃, D) of a pseudo-query x̃ drawn from p_D truncated to its top m: unconditional synthesis (P1 Eq. 6, 7).

    x̃ is a row itself, so it is usually its own first neighbour. `where` narrows D, and so x̃, too.

    Args:
        seeds_B: one a picture; it decides x̃.
        top_m: fraction m ∈ (0, 1] of most likely rows; small values trade diversity for quality (P1 §D.1).
        proposal: p_D of another train set; None for the one stored with the version.

    Returns:
        (B, k) rows, nearest to x̃ first.

    Raises:
        SearchError: m outside (0, 1], or no proposal.
    """
    if proposal is not None and proposal.num_rows != searcher.num_rows:
        raise SearchError(
            f"the proposal is over {proposal.num_rows:,} rows and the database has {searcher.num_rows:,}: "
            "compute the neighbours of the train set against this version"
        )
    table = proposal if proposal is not None else proposal_table(searcher, where)
    drawn_B = table.draw(pseudo_query_uniforms(seeds_B), top_m)
    return Conditioning.of_hits(searcher, searcher.search_embeddings(searcher.embeddings(drawn_B), k, where))


def exemplars(
    searcher: Searcher,
    ids_BK: NDArray[np.int64] | None = None,
    embeddings_BKD: NDArray[np.float32] | None = None,
) -> Conditioning:
    """Rows and embeddings that the user gives: ξ skipped altogether (P1 §3.3).

    Args:
        ids_BK: row ids; PAD_ID leaves a slot empty.
        embeddings_BKD: raw embeddings of pictures or texts that are no rows; they come behind the rows.

    Raises:
        SearchError: neither is given, an embedding of another size, an id that is no row.
    """
    parts = []
    if ids_BK is not None:
        ids = np.asarray(ids_BK, dtype=np.int64)
        parts.append(Conditioning.of_hits(searcher, Hits(ids, np.full(ids.shape, np.nan, dtype=np.float32))))
    if embeddings_BKD is not None:
        given = np.asarray(embeddings_BKD, dtype=np.float32)
        if given.ndim != 3 or given.shape[-1] != searcher.dim:
            raise SearchError(
                f"exemplar embeddings of shape {given.shape} do not fit a database of {searcher.dim} dimensions"
            )
        parts.append(Conditioning.of_embeddings(given))
    if not parts:
        raise SearchError("exemplars need row ids or embeddings: give at least one")
    return Conditioning.side_by_side(parts)
