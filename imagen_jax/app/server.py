"""The server of the page."""

import asyncio
import logging
import socket
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from imagen_jax.app.guard import Guard
from imagen_jax.app.making import Studio
from imagen_jax.app.page import STYLE_SHEET, THEME, Page

MOST_CONNECTIONS = 500
MOST_SESSIONS = 1000  # of visitors, that Gradio keeps the fields of


def application(studio: Studio, local: bool, root_path: str = "") -> Guard:
    """The page as an ASGI application. local: for this machine alone. root_path: where a proxy has
    it, as a path or a whole address.
    """
    page = Page(studio)
    page.blocks.state_session_capacity = MOST_SESSIONS
    # Not `launch`: it asks its own server and others for answers, and takes ports as it likes.
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page.blocks,
        path="/",
        root_path=root_path or None,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=studio.limits.upload_bytes,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=THEME,
        css=STYLE_SHEET,
    )
    # Mounted, Gradio does not look where a file that a visitor names lies, unless told so.
    page.blocks.has_launched = True
    return Guard(app, studio.limits, studio.folder, page.arguments, local)


def make_server(app: Any) -> uvicorn.Server:
    """What serves an application: `.run(sockets=[...])`, until Ctrl-C or `.should_exit`."""
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="error",
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,  # pages that are open would hold it
            server_header=False,
        )
    )


def serve(studio: Studio, bound: socket.socket, local: bool, root_path: str = "") -> None:
    """Serves the page until Ctrl-C, of which it ends as KeyboardInterrupt."""
    try:
        make_server(application(studio, local, root_path)).run(sockets=[bound])
    finally:
        studio.jobs.stop_all()
    raise KeyboardInterrupt  # uvicorn does not always pass on what ended it


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a message of the server is to be seen: not that pages were open at the end."""
    ended = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not ended and "graceful shutdown" not in str(record.msg)
