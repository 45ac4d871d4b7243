"""Any S3 server. Endpoint, region and credentials come from the usual AWS environment and files (boto3's chain)."""

import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

import boto3
from botocore.client import BaseClient
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from pyarrow.fs import FileSystem, S3FileSystem

from remembrandt.errors import ConfigError, StorageError
from remembrandt.storage.store import ConflictError, Entry, Store

_ABSENT = {"404", "NoSuchKey", "NotFound"}
_CONFLICT = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_DENIED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403", "InvalidToken", "ExpiredToken"}


class S3Store(Store):
    """Objects below `s3://bucket/prefix`."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix.strip("/")
        self.uri = f"s3://{bucket}/{self.prefix}".rstrip("/")

    @classmethod
    def from_uri(cls, uri: str) -> "S3Store":
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise ConfigError(f"'{uri}' names no bucket: write s3://bucket/prefix")
        return cls(bucket, prefix)

    def __reduce__(self) -> tuple[type["S3Store"], tuple[str, str]]:
        return S3Store, (self.bucket, self.prefix)

    def child(self, *parts: str) -> "S3Store":
        return S3Store(self.bucket, "/".join([self.prefix, *parts]))

    def read(self, path: str) -> bytes:
        with self._explained("read", path):
            return cast(bytes, self._client.get_object(Bucket=self.bucket, Key=self._key(path))["Body"].read())

    def open(self, path: str) -> BinaryIO:
        with self._explained("read", path):
            size = self._client.head_object(Bucket=self.bucket, Key=self._key(path))["ContentLength"]
        return cast(BinaryIO, io.BufferedReader(_RangeReader(self, path, size), buffer_size=4 * 1024 * 1024))

    def write(self, path: str, data: bytes) -> None:
        with self._explained("write", path):
            self._client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data)

    def upload(self, source: Path, path: str) -> None:
        with self._explained("write", path):
            self._client.upload_file(str(source), self.bucket, self._key(path))

    def download(self, path: str, target: Path) -> None:
        temporary = target.parent / f".tmp-{uuid.uuid4().hex}"
        with self._explained("read", path):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._client.download_file(self.bucket, self._key(path), str(temporary))
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def files(self, prefix: str = "") -> list[Entry]:
        start = self._folder(prefix)
        below = len(self._folder(""))
        pages = self._pages("list", prefix, Prefix=start)
        return sorted(
            Entry(item["Key"][below:], item["Size"], f"{item['Size']}-{item['ETag'].strip(chr(34))}")
            for page in pages
            for item in page.get("Contents", [])
        )

    def folders(self, prefix: str = "") -> list[str]:
        start = self._folder(prefix)
        pages = self._pages("list", prefix, Prefix=start, Delimiter="/")
        return sorted(
            item["Prefix"][len(start) :].rstrip("/") for page in pages for item in page.get("CommonPrefixes", [])
        )

    def exists(self, path: str) -> bool:
        with self._explained("read", path):
            try:
                self._client.head_object(Bucket=self.bucket, Key=self._key(path))
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return False
                raise
            return True

    def delete(self, path: str) -> None:
        with self._explained("delete", path):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(path))

    def delete_tree(self, prefix: str) -> None:
        with self._explained("delete", prefix):
            for entry in self.files(prefix):
                self._client.delete_object(Bucket=self.bucket, Key=self._key(entry.path))

    def read_tagged(self, path: str) -> tuple[bytes, str] | None:
        with self._explained("read", path):
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=self._key(path))
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise
            return answer["Body"].read(), answer["ETag"]

    def replace(self, path: str, data: bytes, expected: str | None) -> None:
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        with self._explained("write", path):
            try:
                self._client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data, **condition)
            except ClientError as error:
                if _code(error) in _CONFLICT:
                    raise ConflictError(
                        f"{self.uri}/{path} was changed by somebody else meanwhile: look at it, then try again"
                    ) from None
                raise

    def local_path(self, path: str = "") -> None:
        return None

    def lance(self, path: str) -> tuple[str, dict[str, str]]:
        return f"{self.uri}/{path}", self._lance_options

    def arrow(self) -> tuple[FileSystem, str]:
        options = self._lance_options
        return S3FileSystem(
            access_key=options.get("aws_access_key_id"),
            secret_key=options.get("aws_secret_access_key"),
            session_token=options.get("aws_session_token"),
            region=options.get("aws_region"),
            endpoint_override=options.get("aws_endpoint"),
        ), f"{self.bucket}/{self.prefix}".rstrip("/")

    def check_writable(self) -> None:
        name = f".tmp-{uuid.uuid4().hex}"
        self.write(name, b"")
        self.delete(name)

    @cached_property
    def _client(self) -> Any:
        return _make_client()

    @cached_property
    def _lance_options(self) -> dict[str, str]:
        session = boto3.Session()
        credentials = session.get_credentials()
        client: BaseClient = self._client
        endpoint = client.meta.endpoint_url
        options = {"aws_region": client.meta.region_name}
        if credentials is not None:
            frozen = credentials.get_frozen_credentials()
            options |= {"aws_access_key_id": frozen.access_key, "aws_secret_access_key": frozen.secret_key}
            if frozen.token:
                options["aws_session_token"] = frozen.token
        if "amazonaws.com" not in endpoint:
            options["aws_endpoint"] = endpoint
            options["allow_http"] = str(endpoint.startswith("http://")).lower()
        return options

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}".strip("/")

    def _folder(self, prefix: str) -> str:
        key = self._key(prefix)
        return f"{key}/" if key else ""

    def _pages(self, action: str, path: str, **arguments: str) -> Iterator[dict[str, Any]]:
        with self._explained(action, path):
            paginator = self._client.get_paginator("list_objects_v2")
            yield from paginator.paginate(Bucket=self.bucket, **arguments)

    @contextmanager
    def _explained(self, action: str, path: str) -> Iterator[None]:
        place = f"{self.uri}/{path}".rstrip("/")
        try:
            yield
        except NoCredentialsError:
            raise StorageError(
                f"cannot {action} {place}: no AWS credentials; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from None
        except ClientError as error:
            code = _code(error)
            if code in _DENIED:
                remedy = (
                    f"the server refuses these credentials ({code}); check AWS_ACCESS_KEY_ID, "
                    "AWS_SECRET_ACCESS_KEY and the bucket's policy"
                )
            elif code == "NoSuchBucket":
                remedy = f"bucket '{self.bucket}' does not exist; create it first"
            elif code in _ABSENT:
                remedy = "it does not exist"
            else:
                remedy = f"the server answered {code}: {error.response['Error'].get('Message', '')}"
            raise StorageError(f"cannot {action} {place}: {remedy}") from error
        except BotoCoreError as error:
            raise StorageError(
                f"cannot {action} {place}: {' '.join(str(error).split())}; check AWS_ENDPOINT_URL"
            ) from error


def _make_client() -> Any:
    session = boto3.Session()
    config = BotoConfig(
        retries={"mode": "standard", "max_attempts": 6},
        connect_timeout=10,
        read_timeout=120,
        max_pool_connections=32,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session.client("s3", region_name=session.region_name or "us-east-1", config=config)


def _code(error: ClientError) -> str:
    return str(error.response["Error"]["Code"])


class _RangeReader(io.RawIOBase):
    """Seekable reads of one object, each an HTTP range."""

    def __init__(self, store: S3Store, path: str, size: int) -> None:
        self._store, self._path, self._size, self._position = store, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._position + len(view), self._size)
        if stop <= self._position:
            return 0
        with self._store._explained("read", self._path):
            answer = self._store._client.get_object(
                Bucket=self._store.bucket,
                Key=self._store._key(self._path),
                Range=f"bytes={self._position}-{stop - 1}",
            )
            data = answer["Body"].read()
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
