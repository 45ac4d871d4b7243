"""Vector indexes: planned, trained once, built in shards anywhere, searched as one."""

from remembrandt.databases.vectors.building import build_shard, train_index
from remembrandt.databases.vectors.config import Device, VectorConfig, VectorPlan
from remembrandt.databases.vectors.exact import exact_search
from remembrandt.databases.vectors.index import VectorIndex
from remembrandt.databases.vectors.plan import plan_vectors
from remembrandt.databases.vectors.shards import ShardFile
from remembrandt.databases.vectors.tuning import RecallReport, recall_at, tune

__all__ = [
    "Device",
    "RecallReport",
    "ShardFile",
    "VectorConfig",
    "VectorIndex",
    "VectorPlan",
    "build_shard",
    "exact_search",
    "plan_vectors",
    "recall_at",
    "train_index",
    "tune",
]
