"""The API as it says it is: requests made from its own description, and none of them breaks it."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from tests.support.service import Service

pytestmark = pytest.mark.ray


def test_no_request_that_the_description_allows_breaks_the_service(service: Service) -> None:
    app: Any = service.client.app
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    fuzzer = service.tenant("fuzzer", images_per_day=10**9, max_rows=0)
    broken: list[str] = []

    def check(case: Any) -> None:
        if isinstance(case.body, dict) and "steps" in case.body:
            case.body["steps"] = 1
        answer = case.call(session=service.client, headers={**(case.headers or {}), **fuzzer.headers})
        if answer.status_code >= 500 and answer.status_code not in (503, 504):
            broken.append(f"{case.method} {case.formatted_path} {case.body!r}: {answer.text[:200]}")
        if answer.status_code >= 400 and answer.status_code != 405:
            assert answer.json()["error"]["message"], answer.text

    for operation in schema.get_all_operations():
        strategy = operation.ok().as_strategy()
        limited = settings(
            max_examples=25, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        from hypothesis import given

        limited(given(case=strategy)(check))()
    assert not broken, "\n".join(broken[:10])
