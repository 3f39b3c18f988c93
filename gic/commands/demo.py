"""``gic demo``: the codec to try, on a page in the browser."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from argparse import ArgumentParser, Namespace

from gic.commands.jobs import MAX_BYTES, add_codec, load_codec


def add_options(parser: ArgumentParser) -> None:
    """Options of ``gic demo``."""
    parser.add_argument("inputs", nargs="*", metavar="PICTURE", help="examples for the page: files, folders, patterns")
    parser.add_argument(
        "--port", type=int, metavar="N", help="port to listen to; 0 for any (default 8421 if it is free)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen to; others than this machine's let others in"
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address and open no browser")
    add_codec(parser)


def run(args: Namespace) -> int:
    """Run ``gic demo`` until it is interrupted; returns the exit code."""
    from gic.demo.server import DemoServer, is_local
    from gic.demo.work import Work
    from gic.pictures.find import find_images

    examples = find_images(args.inputs) if args.inputs else []
    codec, _ = load_codec(args, 1)
    server = DemoServer(Work(codec, examples), args.host, args.port, MAX_BYTES)
    try:
        if not is_local(args.host):
            print(
                f"gic demo: WARNING: with --host {args.host} everyone who reaches this machine can use the page and "
                "see its examples, and what goes over the network is not encrypted",
                file=sys.stderr,
            )
        print(f"gic demo: {server.url} (Ctrl-C ends it)", flush=True)
        if not args.no_browser and _has_display():
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        server.serve_forever()
    except KeyboardInterrupt:
        print("gic demo: ended", file=sys.stderr)
    finally:
        server.stop()
    return 0


def _has_display() -> bool:
    """Whether a browser has a window to show: without one, some take the terminal."""
    given = os.environ.get
    return sys.platform in ("darwin", "win32") or any(map(given, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
