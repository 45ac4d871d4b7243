"""The service: `serve run services.app:build …`, or `serve deploy services/configs/<file>.yaml`."""

from pathlib import Path
from typing import Any

from ray import serve

from remembrandt.serving.config import parse_service
from remembrandt.serving.deployments import application


def build(args: dict[str, Any]) -> serve.Application:
    """The Serve application of a configuration's `args` (`remembrandt.serving.config.ServiceConfig`)."""
    gallery = Path(__file__).with_name("gallery")
    return application(parse_service(args), gallery if gallery.is_dir() else None)
