"""Serving end to end on Ray Serve: real processes, real HTTP, a promotion under load, a lost replica."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from sqlalchemy import delete

from petl_ray.errors import AdapterError, CapacityError, ConflictError, NotFoundError, TemporaryError
from petl_ray.models import LoadedBase
from petl_ray.serving import ServeSpec, deploy
from petl_ray.serving.client import complete, models, predict
from petl_ray.serving.names import Catalogue, Model
from petl_ray.store import open_database
from petl_ray.store.tables import names
from tests.plainstep import PlainStep
from tests.serving.world import TEXTS, World


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Site:
    """A deployed world and its endpoint."""

    def __init__(self, world: World, spec: ServeSpec, step: PlainStep) -> None:
        self.world, self.spec, self.step = world, spec, step
        self.adapters = {
            "urgency": world.adapter("urgency", ("no", "yes"), seed=1),
            "reviews": world.adapter("reviews", ("bad", "good", "so-so"), seed=2, method="bottleneck"),
        }
        self.releases = [world.promote(adapter, 1) for adapter in self.adapters.values()]
        self.endpoint = deploy(spec, *self.releases, step=step)
        assert self.endpoint.kind == "endpoint"
        self.url = self.endpoint.url


@pytest.fixture(scope="module")
def site(ray_cluster: str, bert_base: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from petl_ray.serving.on_ray import stop

    world = World(tmp_path_factory.mktemp("served"), bert_base)
    step = PlainStep(world.root / "steps", services=world.services)
    try:
        yield Site(world, ServeSpec(port=_free_port(), follow_s=0.5), step)
    finally:
        stop()


def test_two_tasks_are_answered_by_their_own_adapters_over_http(site: Site) -> None:
    assert site.endpoint.adapters == {task: adapter.digest for task, adapter in site.adapters.items()}
    for task, adapter in site.adapters.items():
        answers = predict(site.url, task, TEXTS)
        for answer, logits in zip(answers, site.world.expected(adapter, TEXTS), strict=True):
            scores = torch.tensor(list(answer["scores"].values()))
            torch.testing.assert_close(scores, logits.softmax(-1), atol=1e-5, rtol=0)
            assert answer["provenance"]["adapter"] == adapter.digest
            assert answer["provenance"]["base"] == site.world.base.digest
    assert [row["id"] for row in models(site.url)] == ["reviews", "urgency"]


def test_unknown_and_impossible_requests_come_back_as_the_errors_they_are(site: Site) -> None:
    with pytest.raises(NotFoundError, match="Choose urgency"):
        predict(site.url, "urgancy", ["x"])
    reply = httpx.post(f"{site.url}/v1/classify", json={"model": "urgency", "inputs": [1]})
    assert reply.status_code == 422
    with pytest.raises(TemporaryError, match="petl-ray serve"):
        predict(f"http://127.0.0.1:{_free_port()}", "urgency", ["x"])


def test_deploying_the_same_again_changes_nothing_and_is_quick(site: Site) -> None:
    before = len([event for event, _ in site.step.events if event == "serve.start"])
    assert deploy(site.spec, *site.releases, step=site.step) == site.endpoint
    assert len([event for event, _ in site.step.events if event == "serve.start"]) == before == 1


def test_a_promotion_under_load_fails_no_request_and_mixes_no_versions(site: Site) -> None:
    world, old = site.world, site.adapters["urgency"]
    new = world.adapter("urgency", ("no", "yes"), seed=11)
    expected = {adapter.digest: world.expected(adapter, TEXTS) for adapter in (old, new)}
    done, failures, seen = threading.Event(), [], []

    def asking() -> None:
        with httpx.Client(base_url=site.url, timeout=30) as client:
            while not done.is_set():
                reply = client.post("/v1/classify", json={"model": "urgency", "inputs": list(TEXTS)})
                if reply.status_code != 200:
                    failures.append(reply.text)
                    continue
                digest = reply.json()["provenance"]["adapter"]
                seen.append(digest)
                for output, logits in zip(reply.json()["outputs"], expected[digest], strict=True):
                    if not torch.allclose(torch.tensor(list(output["scores"].values())), logits.softmax(-1), atol=1e-5):
                        failures.append(f"{digest} answered with other weights")

    clients = [threading.Thread(target=asking) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        for version, adapter in ((2, new), (3, old), (4, new)):
            asked = len(seen)
            release = world.promote(adapter, version)
            endpoint = deploy(site.spec, release, step=site.step)
            assert endpoint.adapters == {"urgency": adapter.digest}
            while len(seen) < asked + 20:
                time.sleep(0.02)
    finally:
        done.set()
        for client in clients:
            client.join()
    assert failures == []
    assert set(seen) == {old.digest, new.digest}
    assert predict(site.url, f"urgency@{old.digest}", TEXTS[:1])[0]["provenance"]["adapter"] == old.digest


def test_gateways_follow_a_promotion_by_themselves(site: Site) -> None:
    adapter = site.world.adapter("reviews", ("bad", "good", "so-so"), seed=21)
    site.world.promote(adapter, 2)
    until = time.monotonic() + 60
    while predict(site.url, "reviews", TEXTS[:1])[0]["provenance"]["adapter"] != adapter.digest:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_deploying_a_hostile_champion_is_an_error_and_the_old_one_goes_on_answering(site: Site) -> None:
    def other_answers(directory: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = directory / "golden.safetensors"
        tensors = load_file(path)
        save_file({**tensors, "logits": tensors["logits"] + 1}, path)

    before = predict(site.url, "urgency", TEXTS)
    neighbours = predict(site.url, "reviews", TEXTS)
    release = site.world.promote(site.world.adapter("urgency", seed=31, spoil=other_answers), 9)
    with pytest.raises(AdapterError, match="golden answers alone"):
        deploy(site.spec, release, step=site.step)
    assert predict(site.url, "urgency", TEXTS) == before
    assert predict(site.url, "reviews", TEXTS) == neighbours
    good = Catalogue(site.world.services["database"]).find(Model("urgency", before[0]["provenance"]["adapter"]))
    site.world.promote(good.adapter, 10, action="rollback")
    assert deploy(site.spec, release, step=site.step).adapters == {"urgency": good.digest}


def test_a_lost_replica_is_replaced_and_answers_with_the_same_adapters(site: Site) -> None:
    before = predict(site.url, "reviews", TEXTS)
    [pid] = _replica_pids()
    os.kill(pid, signal.SIGKILL)
    assert predict(site.url, "reviews", TEXTS, timeout_s=120) == before
    assert _replica_pids() != [pid]


def _replica_pids() -> list[int]:
    from ray import serve
    from ray._private.worker import global_worker
    from ray.util.state import list_actors

    dashboard = global_worker.node.webui_url  # this cluster's: other clusters may be up on this machine
    bases = [name for name in serve.status().applications if name.startswith("petl-ray-base-")]
    alive = list_actors(address=f"http://{dashboard}", filters=[("state", "=", "ALIVE")])
    return [actor.pid for actor in alive for base in bases if actor.class_name == f"ServeReplica:{base}:BankReplica"]


def test_another_base_comes_and_goes_without_touching_the_first(site: Site, llama_base: LoadedBase) -> None:
    other = World(site.world.root, llama_base, site.world.clock)
    release = other.promote(other.adapter("dates", seed=1), 1)
    [pid] = _replica_pids()
    assert deploy(site.spec, release, step=site.step).adapters == {"dates": release.adapter.digest}
    assert pid in (both := _replica_pids()) and len(both) == 2
    [answer] = complete(site.url, "dates", ["my order is"], max_tokens=3)
    assert answer["provenance"]["base"] == llama_base.digest
    assert predict(site.url, "reviews", TEXTS[:1])[0]["provenance"]["base"] == site.world.base.digest
    with open_database(site.world.services["database"]).begin() as connection:
        connection.execute(delete(names).where(names.c.task == "dates"))
    deploy(site.spec, *site.releases, step=site.step)
    until = time.monotonic() + 60
    while _replica_pids() != [pid]:
        assert time.monotonic() < until
        time.sleep(0.1)
    with pytest.raises(NotFoundError, match="no task of that name"):
        complete(site.url, "dates", ["x"])


def test_another_address_on_the_same_cluster_is_a_conflict(site: Site) -> None:
    spec = site.spec.model_copy(update={"port": _free_port()})
    with pytest.raises(ConflictError, match="already runs on this cluster"):
        deploy(spec, *site.releases, step=site.step)


def test_more_cores_or_names_than_there_are_is_refused_before_anything_starts(site: Site) -> None:
    with pytest.raises(CapacityError, match="room for 2"):
        deploy(site.spec.model_copy(update={"replicas": 3}), *site.releases, step=site.step)
    with pytest.raises(CapacityError, match="Set it to 2 or more"):
        deploy(site.spec.model_copy(update={"max_adapters": 1}), *site.releases, step=site.step)


def test_a_port_that_is_taken_is_found_before_anything_starts(tmp_path: Path) -> None:
    from petl_ray.serving.on_ray import local_serving

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        spec = ServeSpec(port=holder.getsockname()[1])
        with pytest.raises(ConflictError, match="Address already in use"), local_serving(spec, {}):
            pass


@pytest.mark.long
def test_a_server_of_its_own_answers_until_it_is_interrupted_and_leaves_nothing_behind(world: World) -> None:
    world.promote(world.adapter("urgency", seed=1), 1)
    port = _free_port()
    code = """
