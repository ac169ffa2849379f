"""A slow way to a server: `python -m tests.relay PORT HOST PORT SECONDS` passes everything on after so many seconds.

For kernels that cannot delay packets themselves. Order and content stay.
"""

import asyncio
import socket
import sys
import time


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Pass on what one side says, each piece `seconds` after it was said."""
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def listen() -> None:
        piece = b"-"
        while piece:
            try:
                piece = await reader.read(65536)
            except OSError:
                piece = b""
            await pieces.put((time.monotonic() + seconds, piece))

    listening = asyncio.create_task(listen())
    while True:
        due, piece = await pieces.get()
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if not piece:
            break
        writer.write(piece)
    await listening
    writer.close()


async def main(port: int, host: str, host_port: int, seconds: float) -> None:
    """Serve until killed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, host_port)
        except OSError:
            writer.close()
            return
        far = far_writer.get_extra_info("socket")
        far.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # or it would never learn that the server has gone
        for option, value in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
            far.setsockopt(socket.IPPROTO_TCP, option, value)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)
        await asyncio.gather(carry(reader, far_writer, seconds), carry(far_reader, writer, seconds))

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
