"""The demo's server in this process, and a client that is no browser. No module here takes PyTorch."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image

from gic.codec.image_codec import ImageCodec
from gic.demo.server import DemoServer
from gic.demo.work import Work


@contextmanager
def serving(codec: ImageCodec, *examples: Path, **options: Any) -> Iterator[DemoServer]:
    """A server at a free port, which is ended afterwards."""
    server = DemoServer(Work(codec, examples), port=0, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.stop()


def png(width: int = 160, height: int = 120, salt: int = 0) -> bytes:
    """The file of a picture of waves and a disc."""
    y, x = np.mgrid[0:height, 0:width] / 40 + salt
    waves = 128 + 50 * np.stack([np.sin(3 * x + y), np.cos(2 * x * y / (1 + salt)), np.sin(7 * y - x)], -1)
    waves[np.hypot(x - x.mean(), y - y.mean()) < 0.8] = (230, 200, 40)
    buffer = io.BytesIO()
    Image.fromarray(waves.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class Client:
    """Talks to a server as the page does, and otherwise where a test says so."""

    def __init__(self, server: DemoServer) -> None:
        self.address = ("127.0.0.1", server.server_port)
        self.origin = f"http://127.0.0.1:{server.server_port}"
        self.page, self.number = uuid4().hex, 0

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str | None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request; a header that is None is left out."""
        connection = http.client.HTTPConnection(*self.address)
        given = {"Host": self.origin.removeprefix("http://"), "Origin": self.origin, **headers}
        if body is not None and "Content-Length" not in given:
            given["Content-Length"] = str(len(body))
        connection.putrequest(method, path, skip_host=True)
        for name, value in given.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        result = answer.status, answer.headers, answer.read()
        connection.close()
        return result

    def get(self, path: str) -> bytes:
        status, _, data = self.request("GET", path)
        assert status == 200, data
        return data

    def picture(self, name: str) -> Image.Image:
        return Image.open(io.BytesIO(self.get(f"/pictures/{name}.png")))

    def events(self, path: str, body: bytes, **headers: str | None) -> list[dict[str, Any]]:
        status, _, data = self.request("POST", path, body, **headers)
        assert status == 200, data
        return [json.loads(line) for line in data.splitlines()]

    def ask(self, path: str, **given: Any) -> list[dict[str, Any]]:
        self.number += 1
        return self.events(path, json.dumps({"page": self.page, "number": self.number, **given}).encode())

    def send(self, data: bytes, whole: bool = False) -> dict[str, Any]:
        """Upload a picture; the event that says what it is, or the error."""
        self.number += 1
        *_, said, end = [{}, *self.events(f"/api/pictures?page={self.page}&number={self.number}&whole={whole:d}", data)]
        return said if end["event"] == "done" else end

    def compare(self, name: str, **changes: Any) -> dict[str, Any]:
        """What both sides show; events by their names, those of sides by the side."""
        wish = {"picture": name, "size": 0.5, "realism": 0.5, "progressive": False, "received": 1}
        events = self.ask("/api/compare", **{**wish, "left": "original", "right": "gic", **changes})
        return {event.get("side", event["event"]): event for event in events}
