"""Gateway, HTTP face and replicas together in one process, with real adapters over a real base and no Ray."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import torch

from petl_ray.bank import ServingBank
from petl_ray.methods import read_adapter
from tests.serving.site import SPEC, Site, play
from tests.serving.world import TEXTS, World


def test_mixed_requests_get_what_each_adapter_answers_alone(world: World) -> None:
    adapters = {
        "urgency": world.adapter("urgency", ("no", "yes"), seed=1),
        "reviews": world.adapter("reviews", ("bad", "good", "so-so"), seed=2, method="bottleneck"),
        "routing": world.adapter("routing", tuple("abcdefgh"), seed=3, method="head"),
    }
    for adapter in adapters.values():
        world.promote(adapter, 7)
    expected = {task: world.expected(adapter, TEXTS) for task, adapter in adapters.items()}

    async def scene(site: Site) -> None:
        assert (await site.settled())["status"] == "ready"
        rounds = [task for task in adapters for _ in range(4)]
        replies = await asyncio.gather(*(site.classify(task) for task in rounds))
        for task, reply in zip(rounds, replies, strict=True):
            assert reply.status_code == 200, reply.text
            for output, logits in zip(reply.json()["outputs"], expected[task], strict=True):
                scores = torch.tensor(list(output["scores"].values()))
                torch.testing.assert_close(scores, logits.softmax(-1), atol=1e-5, rtol=0)
                assert output["label"] == adapters[task].labels[int(logits.argmax())]
                assert output["score"] == max(output["scores"].values())
        [replica] = site.backend.replicas
        report = await replica.report([])
        assert report["rows"] == len(rounds) * len(TEXTS)
        assert report["batches"] < len(rounds), "requests for different adapters never shared a batch"

    play(world, scene)


def test_an_adapter_whose_base_was_read_from_elsewhere_is_answered_by_the_same_replica(world: World) -> None:
    adapter = world.adapter("urgency", seed=1)
    elsewhere = adapter.model_copy(update={"base": adapter.base.model_copy(update={"uri": "/moved/since"})})
    assert elsewhere.digest == adapter.digest
    world.promote(elsewhere, 1)

    async def scene(site: Site) -> None:
        assert (await site.settled())["adapters"] == {"urgency": adapter.digest}
        for model in ("urgency", f"urgency@{adapter.digest}"):
            reply = await site.classify(model)
            assert reply.status_code == 200, reply.text

    play(world, scene)


def test_every_answer_says_what_answered_it(world: World) -> None:
    adapter = world.adapter("urgency", seed=1)
    world.promote(adapter, 3)

    async def scene(site: Site) -> None:
        await site.settled()
        reply = await site.client.post("/v1/classify", json={"model": "urgency", "input": TEXTS[0]})
        said = reply.json()
        assert said["model"] == "urgency"
        assert len(said["outputs"]) == 1
        assert said["provenance"] == {
            "task": "urgency",
            "version": 3,
            "adapter": adapter.digest,
            "method": "lora",
            "base": world.base.digest,
            "precision": "fp32",
            "quantization": "none",
            "tokenizer": world.base.tokenizer_digest,
            "template": None,
        }
        assert reply.headers["x-petl-adapter"] == adapter.digest
        assert reply.headers["x-petl-version"] == "3"
        assert reply.headers["x-petl-tokenizer"] == world.base.tokenizer_digest

    play(world, scene)


def test_pairs_are_answered_and_long_texts_are_said_to_be_cut(world: World) -> None:
    world.promote(world.adapter("urgency", seed=1), 1)

    async def scene(site: Site) -> None:
        await site.settled()
        pair, long = {"text": TEXTS[0], "text_pair": TEXTS[1]}, "order " * 80
        outputs = (await site.classify("urgency", [pair, TEXTS[0], long])).json()["outputs"]
        assert outputs[0]["scores"] != outputs[1]["scores"]
        assert [output["truncated"] for output in outputs] == [False, False, True]

    play(world, scene)


def test_what_is_refused_is_refused_in_words(world: World) -> None:
    world.promote(world.adapter("urgency", seed=1), 1)

    async def scene(site: Site) -> None:
        await site.settled()
        cases: list[tuple[dict[str, Any], int, str]] = [
            ({"model": "urgancy", "inputs": ["x"]}, 404, "Choose urgency"),
            ({"model": f"urgency@{'0' * 64}", "inputs": ["x"]}, 404, "ever promoted"),
            ({"model": "../../etc/passwd", "inputs": ["x"]}, 422, "a model is a task"),
            ({"model": "urgency"}, 422, "give either input"),
            ({"model": "urgency", "input": "a", "inputs": ["b"]}, 422, "give either input"),
            ({"model": "urgency", "inputs": []}, 422, "inputs: got 0; one request has 1 to 8"),
            ({"model": "urgency", "inputs": ["x"] * 9}, 422, "inputs: got 9; one request has 1 to 8"),
            ({"model": "urgency", "inputs": ["x" * 501]}, 422, "501 characters"),
            ({"model": "urgency", "inputs": [7]}, 422, "inputs.0.str: got 7"),
            ({"model": "urgency", "inputs": ["x"], "adapter": "y"}, 422, "adapter: got 'y'"),
        ]
        for body, status, words in cases:
            reply = await site.client.post("/v1/classify", json=body)
            assert reply.status_code == status, (body, reply.text)
            error = reply.json()["error"]
            assert words in error["message"], error["message"]
            assert error["message"].startswith(error["what"])
        reply = await site.client.post("/v1/classify", content=b'{"model": "urgency", "inputs": ["x"')
        assert reply.status_code == 422
        reply = await site.client.post("/v1/completions", json={"model": "urgency", "prompt": "x"})
        assert "Ask /v1/classify" in reply.json()["error"]["message"]

    play(world, scene)


def test_a_large_body_is_not_read_whether_it_says_its_size_or_not(world: World) -> None:
    world.promote(world.adapter("urgency", seed=1), 1)
    taken = 0

    async def stream() -> Any:
        nonlocal taken
        for _ in range(1000):
            taken += 1000
            yield b"x" * 1000

    async def scene(site: Site) -> None:
        assert (await site.client.post("/v1/classify", content=b"x" * 5000)).status_code == 413
        reply = await site.client.post("/v1/classify", content=stream())
        assert reply.status_code == 413
        assert "at most 4096 bytes" in reply.json()["error"]["message"]
        assert taken < 10_000

    play(world, scene)


def test_a_promotion_takes_over_and_the_old_digest_goes_on_answering_by_name(world: World) -> None:
    old, new = world.adapter("urgency", seed=1), world.adapter("urgency", seed=2)
    world.promote(old, 1)

    async def scene(site: Site) -> None:
        await site.settled()
        world.promote(new, 2)
        assert (await site.settled())["adapters"] == {"urgency": new.digest}
        now = (await site.classify("urgency")).json()
        before = (await site.classify(f"urgency@{old.digest[:16]}")).json()
        assert (now["provenance"]["adapter"], now["provenance"]["version"]) == (new.digest, 2)
        assert (before["provenance"]["adapter"], before["provenance"]["version"]) == (old.digest, 1)
        assert now["outputs"] != before["outputs"]
        listed = (await site.client.get("/v1/models")).json()["models"]
        assert [(row["id"], row["adapter"], row["state"]) for row in listed] == [
            ("urgency", new.digest, "READY"),
            (f"urgency@{old.digest}", old.digest, "READY"),
        ]

    play(world, scene)


def test_a_name_moves_only_when_every_replica_has_proven_the_new_digest(world: World) -> None:
    old, new = world.adapter("urgency", seed=1), world.adapter("urgency", seed=2)
    world.promote(old, 1)

    async def scene(site: Site) -> None:
        await site.settled()
        first, second = site.backend.replicas
        fetch, second._shelf._fetch = second._shelf._fetch, lambda named: Path("/nonexistent-but-waiting")
        door = asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow(named: Any) -> Path:
            asyncio.run_coroutine_threadsafe(door.wait(), loop).result(30)
            return fetch(named)

        second._shelf._fetch = slow
        world.promote(new, 2)
        while (await first.report([new.digest]))["shelf"].get(new.digest, {}).get("state") != "READY":
            await asyncio.sleep(0.02)
        await site.gateway.look()
        health = site.gateway.health()
        assert (health["status"], health["adapters"], health["behind"]) == (
            "following",
            {"urgency": old.digest},
            {"urgency": "loading"},
        )
        assert (await site.classify("urgency")).json()["provenance"]["version"] == 1
        door.set()
        assert (await site.settled())["adapters"] == {"urgency": new.digest}

    play(world, scene, replicas=2)


def test_a_request_keeps_the_version_it_began_with(world: World) -> None:
    old, new = world.adapter("urgency", seed=1), world.adapter("urgency", seed=2)
    world.promote(old, 1)
    expected = {old.digest: world.expected(old, TEXTS), new.digest: world.expected(new, TEXTS)}

    async def scene(site: Site) -> None:
        await site.settled()
        seen, replies, done = set(), 0, False

        async def asking() -> None:
            nonlocal replies
            while not done:
                reply = await site.classify("urgency")
                assert reply.status_code == 200, reply.text
                digest = reply.json()["provenance"]["adapter"]
                for output, logits in zip(reply.json()["outputs"], expected[digest], strict=True):
                    scores = torch.tensor(list(output["scores"].values()))
                    torch.testing.assert_close(scores, logits.softmax(-1), atol=1e-5, rtol=0)
                seen.add(digest)
                replies += 1

        clients = [asyncio.create_task(asking()) for _ in range(4)]
        for version, adapter in enumerate((new, old, new), start=2):
            while replies < 10 * version:
                await asyncio.sleep(0.01)
            world.promote(adapter, version)
            await site.settled()
        while replies < 60:
            await asyncio.sleep(0.01)
        done = True
        await asyncio.gather(*clients)
        assert seen == {old.digest, new.digest}

    play(world, scene)


def test_a_busy_server_says_when_to_come_back(world: World) -> None:
    world.promote(world.adapter("urgency", seed=1), 1)
    spec = SPEC.model_copy(update={"max_waiting_rows": 5})

    async def scene(site: Site) -> None:
        await site.settled()
        replies = await asyncio.gather(*(site.classify("urgency") for _ in range(12)))
        codes = [reply.status_code for reply in replies]
        assert set(codes) == {200, 429}
        busy = replies[codes.index(429)]
        assert int(busy.headers["retry-after"]) >= 1
        assert busy.json()["error"]["kind"] == "QueueFull"

    play(world, scene, spec)


def test_a_late_answer_is_given_up(world: World) -> None:
    world.promote(world.adapter("urgency", seed=1), 1)
    spec = SPEC.model_copy(update={"request_timeout_s": 0.2})

    async def scene(site: Site) -> None:
        await site.settled()
        [replica] = site.backend.replicas
        replica._device.submit(time.sleep, 1.0)
        reply = await site.classify("urgency")
        assert reply.status_code == 504
        assert "no answer within 0.2 s" in reply.json()["error"]["message"]

    play(world, scene, spec)


def test_nothing_is_healthy_before_the_first_look(world: World) -> None:
    world.promote(world.adapter("urgency", seed=1), 1)

    async def scene(site: Site) -> None:
        reply = await site.client.get("/healthz")
        assert (reply.status_code, reply.json()["status"]) == (503, "starting")
        early = await site.classify("urgency")
        assert early.status_code == 503
        assert early.headers["retry-after"] == "1"
        await site.settled()
        assert (await site.client.get("/healthz")).status_code == 200

    play(world, scene)


def test_a_base_that_nobody_holds_is_reported_and_leaves_the_others_alone(world: World, llama_world: World) -> None:
    world.promote(world.adapter("urgency", seed=1), 1)
    other = world.adapter("reviews", seed=2)
    world.promote(other.model_copy(update={"quantization": "nf4"}), 1)

    async def scene(site: Site) -> None:
        health = await site.settled()
        assert health["adapters"].keys() == {"urgency"}
        assert "no replica holds the base" in health["behind"]["reviews"]
        assert (await site.classify("reviews")).status_code == 503

    play(world, scene)


def test_a_language_model_completes_greedily_beside_another_adapter(llama_world: World) -> None:
    adapters = {"dates": llama_world.adapter("dates", seed=1), "names": llama_world.adapter("names", seed=2)}
    for adapter in adapters.values():
        llama_world.promote(adapter, 1)
    prompts = ["my order is", "the red box of today"]

    def alone(adapter: Any, prompt: str) -> list[int]:
        tokens, base = llama_world.base.tokenizer(prompt)["input_ids"], llama_world.base
        start = len(tokens)
        while len(tokens) < start + 6:
            text = base.tokenizer.decode(tokens[start:])
            [logits] = expected(adapter, tokens)
            token = int(logits[-1].argmax())
            if token == base.tokenizer.eos_token_id:
                break
            tokens = [*tokens, token]
            assert text is not None
        return tokens[start:]

    def expected(adapter: Any, tokens: list[int]) -> Any:

        serving = ServingBank(llama_world.base, slots=1)
        serving.install(0, read_adapter(directories[adapter.digest], llama_world.base))
        ids = torch.tensor([tokens])
        given = serving.answer([0], ids, torch.ones_like(ids))
        serving.detach()
        return given

    directories = {adapter.digest: llama_world.fetch(adapter) for adapter in adapters.values()}
    wanted = {task: [alone(adapter, prompt) for prompt in prompts] for task, adapter in adapters.items()}

    async def scene(site: Site) -> None:
        await site.settled()
        bodies = [{"model": task, "prompt": prompts, "max_tokens": 6} for task in adapters]
        replies = await asyncio.gather(*(site.client.post("/v1/completions", json=body) for body in bodies))
        for task, reply in zip(adapters, replies, strict=True):
            assert reply.status_code == 200, reply.text
            for output, tokens in zip(reply.json()["outputs"], wanted[task], strict=True):
                assert output["tokens"] == len(tokens)
                assert output["text"] == llama_world.base.tokenizer.decode(tokens, skip_special_tokens=True)
            assert len(reply.json()["provenance"]["template"]) == 64
        many = {"model": "dates", "prompt": "x", "max_tokens": SPEC.max_new_tokens + 1}
        assert (await site.client.post("/v1/completions", json=many)).status_code == 422

    play(llama_world, scene)
