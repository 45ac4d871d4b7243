import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remembrandt.configuration import parse_config
from remembrandt.databases.vectors import VectorConfig, VectorPlan, plan_vectors
from remembrandt.errors import ConfigError, VersionError


@given(rows=st.integers(1, 2_000_000_000), dim=st.integers(8, 2048), memory=st.integers(10**6, 10**13))
def test_every_plan_covers_all_rows_and_can_be_trained(rows, dim, memory):
    plan = plan_vectors(rows, dim, VectorConfig(memory_budget=memory), over_budget=True)

    assert (plan.num_shards - 1) * plan.shard_rows < rows <= plan.num_shards * plan.shard_rows
    assert plan.num_shards <= 64
    assert plan.train_rows <= rows
    assert plan.memory_bytes >= rows * plan.bytes_per_row


def test_the_plan_says_what_the_memory_budget_allows():
    with pytest.raises(ConfigError, match=r"memory_budget 1\.0 MB is too small for 1,000,000 rows .* raise vectors"):
        plan_vectors(1_000_000, 512, VectorConfig(memory_budget="1MB"))


def test_the_same_input_gives_the_same_plan():
    assert plan_vectors(10**6, 512, VectorConfig()) == plan_vectors(10**6, 512, VectorConfig())


def test_a_given_factory_is_honoured():
    plan = plan_vectors(100_000, 64, VectorConfig(factory="IVF256_HNSW32,SQ8", shard_rows=30_000, rerank=4))

    assert (plan.factory, plan.num_shards, plan.rerank) == ("IVF256_HNSW32,SQ8", 4, 4)


def test_only_product_quantised_rows_are_ranked_again():
    small = VectorConfig(memory_budget="20MB")

    assert plan_vectors(200_000, 512, VectorConfig()).rerank == 0
    assert plan_vectors(200_000, 512, small).rerank > 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"factory": "IVFx,Flat"}, "factory.*cannot be built"),
        ({"memory": "8GB"}, "unknown key 'memory': did you mean 'memory_budget'"),
        ({"memory_budget": "lots"}, "memory_budget"),
        ({"rerank": -1}, "must be 0 or more"),
        ({"shard_rows": 0}, "must be at least 1"),
        ({"backend": "annoy"}, "backend"),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(VectorConfig, values, "here")

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [0, -1])
def test_no_rows_cannot_be_planned(rows):
    with pytest.raises(ConfigError, match="at least one"):
        plan_vectors(rows, 64, VectorConfig())


def test_a_factory_string_makes_no_sense_for_scann():
    with pytest.raises(ConfigError, match="leave it out"):
        plan_vectors(1000, 64, VectorConfig(backend="scann", factory="Flat"))


def test_a_plan_survives_the_manifest():
    plan = replace(plan_vectors(10**6, 512, VectorConfig()), nprobe=7)

    assert VectorPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_manifest_of_another_release_is_refused():
    values = plan_vectors(1000, 64, VectorConfig()).to_json() | {"tree_depth": 3}

    with pytest.raises(VersionError, match="tree_depth"):
        VectorPlan.from_json(values)
