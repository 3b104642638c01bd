"""Stores that are lossy, away, forbidden or full: the right kind of error, and never a wrong answer."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from petl_ray.errors import CapacityError, NotFoundError, PermanentError, TemporaryError
from petl_ray.store import open_store
from tests.store.proxy import LossyProxy


def test_a_create_whose_reply_is_lost_was_ours(s3_url: str, lossy: LossyProxy) -> None:
    lossy.drop_replies = 1
    assert open_store(s3_url).create("record", b"mine") == b"mine"
    assert lossy.puts > 1, "the reply was dropped, so there was a second attempt"


def test_a_create_whose_replies_are_all_lost_is_read_back(s3_url: str, lossy: LossyProxy) -> None:
    lossy.drop_replies = 1000
    assert open_store(s3_url).create("record", b"mine") == b"mine"


def test_a_lost_reply_does_not_hide_that_another_won(s3_url: str, lossy: LossyProxy) -> None:
    store = open_store(s3_url)
    store.create("record", b"theirs")
    lossy.drop_replies = 1000
    assert store.create("record", b"mine") == b"theirs"


@pytest.mark.parametrize("dropped", [1, 1000])
def test_a_replacement_whose_reply_is_lost_was_ours(s3_url: str, lossy: LossyProxy, dropped: int) -> None:
    store = open_store(s3_url)
    store.create("record", b"torn")
    lossy.drop_replies = dropped
    assert store.replace("record", b"torn", b"mine") == b"mine"


def test_objects_survive_lost_replies(s3_url: str, lossy: LossyProxy, tmp_path: Path) -> None:
    store = open_store(s3_url)
    lossy.drop_replies = 2
    sha256 = store.put_bytes(b"x" * 1000)
    store.get(sha256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"x" * 1000


def test_a_body_that_breaks_off_is_a_temporary_error(s3_url: str, lossy: LossyProxy, tmp_path: Path) -> None:
    store = open_store(s3_url)
    sha256 = store.put_bytes(b"x" * 100_000)
    lossy.cut_bodies = True
    with pytest.raises(TemporaryError):
        store.get(sha256, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    lossy.cut_bodies = False
    store.get(sha256, tmp_path / "copy")


@pytest.mark.parametrize(
    ("status", "kind"), [(503, TemporaryError), (500, TemporaryError), (507, CapacityError), (403, PermanentError)]
)
def test_what_the_server_says_is_understood(s3_url: str, lossy: LossyProxy, status: int, kind: type[Exception]) -> None:
    store = open_store(s3_url)
    lossy.fail_with = status
    for act in (lambda: store.write("a", b""), lambda: store.create("a", b""), lambda: store.has("0" * 64, 1)):
        with pytest.raises(kind):
            act()


def test_a_server_that_is_gone_is_a_temporary_error(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(TemporaryError, match="the store is away"):
        open_store(s3_url).read("a")


def test_a_bucket_that_is_not_there_is_named(s3_url: str, tmp_path: Path) -> None:
    store = open_store("s3://no-such-bucket-anywhere")
    for act in (lambda: store.put_bytes(b"x"), lambda: store.create("a", b""), lambda: store.list("")):
        with pytest.raises(NotFoundError, match="there is no bucket 'no-such-bucket-anywhere'"):
            act()


def test_missing_credentials_are_named(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    with pytest.raises(PermanentError, match="Set AWS_ACCESS_KEY_ID"):
        open_store(s3_url).write("a", b"")


def test_a_client_is_not_carried_into_a_forked_process(s3_url: str) -> None:
    store = open_store(s3_url)
    store.write("a", b"parent")
    child = os.fork()
    if child == 0:
        done = 1
        try:
            store.write("b", b"child")
            done = 0
        finally:
            os._exit(done)
    assert os.waitpid(child, 0)[1] == 0
    assert store.read("b") == b"child"


@pytest.fixture
def tiny_disk() -> Iterator[Path]:
    """A real file system of 256 KiB in memory; skips where it may not be mounted."""
    with tempfile.TemporaryDirectory() as directory:
        mount = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "none", directory], capture_output=True, check=False
        )
        if mount.returncode:
            pytest.skip("may not mount a small file system here")
        yield Path(directory)
        subprocess.run(["umount", directory], check=True)


def test_a_full_disk_is_a_capacity_error_and_leaves_nothing(tiny_disk: Path, tmp_path: Path) -> None:
    store = open_store(str(tiny_disk / "store"))
    kept = store.put_bytes(b"small")
    (tmp_path / "large").write_bytes(os.urandom(1 << 20))
    acts = [
        lambda: store.put(tmp_path / "large"),
        lambda: store.create("record", b"x" * (1 << 20)),
        lambda: store.write("record", b"x" * (1 << 20)),
    ]
    for act in acts:
        with pytest.raises(CapacityError, match="no space left on device"):
            act()
    assert store.list("") == [f"objects/{kept[:2]}/{kept}"]
    assert store.read("record") is None
    assert store.create("record", b"fits") == b"fits"


def test_a_full_disk_under_the_fetched_files_is_a_capacity_error(tiny_disk: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    sha256 = store.put_bytes(os.urandom(1 << 20))
    with pytest.raises(CapacityError):
        store.get(sha256, tiny_disk / "copy")
    assert list(tiny_disk.iterdir()) == []


def test_a_file_size_limit_is_a_capacity_error(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from petl_ray.store import open_store\n"
        "from petl_ray.errors import CapacityError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "store = open_store(sys.argv[1])\n"
        "try: store.put_bytes(b'x' * 10000)\n"
        "except CapacityError as error: print('full:', error); print(store.list(''))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("full: store ")
    assert done.stdout.endswith("[]\n")


def test_a_directory_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    """As somebody who is not root, since root may write everywhere."""
    tmp_path.chmod(0o755)
    code = (
        "import os, sys\n"
        "from petl_ray.store import open_store, open_database\n"
        "from petl_ray.errors import PermanentError\n"
        "open_store(sys.argv[1]).put_bytes(b''); open_database('sqlite:///' + sys.argv[1] + '/journal.db')\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "for act in (lambda: open_store('/proc/store').create('a', b''), lambda: open_store('/store').put_bytes(b''),\n"
        "            lambda: open_database('sqlite:////journal/j.db'), lambda: open_database('sqlite:////journal.db')):\n"
        "    try: act()\n"
        "    except PermanentError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stdout
    assert all(line.startswith("PermanentError") for line in lines)
    assert "this process may not write there" in lines[1]


def test_a_read_only_file_system_is_refused(tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(PermanentError, match="read-only file system; this process may not write there"):
        open_store(str(tiny_disk / "store")).create("a", b"")


def test_a_file_in_the_way_of_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a directory")
    with pytest.raises(PermanentError):
        open_store(str(tmp_path / "store")).create("a", b"")
