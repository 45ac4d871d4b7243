import pytest

from remembrandt.databases.vectors.factory import check_factory, choose_factory, num_lists, parse_factory
from remembrandt.errors import ConfigError


@pytest.mark.parametrize(
    ("rows", "dim", "memory", "factory"),
    [
        (1_000, 512, 8e9, "Flat"),
        (20_000, 512, 8e9, "Flat"),
        (50_000, 512, 8e9, "IVF1024,SQfp16"),
        (200_000, 512, 8e9, "IVF2048,SQfp16"),
        (1_000_000, 512, 8e9, "IVF4096,SQfp16"),
        (1_000_000, 512, 1e9, "IVF4096,SQ8"),
        (1_000_000, 512, 2e8, "OPQ128_512,IVF4096,PQ128"),
        (1_000_000, 512, 1e8, "OPQ64_256,IVF4096,PQ64"),
        (20_000_000, 768, 8e9, "OPQ128_512,IVF65536_HNSW32,PQ128"),
        (100_000_000, 512, 20e9, "OPQ128_512,IVF262144_HNSW32,PQ128"),
        (1_000_000_000, 512, 100e9, "OPQ64_256,IVF1048576_HNSW32,PQ64"),
    ],
)
def test_the_most_precise_factory_that_fits_is_chosen(rows, dim, memory, factory):
    chosen, fits = choose_factory(rows, dim, int(memory), num_shards=8)

    assert (chosen.text, fits) == (factory, True)


def test_a_budget_that_none_fits_gives_the_smallest():
    chosen, fits = choose_factory(1_000_000, 512, 1_000_000, num_shards=8)

    assert (chosen.text, fits) == ("OPQ32_128,IVF4096,PQ32", False)


def test_lists_grow_with_rows_and_are_powers_of_two():
    lists = [num_lists(int(10**e)) for e in (4, 5, 6, 7, 7.5, 8, 9)]

    assert lists == sorted(lists)
    assert all(n & (n - 1) == 0 for n in lists)


@pytest.mark.parametrize(
    ("text", "bytes_per_row"),
    [
        ("Flat", 2048),
        ("IVF1024,Flat", 2056),
        ("IVF1024,SQfp16", 1032),
        ("IVF1024,SQ8", 520),
        ("OPQ64_256,IVF65536_HNSW32,PQ64", 72),
        ("OPQ64_256,IVF65536_HNSW32,PQ64x8", 72),
    ],
)
def test_a_row_costs_its_code_and_its_id(text, bytes_per_row):
    assert parse_factory(text).bytes_per_row(512) == bytes_per_row


@pytest.mark.parametrize("text", ["", "IVF", "IVF12", "flat", "LSH", "IVF64,PQ8x4fs", "IVF64,Flat,RFlat", "Flat;rm"])
def test_a_factory_we_cannot_build_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match="cannot be built") as caught:
        parse_factory(text)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "rows", "reason"),
    [
        ("IVF4096,Flat", 1000, "needs at least 4,096 rows"),
        ("IVF16,PQ7", 1000, "PQ7 does not divide 64"),
        ("OPQ8_128,IVF16,PQ8", 1000, "makes 128 dimensions out of 64"),
        ("OPQ7_32,IVF16,PQ8", 1000, "OPQ7 does not divide 32"),
        ("IVF16,PQ8", 100, "at least 256 rows"),
    ],
)
def test_a_factory_that_cannot_hold_the_rows_is_refused_with_the_reason(text, rows, reason):
    with pytest.raises(ConfigError, match=reason):
        check_factory(parse_factory(text), rows, dim=64)
