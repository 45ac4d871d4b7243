"""cluster/grafana: the dashboard asks for metrics and labels that exist."""

import json
import re
from itertools import combinations
from typing import Any

import pytest

from tests.support.manifests import REPOSITORY

DASHBOARD = json.loads((REPOSITORY / "cluster" / "grafana" / "remembrandt.json").read_text())
OURS = {
    "ray_remembrandt_request_seconds": {"route", "status", "tenant"},
    "ray_remembrandt_stage_seconds": {"stage"},
    "ray_remembrandt_batch_size": {"model"},
    "ray_remembrandt_queue_length": {"model"},
    "ray_remembrandt_cache_hits_total": {"cache"},
    "ray_remembrandt_cache_misses_total": {"cache"},
    "ray_remembrandt_images_total": {"tenant", "model"},
}
"""Ray puts `ray_` before the names of its applications' metrics."""
RAYS = {"ray_node_cpu_utilization", "ray_node_mem_used", "ray_node_mem_total", "ray_node_gpus_utilization"}
OF_THE_POD = {"ray_io_cluster", "ray_io_group"}
"""Labels that the PodMonitor of k8s/components/monitoring adds."""
HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


EXPRESSIONS = {
    f"{panel['title']} {target['refId']}": target["expr"] for panel in panels() for target in panel["targets"]
}


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_a_query_names_metrics_and_labels_that_exist(expression: str) -> None:
    metrics = {HISTOGRAM.sub("", name) for name in re.findall(r"ray_(?!io_)\w+(?={)", expression)}
    assert metrics
    assert metrics <= OURS.keys() | RAYS

    known = set.union(OF_THE_POD, {"le"}, *(OURS.get(metric, set()) for metric in metrics))
    grouped = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(",")}
    filtered = set(re.findall(r"(\w+)=~", expression))
    assert grouped | filtered <= known


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_a_query_closes_what_it_opens(expression: str) -> None:
    closes, open_ = {")": "(", "]": "[", "}": "{"}, []
    for character in re.sub(r'"[^"]*"', "", expression):
        if character in closes.values():
            open_.append(character)
        elif character in closes:
            assert open_.pop() == closes[character]
    assert open_ == []


def test_every_metric_of_the_service_is_shown() -> None:
    text = " ".join(EXPRESSIONS.values())

    assert [metric for metric in OURS if metric not in text] == []


def test_a_label_in_a_legend_is_one_that_the_query_keeps() -> None:
    for panel in panels():
        for target in panel["targets"]:
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]), panel["title"]


def test_panels_lie_side_by_side() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for one, other in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y
