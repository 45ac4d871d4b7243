"""Capacity planning: what a database of N rows will need, before anything is built."""

from remembrandt.databases.planning.capacity import (
    CapacityPlan,
    Outcome,
    PodRequest,
    Workload,
    compare,
    cost_table,
    plan_capacity,
)
from remembrandt.databases.planning.measure import measure_rates
from remembrandt.databases.planning.rates import EncoderRate, Rates, load_rates, save_rates

__all__ = [
    "CapacityPlan",
    "EncoderRate",
    "Outcome",
    "PodRequest",
    "Rates",
    "Workload",
    "compare",
    "cost_table",
    "load_rates",
    "measure_rates",
    "plan_capacity",
    "save_rates",
]
