"""A real S3 server: SeaweedFS, one process, one identity."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.processes import Server, free_ports, listens

BUCKET = "tests"
_PROBE_BUCKET = "probe"
REGION = "us-east-1"


@dataclass(frozen=True)
class S3Settings:
    """Address and credentials, fixed before the server runs so that processes started earlier know them too."""

    port: int
    access_key: str = "test-access-key"
    secret_key: str = "test-secret-key"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The AWS variables by which boto3, Arrow and Lance find the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


class SeaweedServer(Server):
    """`weed server` with master, volume, filer and S3 in one process. Data outlives `kill` and `restart`."""

    def __init__(self, folder: Path, settings: S3Settings) -> None:
        self.settings = settings
        data = folder / "data"
        data.mkdir(parents=True)
        identities = folder / "identities.json"
        identities.write_text(json.dumps(_identities(settings)))
        self._ports = [settings.port, *free_ports(7)]
        super().__init__(_command(data, identities, self._ports), folder / "weed.log", self._answers)

    def kill(self) -> None:
        super().kill()
        for socket in (socket for port in self._ports for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")):
            socket.unlink(missing_ok=True)

    def client(self):
        """A boto3 client with the server's credentials."""
        return boto3.client(
            "s3",
            endpoint_url=self.settings.endpoint,
            aws_access_key_id=self.settings.access_key,
            aws_secret_access_key=self.settings.secret_key,
            region_name=REGION,
        )

    def _answers(self) -> bool:
        """Whether objects can be written, and old ones read: the port opens seconds before the volumes are known."""
        if not listens(self.settings.port):
            return False
        client = self.client()
        try:
            buckets = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            for name in (BUCKET, _PROBE_BUCKET):
                if name not in buckets:
                    client.create_bucket(Bucket=name)
            for entry in client.list_objects_v2(Bucket=_PROBE_BUCKET).get("Contents", []):
                client.get_object(Bucket=_PROBE_BUCKET, Key=entry["Key"])["Body"].read()
            client.put_object(Bucket=_PROBE_BUCKET, Key="probe", Body=b"x" * 4096)
        except (BotoCoreError, ClientError):
            return False
        return True


def _identities(settings: S3Settings) -> dict[str, object]:
    return {
        "identities": [
            {
                "name": "tests",
                "credentials": [{"accessKey": settings.access_key, "secretKey": settings.secret_key}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }


def _command(data: Path, identities: Path, ports: list[int]) -> list[str]:
    s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = ports
    return [
        _weed(),
        f"-logdir={data.parent}",
        "server",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={data}",
        f"-master.port={master}",
        f"-master.port.grpc={master_grpc}",
        "-master.volumeSizeLimitMB=256",
        "-master.telemetry=false",
        # A restarted single master waits out an election: the default costs 15 seconds.
        "-master.electionTimeout=1s",
        "-master.heartbeatInterval=100ms",
        f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}",
        "-volume.max=500",
        "-volume.preStopSeconds=0",
        "-filer",
        f"-filer.port={filer}",
        f"-filer.port.grpc={filer_grpc}",
        "-s3",
        f"-s3.port={s3}",
        f"-s3.port.grpc={s3_grpc}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={identities}",
    ]


def _weed() -> str:
    beside_python = Path(sys.executable).parent / "weed"
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    assert found, "the command `weed` is missing: install the dev group (make test does)"
    return found
