"""The client waits for a server that asks it to, and gives up on one that says no; over a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from petl_ray.errors import AdapterError, PlanError, TemporaryError
from petl_ray.serving import client

ANSWER = {"outputs": [{"label": "yes"}], "provenance": {"adapter": "d"}}


def _error(kind: str) -> dict[str, Any]:
    return {"error": {"kind": kind, "message": "", "what": "here", "found": "found", "why": "why", "do": "do"}}


class Server:
    """Answers each request with the next of `replies`: a status and a body, or a status and no words of ours."""

    def __init__(self, replies: list[tuple[int, Any]]) -> None:
        self.asked: list[dict[str, Any]] = []
        server = self

        class Desk(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                status, body = replies.pop(0)
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = HTTPServer(("127.0.0.1", 0), Desk)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(client, "LONGEST_PAUSE_S", 0.01)
    yield


def test_a_busy_server_and_a_lost_replica_are_asked_again() -> None:
    server = Server([(429, _error("QueueFull")), (500, "Internal Server Error"), (200, ANSWER)])
    assert client.predict(server.url, "urgency", ["x"]) == [{"label": "yes", "provenance": {"adapter": "d"}}]
    assert server.asked == [{"model": "urgency", "inputs": ["x"]}] * 3
    server.close()


def test_a_server_that_stays_busy_is_given_up() -> None:
    server = Server([(429, _error("QueueFull"))] * 9)
    with pytest.raises(TemporaryError, match="here: found; why"):
        client.predict(server.url, "urgency", ["x"])
    assert len(server.asked) == 4
    server.close()


@pytest.mark.parametrize(("status", "kind"), [(503, AdapterError), (422, PlanError)])
def test_a_refusal_is_the_error_it_was_there_and_is_not_asked_again(status: int, kind: type[Exception]) -> None:
    server = Server([(status, _error(kind.__name__))])
    with pytest.raises(kind, match=r"here: found; why\. do\."):
        client.predict(server.url, "urgency", ["x"])
    assert len(server.asked) == 1
    server.close()


def test_many_texts_go_in_batches_and_come_back_in_order() -> None:
    replies = [
        (200, {**ANSWER, "outputs": [{"label": "a"}, {"label": "b"}]}),
        (200, {**ANSWER, "outputs": [{"label": "c"}]}),
    ]
    server = Server(replies)
    assert [one["label"] for one in client.predict(server.url, "t", ["1", "2", "3"], batch=2)] == ["a", "b", "c"]
    assert [body["inputs"] for body in server.asked] == [["1", "2"], ["3"]]
    server.close()
