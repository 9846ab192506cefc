"""What PyFedi (PieFed) needs of fedsvc, under the names that it uses today.

    from fedsvc_client.pyfedi import fan_out, send_post_request

`send_post_request` stands in for the one of `app.activitypub.signature`, `fan_out` for loops over following
instances, `get_producer` for the one of the older federation module, `watch` and `Reactions` for what PieFed
does today with the answers of inboxes. Settings come from the environment or Flask's configuration:
FEDSVC_TARGET, FEDSVC_TOKEN and so on, see `fedsvc_client.Configuration`.

Everything here blocks for the time of one call and needs no event loop. It may be used in requests, in Celery
tasks and by threads, and in processes that fork before or after the first call."""

from fedsvc_client._configuration import shared_client as get_client
from fedsvc_client.pyfedi._context import default_context
from fedsvc_client.pyfedi._producer import FederationProducer, get_producer
from fedsvc_client.pyfedi._reactions import Reactions, react, watch
from fedsvc_client.pyfedi._sending import Refusal, fan_out, on_refusal, send_post_request

__all__ = [
    "FederationProducer",
    "Reactions",
    "Refusal",
    "default_context",
    "fan_out",
    "get_client",
    "get_producer",
    "on_refusal",
    "react",
    "send_post_request",
    "watch",
]
