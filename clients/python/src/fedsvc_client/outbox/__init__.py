"""A transactional outbox: an activity is written in the application's own transaction, and a relay hands it
to fedsvc.

    outbox = Outbox(metadata=db.metadata)                      # the table fedsvc_outbox, for Alembic too
    outbox.queue_activity(session, activity, inbox, key_id=key_id)
    session.commit()                                           # both, or neither

    Relay(engine, client, outbox).run()                        # elsewhere: a thread, or the command
    fedsvc-outbox

Needs SQLAlchemy 2, which `pip install fedsvc-client[outbox]` brings. Works on PostgreSQL and SQLite; with a
Session, a Connection or Flask-SQLAlchemy's `db.session`. No private key is ever written: name one that the
server keeps, or give the relay a function that finds it."""

try:
    import sqlalchemy as _sqlalchemy  # noqa: F401
except ImportError as error:
    raise ImportError("fedsvc_client.outbox needs SQLAlchemy: pip install 'fedsvc-client[outbox]'") from error

from fedsvc_client.outbox._cursor import SqlCursor
from fedsvc_client.outbox._relay import Relay, Round
from fedsvc_client.outbox._table import Outbox, PutAside, Status

__all__ = ["Outbox", "PutAside", "Relay", "Round", "SqlCursor", "Status"]
