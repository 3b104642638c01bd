"""An HTTP proxy before an S3 endpoint that, on demand, lets a write through and then drops the line without a reply."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class LossyProxy:
    """Passes everything on, except for what a test sets.

    The next `drop_replies` PUTs are committed by the real endpoint and never answered; `fail_with` answers everything
    with that status; `cut_bodies` ends every answer in its middle.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = urlsplit(endpoint)
        self.drop_replies = 0
        self.fail_with: int | None = None
        self.cut_bodies = False
        self.puts = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                outer.pass_on(self)

            do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _pass_on

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def pass_on(self, request: BaseHTTPRequestHandler) -> None:
        body = self._body(request)
        if self.fail_with is not None:
            request.send_response(self.fail_with)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        status, headers, answer = self._forward(request, body)
        if request.command == "PUT":
            self.puts += 1
            if self.drop_replies:
                self.drop_replies -= 1
                request.close_connection = True
                request.connection.close()  # committed, and nobody is told
                return
        request.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection"):
                request.send_header(name, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.cut_bodies and len(answer) > 1:
            request.wfile.write(answer[: len(answer) // 2])
            request.close_connection = True
            return
        request.wfile.write(answer)

    def _body(self, request: BaseHTTPRequestHandler) -> bytes:
        if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return request.rfile.read(int(request.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(request.rfile.readline().split(b";")[0], 16):
            pieces.append(request.rfile.read(size))
            request.rfile.readline()
        while request.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(str(self.endpoint.hostname), self.endpoint.port, timeout=30)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "transfer-encoding"}
        headers["Content-Length"] = str(len(body))
        upstream.request(request.command, request.path, body=body, headers=headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        return answer.status, answer.getheaders(), content
