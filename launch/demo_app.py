"""Serve a page for exploring a trained model: python launch/demo_app.py --run RUN --gallery SHARDS|DIR [--port 7860]

Choose or drop an image to see the nearest images of the other modality, and click on it to see where that point is on a
match. The page can only be reached from this machine, loads nothing from elsewhere, and writes no upload to the disk.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("launch.demo_app")

import argparse
import ipaddress
import secrets
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import torch

from launch.page.viewer import Viewer
from tacaf.command import Parser, entry, to_location, to_path
from tacaf.extras import missing
from tacaf.files import reason_of, shown
from tacaf.images import given_scale
from tacaf.search.album import Album
from tacaf.search.embedder import Embedder
from tacaf.vocabulary import InputError


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    check(args)
    serve(args)
    return 0


def serve(args: argparse.Namespace) -> None:
    """Embed the gallery and serve the page until Ctrl-C or SIGTERM."""
    from launch.page.app import Page
    from launch.page.guard import Guard
    from launch.page.incoming import MOST_UPLOAD
    from launch.page.server import build_server

    with listen(args.host, args.port) as listening:
        viewer = open_viewer(args)
        host, port = listening.getsockname()[:2]
        token = None if ipaddress.ip_address(host).is_loopback else secrets.token_urlsafe(32)
        counts = " and ".join(f"{len(images)} {modality}" for modality, images in viewer.album.images.items())
        if token is not None:
            print("anyone who has the page's address can see the gallery; the connection is not encrypted", flush=True)
        print(f"{counts} images; page: {url(host, port, token)}  (Ctrl-C ends it)", flush=True)
        app = Page(viewer).app()
        build_server(Guard(app, host, token, MOST_UPLOAD)).run(sockets=[listening])


def open_viewer(args: argparse.Namespace) -> Viewer:
    """The model and the embedded gallery. Prints what was left out of the gallery."""
    embedder = Embedder.load(args.run, args.device, args.thermal_range)
    if embedder.model is None:
        raise InputError("expected a run or a model.safetensors, got an ONNX export, which does not give its maps")
    album = Album.open(embedder, args.gallery, args.split, args.most, args.seed)
    for text in album.drawn:
        print(text, flush=True)
    for text in album.left_out:
        print(f"left out: {shown(text)}", file=sys.stderr, flush=True)
    return Viewer(embedder, album)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at this address; port 0 is any free one. Raises InputError if that is not possible."""
    try:
        if host != "localhost":
            ipaddress.ip_address(host)
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected a free port at an address of this machine, got port {port} at {shown(host)}: {reason_of(error)};"
            " use another --port"
        ) from None


def url(host: str, port: int, token: str | None) -> str:
    """The page's address for a browser."""
    name = socket.gethostname() if ipaddress.ip_address(host).is_unspecified else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}{'' if token is None else f'/?token={token}'}"


def check(args: argparse.Namespace) -> None:
    """Raise InputError for wrong options, missing packages and a missing GPU."""
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise missing(package, "the page")
    if args.most < 1:
        raise InputError(f"expected --most of at least 1, got {args.most}; leave it out for 2000")
    if not 0 <= args.port < 2**16:
        raise InputError(f"expected --port from 0 to 65535, got {args.port}; 0 takes any free one")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"expected --seed from 0 to 2**63 - 1, got {args.seed}; leave it out for 0")
    given_scale(args.thermal_range, "--thermal-range")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no GPU for --device cuda; leave the option out")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", type=to_path, required=True, help="run folder, or a model.safetensors")
    add(
        "--gallery",
        type=to_location,
        required=True,
        help="images to search in: a shard set, or a folder with visible/ and infrared/ in it",
    )
    add("--split", default="test", help="split of the shard set; default: test")
    add("--most", type=int, default=2000, help="largest number of images of each modality; default: 2000")
    add("--seed", type=int, default=0, help="seed of the draw if there are more; default: 0")
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen at; if other machines can reach it, the URL has a token; default: 127.0.0.1",
    )
    add("--port", type=int, default=7860, help="port of the page, or 0 for any free one; default: 7860")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the model runs; default: cpu")
    add(
        "--thermal-range",
        nargs="+",
        metavar=("LOW", "HIGH"),
        help="grey values that become black and white, as for search.py",
    )
    return parser.parse_args(argv)
