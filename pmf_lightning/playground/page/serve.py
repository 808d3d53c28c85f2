"""Serve the page to this machine: one process, one request at a time, nothing from or to other hosts."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pmf_lightning.playground.page.look import CSS, theme
from pmf_lightning.utils.errors import UserError

# The browser refuses whatever another host would serve. Gradio's own scripts are inline and build functions from text.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'"


class OnlyThisHost:
    """ASGI middleware that sends ``POLICY`` with every response."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on."""

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy if scope["type"] == "http" else send)


@contextmanager
def serving(build: Callable[[], gr.Blocks], host: str, port: int, open_browser: bool = False) -> Iterator[str]:
    """Build the page and serve it while it lasts; yield its address. Films are removed at the end.

    Raises UserError if the port is in use, or the host is none of this machine's.
    """
    with tempfile.TemporaryDirectory(prefix="pmf-play-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when components are made
        page = build()
        page.queue(default_concurrency_limit=1, max_size=64)
        try:
            _, address, _ = page.launch(
                **{"server_name": host, "server_port": port, "inbrowser": open_browser, "share": False},
                **{"prevent_thread_lock": True, "quiet": True, "ssr_mode": False, "pwa": False, "footer_links": []},
                **{"enable_monitoring": False, "mcp_server": False, "theme": theme(), "css_paths": [CSS]},
                app_kwargs={"middleware": [Middleware(OnlyThisHost)], "docs_url": None, "redoc_url": None},
            )
        except OSError as error:
            raise UserError(
                f"host={host} port={port}: no page can be served there ({error}); set port={port + 1}"
            ) from error
        try:
            yield address
        finally:
            page.close(verbose=False)
