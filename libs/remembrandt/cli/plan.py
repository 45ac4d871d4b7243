"""`remembrandt plan`: what a database will need, before it is built."""

import json
from typing import Annotated, Any

import typer

from remembrandt.configuration import parse_config
from remembrandt.databases.planning import (
    CapacityPlan,
    Rates,
    Workload,
    cost_table,
    load_rates,
    measure_rates,
    plan_capacity,
    save_rates,
)
from remembrandt.databases.planning.measure import measure_encoder
from remembrandt.databases.vectors import VectorConfig
from remembrandt.distributed import num_cores
from remembrandt.errors import ConfigError
from remembrandt.progress import format_bytes, format_seconds, say


def plan(
    rows: Annotated[int, typer.Option(help="Rows of the database.")],
    dim: Annotated[int | None, typer.Option(help="Embedding size; the encoder's if absent.")] = None,
    budget: Annotated[str, typer.Option(help="Memory for the vectors of all actors together.")] = "8GB",
    actors: Annotated[int, typer.Option(min=1, help="Retrieval actors that share the shards.")] = 1,
    cores: Annotated[int | None, typer.Option(min=1, help="Cores that build; this machine's if absent.")] = None,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs that embed, where the encoder runs on one.")] = 1,
    encoder: Annotated[str, typer.Option(help="Model that embeds; 'none' for ready embeddings.")] = "mini-clip",
    image_bytes: Annotated[str, typer.Option(help="Mean size of a stored image.")] = "30kB",
    factory: Annotated[str, typer.Option(help="FAISS index factory, or auto.")] = "auto",
    measure: Annotated[bool, typer.Option("--measure", help="Measure this machine's rates again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")] = False,
) -> None:
    """Shards, memory, disk and build time of a database, and what 10⁶ to 10⁹ rows would need."""
    model = None if encoder == "none" else encoder
    config = parse_config(VectorConfig, {"factory": factory, "memory_budget": budget}, "remembrandt plan")
    size = parse_config(VectorConfig, {"memory_budget": image_bytes}, "--image-bytes").memory_budget
    rates = _rates(model, measure)
    if dim is None:
        if model is None:
            raise ConfigError("remembrandt plan: give --dim, or an --encoder that says it")
        dim = rates.encoders[model].dim
    workload = Workload(
        rows=rows,
        dim=dim,
        encoder=model,
        image_bytes=int(size),
        cores=cores or num_cores(),
        gpus=gpus,
        actors=actors,
    )
    planned = plan_capacity(workload, config, rates)
    table = cost_table(workload, config, rates)
    if as_json:
        print(json.dumps({"plan": planned.to_json(), "table": [p.to_json() for p in table], "rates": _plain(rates)}))
        return
    print("\n".join([*describe(planned), "", *describe_table(table), "", _source(rates)]))


def describe(plan: CapacityPlan) -> list[str]:
    """The plan of one database for a person."""
    vectors, work = plan.vectors, plan.workload
    pod = plan.pod
    over = "" if plan.fits else "  OVER BUDGET: raise --budget"
    stages = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in plan.seconds.items() if seconds)
    return [
        f"{work.rows:,} rows × {work.dim} dimensions",
        f"  index    {vectors.factory}, {vectors.num_shards} shards of {vectors.shard_rows:,} rows, trained on "
        f"{vectors.train_rows:,} ({format_bytes(plan.train_bytes)} in one task)"
        + (f", {vectors.rerank} × k candidates ranked again" if vectors.rerank else ""),
        f"  memory   {format_bytes(vectors.memory_bytes)} of vectors; {format_bytes(plan.memory_per_actor)} in each of "
        f"{work.actors} actors{over}",
        f"  disk     {format_bytes(plan.disk_bytes)}: rows {format_bytes(plan.rows_bytes)}, vectors "
        f"{format_bytes(plan.vectors_bytes)}, BM25 {format_bytes(plan.bm25_bytes)}",
        f"  build    {format_seconds(plan.build_seconds)} on {work.cores} cores: {stages}",
        f"  search   {plan.search_ms:.2g} ms a query on one core before tuning",
        f"  pods     {work.actors} for retrieval, each cpu {pod.cpu}, memory {pod.memory}, cache {pod.cache} "
        "(requests on Kubernetes)",
    ]


def describe_table(plans: list[CapacityPlan]) -> list[str]:
    """One line for each row count."""
    lines = [f"{'rows':>13}  {'index':<36} {'shards':>6} {'memory':>9} {'disk':>9} {'core-hours':>10} {'build':>12}"]
    for p in plans:
        mark = " " if p.fits else "!"
        lines.append(
            f"{p.workload.rows:>13,}  {p.vectors.factory:<36} {p.vectors.num_shards:>6} "
            f"{format_bytes(p.vectors.memory_bytes):>8}{mark} {format_bytes(p.disk_bytes):>9} "
            f"{p.core_seconds / 3600:>10,.1f} {format_seconds(p.build_seconds):>12}"
        )
    if not all(p.fits for p in plans):
        lines.append("! the smallest index is larger than the budget")
    return lines


def _rates(model: str | None, again: bool) -> Rates:
    rates = None if again else load_rates()
    if rates is None:
        rates = measure_rates(model)
    elif model is not None and model not in rates.encoders:
        rates = rates.with_encoder(model, measure_encoder(model))
    else:
        return rates
    say(f"rates kept in {save_rates(rates)}")
    return rates


def _source(rates: Rates) -> str:
    return f"from rates measured on {rates.hardware}, {rates.measured_at}"


def _plain(rates: Rates) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(rates)
