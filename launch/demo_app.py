"""A page to look at a trained model: python launch/demo_app.py --run RUN --gallery SHARDS|DIR [--port 7860]

Choose or drop an image, see who is nearest in the other modality, and where a place of the one lies on the other. The
page serves this machine only, loads nothing from elsewhere and keeps no upload.
"""

import argparse
import ipaddress
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from launch.gallery import Gallery
from launch.look import UPLOAD, Viewer
from tacaf.inference import Embedder
from tacaf.vocabulary import InputError

# The page may load from its own server alone: a mistake of any library it is made of stays without effect.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; form-action 'self'"
)


def build_app(viewer: Viewer, host: str, port: int) -> Any:
    """The page as an ASGI application that answers to its own address alone."""
    import fastapi
    import gradio as gr
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from launch.demo_page import STYLE, build_page, theme

    app = fastapi.FastAPI(openapi_url=None)

    @app.middleware("http")
    async def policy(request: fastapi.Request, answer: Callable[..., Awaitable[Any]]) -> Any:
        response = await answer(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    if is_loopback(host):  # a page of elsewhere cannot reach it under a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", host])
    return gr.mount_gradio_app(
        app, build_page(viewer), "/", server_name=host, server_port=port, footer_links=[], theme=theme(),
        max_file_size=int(UPLOAD.mib * 2**20), ssr_mode=False, show_error=False, enable_monitoring=False,
        run_history=False, mcp_server=False, pwa=False, css=STYLE,
    )  # fmt: skip


def is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address; port 0 is any free one. InputError where it cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if host != "localhost":
            ipaddress.ip_address(host)
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, ValueError) as error:
        raise InputError(
            f"expected a free port at an address of this machine, got {host}, port {port}: {error}; give another --port"
        ) from None


def serve(arguments: argparse.Namespace) -> None:
    """Embed the gallery, open the page, and stay until Ctrl+C or SIGTERM."""
    if find_spec("gradio") is None:
        raise InputError("expected the package gradio, found none; pip install 'tacaf[app]'")
    if arguments.most < 1:
        raise InputError(f"expected --most of at least 1, got {arguments.most}; leave it out for 2000")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("expected a GPU for --device cuda, found none; leave it out")
    import uvicorn

    with listen(arguments.host, arguments.port) as own:
        embedder = Embedder.load(arguments.run, arguments.device)
        if embedder.model is None:
            raise InputError("expected a run or a model.safetensors, got an ONNX export, whose maps cannot be read")
        gallery = Gallery.open(embedder, arguments.gallery, arguments.split, arguments.most, arguments.seed)
        viewer = Viewer(embedder, gallery)
        host, port = own.getsockname()[:2]
        app = build_app(viewer, host, port)
        counts = " and ".join(f"{len(held)} {modality}" for modality, held in gallery.images.items())
        if not is_loopback(host):
            print("anyone who reaches this machine can see the gallery's images and search them", flush=True)
        print(
            f"{counts} images; page: http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl+C ends it)", flush=True
        )
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False)
        uvicorn.Server(settings).run(sockets=[own])


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder, or a model.safetensors")
    parser.add_argument(
        "--gallery", required=True, help="shard set, or a folder with visible/ and infrared/ in it: who can be found"
    )
    parser.add_argument("--split", default="test", help="identities of the shard set that are shown (test)")
    parser.add_argument("--most", type=int, default=2000, help="images of each modality at most (2000)")
    parser.add_argument("--seed", type=int, default=0, help="draws them where there are more (0)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve; others than this machine's are your risk"
    )
    parser.add_argument("--port", type=int, default=7860, help="0 takes any free one (7860)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave as after Ctrl+C, nothing left behind
    try:
        with tempfile.TemporaryDirectory(prefix="tacaf-page-") as folder:  # what the page shows goes with it
            os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
            serve(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
