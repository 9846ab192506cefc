"""An inbox that costs as little as possible: answers every POST with 202. Run as a process of its own.

    python -m benchmarks.sink ADDRESSES

It listens on one port at each of so many addresses from 127.80.0.1 on, prints the port, and ends with its
standard input.
"""

import asyncio
import sys

ANSWER = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"


class Sink(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            self.transport.write(ANSWER)


def address(number: int) -> str:
    return f"127.80.{number // 250}.{number % 250 + 1}"


async def main(addresses: int) -> None:
    loop = asyncio.get_running_loop()
    port = 0
    servers = []
    for number in range(addresses):
        server = await loop.create_server(Sink, address(number), port)
        port = port or server.sockets[0].getsockname()[1]
        servers.append(server)
    print(port, flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
