import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from remembrandt.cli import app
from remembrandt.databases.planning import (
    EncoderRate,
    Outcome,
    Rates,
    Workload,
    compare,
    cost_table,
    load_rates,
    measure_rates,
    plan_capacity,
    save_rates,
)
from remembrandt.databases.planning.capacity import POD_BYTES
from remembrandt.databases.planning.rates import hardware
from remembrandt.databases.vectors import VectorConfig
from remembrandt.errors import ConfigError, StorageError

RATES = Rates(
    hardware=hardware(),
    measured_at="2026-11-24",
    decode_per_second=300,
    row_bytes_per_second=2e8,
    read_bytes_per_second=1e9,
    flops=1e11,
    code_values_per_second={"Flat": 1e9, "SQfp16": 1e9, "SQ8": 1e9, "PQ": 1e8},
    graph_values_per_second=1e7,
    pq_pairs_per_second=3e8,
    scan_bytes_per_second=1e10,
    documents_per_second=20_000,
    document_bytes=100,
    encoders={"mini-clip": EncoderRate(200, 5.0, 512, False), "on-gpu": EncoderRate(2000, 20.0, 512, True)},
)
MILLION = Workload(rows=10**6, dim=512, encoder="mini-clip", image_bytes=10_000, cores=2)


def test_a_plan_adds_up():
    plan = plan_capacity(MILLION, VectorConfig(), RATES)

    assert plan.disk_bytes == plan.rows_bytes + plan.vectors_bytes + plan.bm25_bytes
    assert plan.rows_bytes == pytest.approx(10**6 * (10_000 + 1024 + 300))
    assert plan.bm25_bytes == 100 * 10**6
    assert plan.build_seconds == pytest.approx(sum(plan.seconds.values()))
    assert plan.seconds["embed"] == pytest.approx(5 + (10**6 / 300 + 10**6 / 200 + plan.rows_bytes / 2e8) / 2)
    assert plan.seconds["bm25"] == pytest.approx(50)


def test_twice_the_cores_halve_what_can_be_spread():
    two, four = (plan_capacity(replace(MILLION, cores=cores), VectorConfig(), RATES) for cores in (2, 4))

    assert four.seconds["embed"] - 5 == pytest.approx((two.seconds["embed"] - 5) / 2)
    assert four.core_seconds == pytest.approx(two.core_seconds)


def test_ready_embeddings_cost_no_encoding():
    plan = plan_capacity(replace(MILLION, encoder=None), VectorConfig(), RATES)

    assert plan.seconds["embed"] == pytest.approx(plan.rows_bytes / 2e8 / 2)


def test_on_a_gpu_the_slower_of_cores_and_gpus_counts():
    many = replace(MILLION, encoder="on-gpu", cores=1000)

    one = plan_capacity(replace(many, gpus=1), VectorConfig(), RATES)
    two = plan_capacity(replace(many, gpus=2), VectorConfig(), RATES)

    assert one.seconds["embed"] == pytest.approx(20 + 500)
    assert two.seconds["embed"] == pytest.approx(20 + 250)


def test_actors_share_the_shards_and_each_hold_the_centroids():
    alone = plan_capacity(MILLION, VectorConfig(), RATES)
    four = plan_capacity(replace(MILLION, actors=4), VectorConfig(), RATES)

    centroids = 4096 * 512 * 4
    assert alone.memory_per_actor == pytest.approx(alone.vectors.memory_bytes, rel=0.001)
    assert four.memory_per_actor == pytest.approx(centroids + 2 / 8 * (alone.memory_per_actor - centroids), rel=0.01)


def test_a_retrieval_pod_asks_for_its_vectors_and_for_what_runs_beside_them():
    plan = plan_capacity(replace(MILLION, actors=4), VectorConfig(), RATES)
    asked = int(plan.pod.memory.removesuffix("Gi")) * 2**30

    needed = (plan.memory_per_actor + POD_BYTES) / 0.7
    assert needed <= asked < needed + 2**30
    assert plan.pod.cpu == "2"


def test_a_retrieval_pod_has_room_for_what_it_keeps_of_a_remote_version():
    plans = [plan_capacity(replace(MILLION, actors=actors), VectorConfig(), RATES) for actors in (1, 4)]
    alone, four = (int(plan.pod.cache.removesuffix("Gi")) * 2**30 for plan in plans)

    embeddings = 2 * 512 * 10**6
    assert alone > plans[0].vectors_bytes + plans[0].bm25_bytes + embeddings
    assert four > plans[1].vectors_bytes / 4 + plans[1].bm25_bytes + embeddings
    assert four < alone


def test_an_index_beyond_the_budget_is_planned_and_marked():
    plan = plan_capacity(MILLION, VectorConfig(memory_budget="10MB"), RATES)

    assert not plan.fits
    assert plan.vectors.memory_bytes > 10_000_000


