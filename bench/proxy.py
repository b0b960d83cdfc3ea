"""A TCP proxy that passes everything on later, as if the database were on another host."""

from __future__ import annotations

import argparse
import asyncio
import selectors
from functools import partial


async def serve(port: int, target: str, delay: float) -> None:
    server = await asyncio.start_server(partial(connect, target, delay), "127.0.0.1", port)
    await server.serve_forever()


async def connect(
    target: str, delay: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        if target.startswith("/"):
            beyond = await asyncio.open_unix_connection(target)
        else:
            host, _, port = target.rpartition(":")
            beyond = await asyncio.open_connection(host, int(port))
    except OSError:
        writer.close()
        return
    await asyncio.gather(forward(reader, beyond[1], delay), forward(beyond[0], writer, delay))


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Hand on each piece, and in the end the end, `delay` seconds after it came.

    Reading goes on meanwhile, so that any number of pieces are on their way at once.
    """
    loop = asyncio.get_running_loop()
    try:
        while piece := await reader.read(2**16):
            loop.call_later(delay, writer.write, piece)
    except ConnectionError:
        pass  # an end like any other
    loop.call_later(delay, writer.close)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--target", required=True, help="host:port or the path of a socket")
    parser.add_argument("--delay", type=float, required=True, help="milliseconds each way")
    options = parser.parse_args()
    # select(2) waits to the microsecond; the usual epoll rounds up to the next millisecond.
    with asyncio.Runner(
        loop_factory=partial(asyncio.SelectorEventLoop, selectors.SelectSelector())
    ) as runner:
        runner.run(serve(options.port, options.target, options.delay / 1000))


if __name__ == "__main__":
    main()
