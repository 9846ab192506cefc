"""Run by an environment that has the client only, with the service's `fedsvc` of another as its argument: has
`fedsvc dev` deliver one activity to an inbox here."""

import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec

from fedsvc_client import FedsvcClient

#: seconds
PATIENCE = 60
ACTOR = "https://me.example/u/ada"
LIKE = {"id": "https://me.example/like/1", "type": "Like", "actor": ACTOR, "object": "https://o.example/1"}
received: list[dict[str, str]] = []


class Inbox(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        received.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(202)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    assert find_spec("fedsvc") is None, "the client's environment has the service"
    inbox = HTTPServer(("127.0.0.1", 0), Inbox)
    threading.Thread(target=inbox.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as scratch:
        pem = f"{scratch}/ada.pem"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ED25519", "-out", pem], check=True)
        addresses = [
            "--data-dir",
            f"{scratch}/data",
            "--listen",
            "127.0.0.1:0",
            "--http-listen",
            "127.0.0.1:0",
        ]
        environment = {"FEDSVC_ALLOW_HTTP": "true", "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8"}
        with (
            open(f"{scratch}/log", "w+") as log,
            subprocess.Popen(
                [sys.argv[1], "dev", *addresses],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            ) as service,
        ):
            try:
                assert service.stdout is not None
                ready = service.stdout.readline()
                assert ready.startswith("fedsvc is ready: grpc="), ready or log.seek(0) or log.read()
                with FedsvcClient(ready.split("grpc=")[1].split()[0]) as client, open(pem) as key:
                    url = f"http://127.0.0.1:{inbox.server_port}/inbox"
                    queued = client.queue_activity(
                        LIKE, url, private_key=key.read(), key_id=f"{ACTOR}#main-key"
                    )
                    end = time.monotonic() + PATIENCE
                    while (state := client.get_delivery(queued.delivery_id).state) != "DELIVERED":
                        assert time.monotonic() < end, f"it is {state}"
                        time.sleep(0.05)
            finally:
                service.terminate()
            assert service.wait(PATIENCE) == 0
    assert len(received) == 1
    assert "signature" in received[0]
    print(f"fedsvc dev has delivered what a client elsewhere queued, by {received[0]['user-agent']}")


if __name__ == "__main__":
    main()
