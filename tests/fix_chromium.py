"""A real Chromium without a window, driven over its debugging protocol."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fix_daemon import PATIENCE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """The browser's one page, and what it did."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.requests: list[str] = []
        """Every URL that was asked for."""
        self.complaints: list[str] = []
        """Exceptions, and what the browser refused: a violated policy, a file that is not there."""

    async def listen(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            match said.get("method"):
                case None:
                    self._answers.pop(said["id"]).set_result(said)
                case "Network.requestWillBeSent":
                    self.requests.append(said["params"]["request"]["url"])
                case "Runtime.exceptionThrown" | "Log.entryAdded":
                    self.complaints.append(json.dumps(said["params"]))

    async def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        answer = await asyncio.wait_for(future, PATIENCE)
        assert "error" not in answer, answer
        return dict(answer["result"])

    async def open(self, url: str) -> None:
        for domain in ("Network", "Runtime", "Log", "Page"):
            await self.do(f"{domain}.enable")
        await self.do("Page.navigate", url=url)

    async def value(self, expression: str) -> Any:
        """What JavaScript says."""
        done = await self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    async def eventually(self, expression: str) -> Any:
        """What JavaScript says, once that is true."""
        async with asyncio.timeout(PATIENCE):
            while not (found := await self.value(expression)):
                await asyncio.sleep(0.05)
        return found


@contextlib.asynccontextmanager
async def chromium(directory: Path) -> AsyncIterator[Page]:
    """A page of a browser that ends with the block. Skips the test where there is no Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine (apt-get install chromium)")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--remote-debugging-port=0",
    ]
    process = subprocess.Popen(
        [CHROMIUM, *options, f"--user-data-dir={directory}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession() as session:
            port = await _port(directory / "DevToolsActivePort")
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                targets = await response.json(content_type=None)
            url = next(each["webSocketDebuggerUrl"] for each in targets if each["type"] == "page")
            async with session.ws_connect(url, max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                try:
                    yield page
                finally:
                    listening.cancel()
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


async def _port(path: Path) -> int:
    async with asyncio.timeout(PATIENCE):
        while not path.exists() or "\n" not in path.read_text():
            await asyncio.sleep(0.05)
    return int(path.read_text().splitlines()[0])
