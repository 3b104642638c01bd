"""What a function answers on the machines of a placement, before anything is paid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from petl_ray.errors import CapacityError, DataError, PermanentError
from petl_ray.orchestration import Placement, ask, machines
from petl_ray.orchestration.placement import VerbResources
from petl_ray.verb import Resources

ON_RAY = Placement(name="test-ray", ray="auto", cpus=2)
ROOT = Path(__file__).parents[2]


def complain() -> None:
    raise DataError("rows", "none", "there is nothing to learn from", "Add one")


def stumble() -> None:
    raise KeyError("nobody foresaw this")


def told() -> str:
    """What this machine was told to say, and the GPUs that are seen on it."""
    return f"{os.environ['MACHINE']} sees {'GPU ' + gpus if (gpus := os.environ['CUDA_VISIBLE_DEVICES']) else 'no GPU'}"


@pytest.mark.parametrize("where", ["local", "none"])
def test_this_machine_answers_for_itself(where: str, ray_cluster: str) -> None:
    assert ask(Placement(ray=where), "train", "os:getpid") == [os.getpid()]


def test_a_cluster_answers_by_a_worker_even_while_all_its_cores_are_taken(ray_cluster: str, tmp_path: Path) -> None:
    import ray

    @ray.remote(num_cpus=2)
    class Greedy:
        def here(self) -> bool:
            return True

    greedy = Greedy.remote()
    assert ray.get(greedy.here.remote())
    (pid,) = ask(ON_RAY, "train", "os:getpid")
    ray.kill(greedy)
    assert pid != os.getpid()


def test_the_machines_of_a_placement_say_how_many_packs_share_one(ray_cluster: str) -> None:
    assert [machine["CPU"] for machine in machines(ON_RAY)] == [2.0]
    here = machines(Placement(ray="local", cpus=5))
    assert here == [{"CPU": 5.0}]
    assert [Resources(cpus=2, packs=packs).beside(here) for packs in (1, 2, 9)] == [1, 2, 2]
    two = [{"CPU": 2.0}, {"CPU": 8.0}]  # nine packs over both, and no more than eight on one
    assert (Resources(packs=9).beside(two), Resources(cpus=16).beside(two)) == (8, 1)


def test_a_cluster_without_what_the_verb_is_given_is_refused(ray_cluster: str) -> None:
    greedy = ON_RAY.model_copy(update={"verbs": {"train": VerbResources(cpus=2, gpus=1)}})
    with pytest.raises(CapacityError) as caught:
        ask(greedy, "train", "os:getpid")
    assert str(caught.value) == (
        "placement.verbs.train: asks for 2 cpus and 1 gpus on one machine; none of the cluster's 1 has them. "
        "Lower them, or choose a bigger placement."
    )
    assert len(ask(greedy, "evaluate", "os:getpid")) == 1


def test_an_error_there_is_an_error_here(ray_cluster: str) -> None:
    with pytest.raises(DataError) as caught:
        ask(ON_RAY, "train", f"{__name__}:complain")
    assert caught.value.do == "Add one"
    with pytest.raises(PermanentError, match=r"KeyError.*a machine cannot say"):
        ask(ON_RAY, "train", f"{__name__}:stumble")


PROGRAM = """
import json, os, ray
from ray.cluster_utils import Cluster
from petl_ray.orchestration import Placement, ask
from petl_ray.orchestration.placement import VerbResources

cluster = Cluster(head_node_args={"num_cpus": 0, "env_vars": {"MACHINE": "head"}})
hidden = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1", "CUDA_VISIBLE_DEVICES": "0"}
for name, more in (("plain", {}), ("fast", {"num_gpus": 1})):
    cluster.add_node(num_cpus=1, env_vars={"MACHINE": name, **hidden}, **more)

class Greedy:
    def here(self):
        return True

answers = []
for gpus in (0, 1):
    there = Placement(ray=cluster.address, cpus=1, verbs={"train": VerbResources(cpus=1, gpus=gpus)})
    answers.append(sorted(ask(there, "train", "tests.orchestration.test_asking:told")))
    if not gpus:
        greedy = ray.remote(num_cpus=1, num_gpus=1)(Greedy).remote()  # from now on the GPU is taken
        ray.get(greedy.here.remote())
print(json.dumps(answers))
ray.shutdown()
cluster.shutdown()
"""


def test_every_machine_that_could_hold_a_worker_answers_and_sees_its_gpus_though_they_are_taken() -> None:
    """A head without cores and two machines, one of them with a GPU; this Ray hides GPUs that nobody has reserved."""
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    without, with_gpu = json.loads(done.stdout.splitlines()[-1])
    assert without == ["fast sees no GPU", "plain sees no GPU"]
    assert with_gpu == ["fast sees GPU 0"]


AWAY = """
from petl_ray.errors import TemporaryError
from petl_ray.orchestration import Placement, ask
try:
    ask(Placement(ray="127.0.0.1:9"), "train", "os:getpid")
except TemporaryError as error:
    print(error)
"""


def test_a_cluster_that_is_away_is_said_to_be_so_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", AWAY], cwd=ROOT, capture_output=True, text=True, timeout=60)
    said = "Ray at 127.0.0.1:9: [Errno 111] Connection refused; no cluster answers there.\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
