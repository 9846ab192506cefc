"""A small application in the manner of PieFed: Flask requests and Celery tasks that send by the drop-in.

gunicorn servers.piefed_app:app            celery -A servers.piefed_app:celery worker
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import flask
from celery import Celery
from fedsvc_client import FedsvcError
from fedsvc_client.pyfedi import fan_out, get_producer, send_post_request

app = flask.Flask(__name__)
celery = Celery("piefed", broker=os.environ["BROKER"])
celery.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)

PEM = Path(os.environ["KEY_FILE"]).read_text()
KEY_ID = "https://me.example/u/ada#main-key"

if os.environ.get("CALL_BEFORE_FORK"):
    # What a careless application does when it is loaded, before gunicorn forks.
    with app.app_context():
        get_producer().get_queue_stats()


def activity(name: str, kind: str, **more: Any) -> dict[str, Any]:
    actor = "https://me.example/u/ada"
    return {
        "id": f"https://me.example/{name}",
        "type": kind,
        "actor": actor,
        "object": "https://o.example/1",
    } | more


@celery.task(autoretry_for=(FedsvcError,), max_retries=3)  # type: ignore[untyped-decorator]
def send(name: str, inbox: str) -> bool:
    return send_post_request(
        inbox,
        activity(name, "Create", object={"type": "Note", "id": f"https://me.example/n/{name}"}),
        PEM,
        KEY_ID,
    )


@app.post("/vote/<name>")
def vote(name: str) -> dict[str, Any]:
    """In the request itself."""
    queued = send_post_request(flask.request.form["inbox"], activity(name, "Like"), PEM, KEY_ID)
    return {"queued": queued, "pid": os.getpid()}


@app.post("/unvote/<name>")
def unvote(name: str) -> dict[str, Any]:
    undo = activity(f"undo-{name}", "Undo", object=activity(name, "Like"))
    return {"queued": send_post_request(flask.request.form["inbox"], undo, PEM, KEY_ID)}


@app.post("/post/<name>")
def post(name: str) -> dict[str, Any]:
    """By a task."""
    send.delay(name, flask.request.form["inbox"])
    return {"queued": True}


@app.post("/announce/<name>")
def announce(name: str) -> dict[str, Any]:
    told = fan_out(activity(name, "Announce"), flask.request.form.getlist("inbox"), PEM, KEY_ID)
    return {"accepted": told.accepted}