import json, signal, sys
from petl_ray.serving import ServeSpec
from petl_ray.serving.on_ray import local_serving
try:
    with local_serving(ServeSpec(port=int(sys.argv[2])), json.loads(sys.argv[1]), cpus=2) as endpoint:
        print(endpoint.url, flush=True)
        signal.pause()
except KeyboardInterrupt:
    sys.exit(130)
"""
    command = [sys.executable, "-c", code, json.dumps(world.services), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert url == f"http://127.0.0.1:{port}"
            assert len(predict(url, "urgency", TEXTS)) == len(TEXTS)
            server.send_signal(signal.SIGINT)
            rest, _ = server.communicate(timeout=60)
        except BaseException:
            server.kill()  # or the end of the block waits for it
            raise
    assert (server.returncode, rest) == (130, "")
    with pytest.raises(TemporaryError, match="no server is running"):
        predict(url, "urgency", TEXTS)


def test_nothing_promoted_is_nothing_to_serve(ray_cluster: str, tmp_path: Path) -> None:
    services = {"database": f"sqlite:///{tmp_path / 'journal.db'}", "store": str(tmp_path), "home": str(tmp_path)}
    step = PlainStep(tmp_path / "steps", services=services)
    with pytest.raises(NotFoundError, match="no adapter has been promoted"):
        deploy(ServeSpec(port=_free_port()), step=step)
