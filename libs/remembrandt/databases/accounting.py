"""What a build was planned to need beside what it took."""

from itertools import islice

from remembrandt.data.records import Source
from remembrandt.databases.config import BuildConfig
from remembrandt.databases.manifest import ROWS, Manifest
from remembrandt.databases.planning import CapacityPlan, Outcome, Workload, compare, load_rates, plan_capacity
from remembrandt.distributed import num_cpus, num_gpus

_SAMPLED_ITEMS = 32


def plan_build_capacity(config: BuildConfig, source: Source | None, items: int, dim: int | None) -> CapacityPlan | None:
    """The plan for a build about to start; None for text-only databases, and where rates were never measured here.

    Call it when the cluster is connected: its cores and GPUs are what the work is spread over.
    """
    rates = load_rates()
    if rates is None or dim is None or items == 0:
        return None
    encoder = config.encoder.model if config.encoder and not (source and source.has_embeddings) else None
    if encoder is not None and encoder not in rates.encoders:
        return None
    workload = Workload(
        rows=items,
        dim=dim,
        encoder=encoder,
        image_bytes=_mean_image_bytes(source),
        bm25=config.bm25.backend == "embedded",
        cores=num_cpus(),
        gpus=num_gpus(),
    )
    return plan_capacity(workload, config.vectors, rates)


def compare_with_plan(plan: CapacityPlan | None, manifest: Manifest, seconds: dict[str, float]) -> list[str]:
    """One line a quantity; a hint where there is no plan."""
    if plan is None:
        return ["no rates are known for this machine and encoder: `remembrandt plan` measures them, and builds compare"]
    sizes = {"rows": 0, "vectors": 0, "bm25": 0}
    for file in manifest.file_records:
        part = "rows" if file.path.startswith(ROWS) else file.path.split("/")[0]
        if part in sizes:
            sizes[part] += file.bytes
    outcome = Outcome(
        rows=manifest.rows,
        seconds=seconds,
        rows_bytes=sizes["rows"],
        vectors_bytes=sizes["vectors"],
        bm25_bytes=sizes["bm25"],
    )
    return compare(plan, outcome)


def _mean_image_bytes(source: Source | None) -> int:
    if source is None:
        return 0
    records = islice(source.read(source.blocks(_SAMPLED_ITEMS)[0]), _SAMPLED_ITEMS)
    sizes = [len(record.image or b"") for record in records]
    return round(sum(sizes) / len(sizes)) if sizes else 0
