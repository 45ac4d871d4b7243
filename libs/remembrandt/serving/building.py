"""A build of a tenant's database, as a Ray job: `python -m remembrandt.serving.building <job> <service as JSON>`."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from remembrandt.configuration import parse_config
from remembrandt.data.sources.images import IMAGE_EXTENSIONS
from remembrandt.data.sources.listing import list_files
from remembrandt.databases.build import build_database
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.config import BuildConfig
from remembrandt.distributed import plain_error
from remembrandt.errors import RemembrandtError
from remembrandt.progress import Progress, watch
from remembrandt.serving.accounts import Accounts, JobEntry, TenantDatabases
from remembrandt.serving.config import ServiceConfig, parse_service
from remembrandt.storage import open_store

# An index takes less than this beside the pictures themselves; what it took is settled when it is built.
INDEX_BYTES_A_ROW = 4_096


def build_config(uri: str, spec: dict[str, Any], service: ServiceConfig) -> BuildConfig:
    """What is to be built.

    Args:
        spec: of the job: `source`, a folder of images, `exclude_ids`, `append`.
    """
    source = spec.get("source")
    return parse_config(
        BuildConfig,
        {
            "uri": uri,
            "source": None if source is None else {"kind": "images", "uri": source},
            "base": "current" if spec.get("append") else None,
            "exclude": {"ids": spec.get("exclude_ids", [])},
            "encoder": service.encoder.model_dump(mode="json"),
            "decode": service.uploads.decode.model_dump(mode="json"),
            "workers": {"encoder_cpus": service.build_cpus / 2, "task_cpus": service.build_cpus / 2, "encoders": 1},
        },
        "build",
    )


def run(job_id: str, service: ServiceConfig) -> None:
    """Builds, publishes, and puts on record how it went. Called again after a kill, it goes on."""
    accounts = Accounts(service.accounts_url, migrate=False)
    databases = TenantDatabases(accounts)
    job = databases.find_job(None, job_id)
    if job is None or job.state not in ("queued", "running"):
        return
    uri, source = job.spec["uri"], job.spec.get("source")
    watch(lambda progress: _report(databases, job_id, progress))
    try:
        if source is not None and not job.spec.get("staged"):
            databases.reserve(job_id, *_needed(source))
        build_database(build_config(uri, dict(job.spec), service))
        catalog = Catalog.open(uri)
        live = catalog.live_manifest()
        databases.finish_job(
            job_id, live.version, live.rows, sum(catalog.manifest(v).total_bytes for v in catalog.versions())
        )
    except Exception as error:
        _fail(databases, job, plain_error(error))
        raise
    remove_staged(job.spec)


def _needed(source: str) -> tuple[int, int]:
    """Rows and bytes of a database of all images below a URI."""
    files = list_files(source, tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)).files
    return len(files), sum(file.bytes for file in files) + len(files) * INDEX_BYTES_A_ROW


def remove_staged(spec: Mapping[str, Any]) -> None:
    """Removes the upload that a build was to read, if it was one; a source by URI is not ours."""
    if spec.get("staged"):
        open_store(spec["source"]).delete_tree("")


def _report(databases: TenantDatabases, job_id: str, progress: Progress) -> None:
    databases.report(job_id, progress.what, progress.done, progress.total, progress.rate)


def _fail(databases: TenantDatabases, job: JobEntry, error: BaseException) -> None:
    """The tenant reads this: it names no place in our storage, and nothing that is not the tenant's own mistake."""
    if isinstance(error, RemembrandtError):
        message = str(error)
        for place in filter(None, (job.spec.get("source"), job.spec["uri"])):
            message = message.replace(place, "the upload" if place == job.spec.get("source") else "the database")
    else:
        message = "the build failed in a way that is not yours to mend: tell whoever runs this service the job's id"
    databases.fail_job(job.id, message)
    remove_staged(job.spec)


if __name__ == "__main__":
    from remembrandt.entry import one_line_errors

    with one_line_errors():
        run(sys.argv[1], parse_service(json.loads(sys.argv[2])))
