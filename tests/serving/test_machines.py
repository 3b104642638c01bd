"""A replica stands whole on one machine: what all machines have together does not help it."""

from __future__ import annotations

import pytest

from petl_ray.errors import CapacityError
from petl_ray.serving import ServeSpec
from petl_ray.serving.machines import check_machines, places

FOUR_SMALL = [{"CPU": 2.0}] * 4


def test_replicas_that_fit_the_cluster_and_none_of_its_machines_are_refused() -> None:
    check_machines(ServeSpec(replicas=2, cpus_per_replica=2), 2, FOUR_SMALL)
    with pytest.raises(CapacityError) as caught:
        check_machines(ServeSpec(replicas=1, cpus_per_replica=3), 1, FOUR_SMALL)
    assert str(caught.value) == (
        "serving.replicas: got 1 for each of 1 bases, with 3 cores on one machine; the cluster has room for 0 "
        "(cores and GPUs of its machines: 2 and 0, 2 and 0, 2 and 0, 2 and 0). Ask for fewer replicas, cores or GPUs."
    )


def test_every_base_needs_its_own_replicas() -> None:
    with pytest.raises(CapacityError, match="room for 4"):
        check_machines(ServeSpec(replicas=3, cpus_per_replica=2), 2, FOUR_SMALL)


def test_gpus_count_and_must_lie_beside_the_cores() -> None:
    spec = ServeSpec(cpus_per_replica=2, gpus_per_replica=1)
    check_machines(spec, 1, [{"CPU": 2, "GPU": 1}])
    with pytest.raises(CapacityError, match="with 2 cores and 1 GPUs on one machine"):
        check_machines(spec, 1, [{"CPU": 8}, {"CPU": 1, "GPU": 4}])


@pytest.mark.parametrize(("share", "held"), [(0.25, 8), (0.6, 2), (0.1, 20), (1, 2), (2, 1), (3, 0), (0, 100)])
def test_a_part_of_a_gpu_is_a_part_of_one_gpu(share: float, held: int) -> None:
    assert places(ServeSpec(gpus_per_replica=share), {"CPU": 100, "GPU": 2}) == held