def test_the_table_reaches_from_a_million_to_a_billion_and_grows():
    plans = cost_table(MILLION, VectorConfig(memory_budget="100GB"), RATES)

    assert [plan.workload.rows for plan in plans] == [10**6, 10**7, 10**8, 10**9]
    for smaller, larger in pairwise(plans):
        assert larger.core_seconds > 5 * smaller.core_seconds
        assert larger.disk_bytes > 9 * smaller.disk_bytes
    assert all(plan.fits for plan in plans)


def test_planned_and_actual_stand_side_by_side():
    plan = plan_capacity(MILLION, VectorConfig(), RATES)
    outcome = Outcome(
        rows=999_000,
        seconds={"embed": 2 * plan.seconds["embed"], "vectors": plan.seconds["vectors"], "verify": 3},
        vectors_bytes=plan.vectors_bytes,
        memory_bytes=round(1.05 * plan.memory_per_actor),
    )

    lines = compare(plan, outcome)

    assert lines[0] == "rows: planned 1,000,000, took 999,000 (1.00 ×)"
    assert lines[1].startswith("embed: planned ")
    assert lines[1].endswith("(2.00 ×)")
    assert lines[3] == "vectors size: planned 1.0 GB, took 1.0 GB (1.00 ×)"
    assert lines[4].endswith("(1.05 ×)")
    assert len(lines) == 5


def test_rates_are_kept_for_this_hardware_only(tmp_path):
    path = save_rates(RATES, tmp_path / "deep" / "rates.json")
    assert load_rates(path) == RATES

    save_rates(replace(RATES, hardware="another machine"), path)
    assert load_rates(path) is None


@pytest.mark.parametrize("text", ["", "{}", "[", '{"flops": 1}'])
def test_rates_that_cannot_be_used_are_measured_anew(text, tmp_path):
    (tmp_path / "rates.json").write_text(text)

    assert load_rates(tmp_path / "rates.json") is None


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match=r"cannot write .*file.*REMEMBRANDT_CACHE"):
        save_rates(RATES, tmp_path / "file" / "rates.json")


@pytest.fixture
def kept_rates(monkeypatch, tmp_path):
    monkeypatch.setenv("REMEMBRANDT_CACHE", str(tmp_path))
    return save_rates(RATES)


def run(*arguments):
    return CliRunner().invoke(app, ["plan", *arguments])


def test_the_command_prints_a_plan_and_a_table(kept_rates):
    result = run("--rows", "1000000", "--actors", "4")

    assert result.exit_code == 0, result.output
    assert "1,000,000 rows × 512 dimensions" in result.stdout
    assert "IVF4096,SQfp16, 8 shards of 125,000 rows" in result.stdout
    assert "in each of 4 actors" in result.stdout
    assert "4 for retrieval, each cpu 2, memory 5Gi, cache 2Gi (requests on Kubernetes)" in result.stdout
    assert "1,000,000,000" in result.stdout
    assert "! the smallest index is larger than the budget" in result.stdout


def test_the_command_prints_json(kept_rates):
    result = run("--rows", "2000", "--dim", "256", "--json")

    printed = json.loads(result.stdout)
    assert printed["plan"]["vectors"]["factory"] == "Flat"
    assert [p["workload"]["rows"] for p in printed["table"]] == [10**6, 10**7, 10**8, 10**9]
    assert printed["plan"]["pod"] == {"cpu": "2", "memory": "5Gi", "cache": "1Gi"}
    assert printed["rates"]["flops"] == 1e11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows", "0"), "cannot plan an index of 0 rows"),
        (("--rows", "10", "--budget", "much"), "memory_budget"),
        (("--rows", "10", "--factory", "IVFx"), "cannot be built"),
        (("--rows", "10", "--encoder", "none"), "give --dim"),
    ],
)
def test_a_mistake_is_one_line_and_a_failing_exit(arguments, message, kept_rates):
    result = run(*arguments)

    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_measuring_gives_rates_that_are_plausible_and_can_be_kept(tmp_path):
    rates = measure_rates("mini-clip")

    assert load_rates(save_rates(rates, tmp_path / "rates.json")) == rates
    assert rates.flops > 1e9
    assert rates.encoders["mini-clip"].images_per_second > 1
    numbers = [value for value in vars(rates).values() if isinstance(value, float)]
    assert all(value > 0 and math.isfinite(value) for value in numbers)
    plan = plan_capacity(Workload(rows=10**5, dim=512, encoder="mini-clip"), VectorConfig(), rates)
    assert plan.build_seconds > 1


def test_an_unknown_encoder_is_refused():
    with pytest.raises(ConfigError):
        measure_rates("no-such-model")
