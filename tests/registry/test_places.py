"""Where MLflow may keep a release: S3 over HTTP, and a tracking server that hands out its own files."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from petl_ray.registry import RegistrySpec, register
from petl_ray.registry.package import verified_adapter
from petl_ray.registry.tracking import Tracking
from tests.plainstep import PlainStep
from tests.registry.conftest import make_adapter, make_report


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="releases")
    yield "s3://releases/mlflow"
    server.stop()


def test_a_release_is_kept_in_a_bucket(step: PlainStep, home: Path, tracking: str, bucket: str) -> None:
    step.services = {"tracking": tracking, "home": str(home)}
    adapter = make_adapter(step)
    spec = RegistrySpec(artifacts=bucket)
    release = register(spec, adapter, make_report(adapter), step=step)
    assert str(release.about["source"]).startswith("s3://releases/mlflow/")
    assert not (home / "mlartifacts").exists()
    mlflow = Tracking(tracking)
    version = mlflow.find("petl-ray.emails", adapter.digest)
    assert version is not None
    package = mlflow.download(version, "", home / "downloaded")
    assert verified_adapter(package).digest == adapter.digest


@pytest.fixture
def server(tmp_path: Path, mlflow_template: Path) -> Iterator[str]:
    """A tracking server with its artifact proxy on, in a process of its own."""
    shutil.copyfile(mlflow_template, tmp_path / "server.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--serve-artifacts"]
    command += ["--artifacts-destination", str(tmp_path / "served")]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    assert process.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, 15)
    process.wait(30)


@pytest.mark.long
def test_a_tracking_server_serves_the_files_itself(
    step: PlainStep, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step.services = {"tracking": server, "home": str(tmp_path / "home")}
    adapter = make_adapter(step)
    first = register(RegistrySpec(), adapter, make_report(adapter), step=step)
    again = register(RegistrySpec(), adapter, make_report(adapter), step=step)
    assert first == again
    assert capsys.readouterr() == ("", "")
    assert str(first.about["source"]).startswith("mlflow-artifacts:")
    mlflow = Tracking(server)
    version = mlflow.find("petl-ray.emails", adapter.digest)
    assert version is not None
    assert verified_adapter(mlflow.download(version, "", tmp_path / "downloaded")).digest == adapter.digest
    mlflow.point("petl-ray.emails", "champion", 1)
    assert mlflow.alias("petl-ray.emails", "champion") == 1
    assert mlflow.alias("petl-ray.nobody", "champion") is None
