"""A store in an S3 bucket: conditional writes (`If-None-Match: *`), checksums on the way, replies that may get lost.

Endpoint, region and credentials come from the environment, as boto3 reads them. The server must honour conditional
writes, as AWS S3, MinIO, Ceph and R2 do.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as NoConnectionError

from petl_ray.errors import CapacityError, NotFoundError, PermanentError, PetlRayError, TemporaryError
from petl_ray.fingerprint import sha256_file
from petl_ray.store.keys import checked_key, object_key
from petl_ray.store.verified import CHUNK_BYTES, write_verified

_CONFIG = Config(
    connect_timeout=5,
    read_timeout=60,
    retries={"mode": "standard", "total_max_attempts": 3},
    s3={"addressing_style": "path"},
)
_CREATE_ATTEMPTS = 4
_ABSENT = {"NoSuchKey", "404", "NotFound"}
_TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_FULL = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "507", "EntityTooLarge"}
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestLimitExceeded", "TooManyRequests"}
_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403", "401"}


class S3Store:
    """See `petl_ray.store.objects.Store`. One client a process; single uploads, so objects end at 5 GiB."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self._lock = threading.Lock()
        self._clients: dict[int, Any] = {}  # by process: a client does not survive a fork

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def put(self, path: Path) -> tuple[str, int]:
        try:
            sha256, size_bytes = sha256_file(path), path.stat().st_size
            if self._size_bytes(sha256) != size_bytes:
                with path.open("rb") as body:
                    self._put(object_key(sha256), body, sha256)
        except OSError as error:
            raise PermanentError(f"file {path}", str(error.strerror).lower(), "it cannot be read") from error
        return sha256, size_bytes

    def put_bytes(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        if self._size_bytes(sha256) != len(data):
            self._put(object_key(sha256), data, sha256)
        return sha256

    def get(self, sha256: str, target: Path) -> None:
        with self._failures():
            try:
                body = self._client().get_object(Bucket=self.bucket, Key=self._key(object_key(sha256)))["Body"]
            except ClientError as error:
                if _code(error) in _ABSENT:
                    raise NotFoundError(
                        f"object {sha256[:12]}…", "not in the store", f"{self.url} has none", sha256=sha256
                    ) from None
                raise
            with contextlib.closing(body):
                write_verified(body.iter_chunks(CHUNK_BYTES), sha256, target)

    def has(self, sha256: str, size_bytes: int) -> bool:
        return self._size_bytes(sha256) == size_bytes

    def discard(self, sha256: str) -> None:
        """See Store. An empty object takes its place, for not every server deletes on a condition."""
        digest = hashlib.sha256()
        with self._failures():
            try:
                found = self._client().get_object(Bucket=self.bucket, Key=self._key(object_key(sha256)))
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return
                raise
            with contextlib.closing(found["Body"]) as body:
                for piece in body.iter_chunks(CHUNK_BYTES):
                    digest.update(piece)
        if digest.hexdigest() != sha256:
            with contextlib.suppress(ClientError):  # somebody has kept it anew
                self._put(object_key(sha256), b"", hashlib.sha256().hexdigest(), IfMatch=found["ETag"])

    def create(self, key: str, data: bytes) -> bytes:
        """See Store. A write that was answered by 412, by 409 or not at all may still have been ours: read back."""
        for _ in range(_CREATE_ATTEMPTS):
            lost: TemporaryError | None = None
            try:
                self._put(checked_key(key), data, hashlib.sha256(data).hexdigest(), IfNoneMatch="*")
                return data
            except ClientError:  # taken: only conditional writes let it through
                pass
            except TemporaryError as error:
                lost = error
            standing = self.read(key)
            if standing is not None:
                return standing
        raise lost or TemporaryError(f"store {self.url}", f"{key} is being written by others", "no write came to stand")

    def replace(self, key: str, old: bytes, new: bytes) -> bytes | None:
        """See Store. As in `create`, what was answered by an error may still have been ours: read back."""
        standing, tag = self._tagged(key)
        if standing != old:
            return standing
        try:
            self._put(checked_key(key), new, hashlib.sha256(new).hexdigest(), IfMatch=tag)
            return new
        except ClientError:  # other bytes stand, or none
            return self.read(key)
        except TemporaryError:
            if (standing := self.read(key)) == old:
                raise
            return standing

    def read(self, key: str) -> bytes | None:
        return self._tagged(key)[0]

    def _tagged(self, key: str) -> tuple[bytes | None, str]:
        """The bytes under `key`, and the tag by which the server knows them again."""
        with self._failures():
            try:
                found = self._client().get_object(Bucket=self.bucket, Key=self._key(key))
                return bytes(found["Body"].read()), str(found["ETag"])
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return None, ""
                raise

    def write(self, key: str, data: bytes) -> None:
        self._put(key, data, hashlib.sha256(data).hexdigest())

    def list(self, prefix: str) -> list[str]:
        with self._failures():
            pages = self._client().get_paginator("list_objects_v2")
            found = [
                entry["Key"].removeprefix(self.prefix)
                for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
                for entry in page.get("Contents", [])
            ]
        return sorted(found)

    def delete(self, key: str) -> None:
        with self._failures():
            self._client().delete_object(Bucket=self.bucket, Key=self._key(key))

    def _key(self, key: str) -> str:
        return self.prefix + checked_key(key)

    def _client(self) -> Any:
        with self._lock:
            process = os.getpid()
            if process not in self._clients:
                self._clients = {process: boto3.session.Session().client("s3", config=_CONFIG)}
            return self._clients[process]

    def _size_bytes(self, sha256: str) -> int | None:
        with self._failures():
            try:
                answer = self._client().head_object(Bucket=self.bucket, Key=self._key(object_key(sha256)))
                return int(answer["ContentLength"])
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise

    def _put(self, key: str, body: Any, sha256: str, **condition: Any) -> None:
        """Upload; the server refuses other bytes than those of `sha256`. A failed `condition` stays a ClientError."""
        checksum = b64encode(bytes.fromhex(sha256)).decode()
        with self._failures(taken=bool(condition)):
            self._client().put_object(
                Bucket=self.bucket, Key=self._key(key), Body=body, ChecksumSHA256=checksum, **condition
            )

    @contextlib.contextmanager
    def _failures(self, taken: bool = False) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            if taken and _code(error) in _TAKEN | _ABSENT:
                raise
            raise self._translated(error) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise PermanentError(
                f"store {self.url}", str(error), do="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
            ) from error
        except (NoConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError) as error:
            raise TemporaryError(f"store {self.url}", str(error), "the store is away", "Check its endpoint") from error
        except BotoCoreError as error:
            raise PermanentError(f"store {self.url}", str(error)) from error

    def _translated(self, error: ClientError) -> PetlRayError:
        code, status = _code(error), int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))
        what, found = f"store {self.url}", f"{code} (HTTP {status})"
        if code == "NoSuchBucket":
            return NotFoundError(what, found, f"there is no bucket {self.bucket!r}", "Create it, or name another")
        if code in _FULL or status == 507:
            return CapacityError(what, found, "the store takes no more", "Free space or use another store")
        if code in _REFUSED or status in (401, 403):
            return PermanentError(what, found, "these credentials may not do this", "Check keys, policy and bucket")
        if code in _BUSY or status >= 500 or status in (409, 429):
            return TemporaryError(what, found, "the store is busy")
        return PermanentError(what, found, str(error.response["Error"].get("Message", "")))


def _code(error: ClientError) -> str:
    return str(error.response["Error"].get("Code", ""))
