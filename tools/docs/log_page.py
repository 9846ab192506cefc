"""The page of what is logged: read from the calls in the code, with what each event means."""

import ast
from pathlib import Path
from typing import Final, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_LEVELS: Final = ("debug", "info", "warning", "error", "exception", "critical")
#: functions that log at a level which depends, and what it depends on
_TELL: Final = {
    "fedsvc/worker/journal.py": "info or debug",
    "fedsvc/worker/archival_handler.py": "info or debug",
    "fedsvc/worker/scheduler.py": "info or warning",
}

#: what each means, and what to do if it is not plain
EVENTS: Final[dict[str, str]] = {
    "attempt_failed": (
        "A defect of ours while a delivery was tried; it counts as `WORKER_ERROR`. Report it."
    ),
    "audit": (
        "An operator, or a caller with rights, changed something: paused or resumed a host, set its "
        "policy, replayed, purged, changed a key or a schedule, forced a cleanup. Has the details of the "
        "action beside."
    ),
    "audit_event_unreadable": "What waited among audit events is none; it was left out, and others went on.",
    "audit_away": "Audit events cannot be written to SQL; they wait in Redis.",
    "bell_lost": (
        "The subscription by which Redis tells of new work broke; it is made anew, and meanwhile workers "
        "look by themselves."
    ),
    "caller_refused": (
        "Calls without a token that is known, or without the right to what they ask; of each caller once in"
        " ten seconds, with their number."
    ),
    "cancelled": "A call cancelled deliveries.",
    "cancelled_delivery": "A delivery was cancelled.",
    "certificates_not_read": "The TLS files have changed and cannot be used; the former ones go on.",
    "certificates_read": "The TLS files have changed and were read.",
    "child_ended": "A process of ours ended by itself; it is started anew.",
    "child_not_started": "A process could not be started; it is tried again.",
    "circuit_closed": "A host answers again; it gets its backlog, paced.",
    "circuit_opened": "A host failed so often in a row that only probes go there.",
    "dashboard_failed": "A defect of ours in a page of the dashboard. Report it.",
    "dashboard_off": "The dashboard is not served, and why.",
    "dead_letter": "A delivery was given up. `fedsvc dead show` has its attempts.",
    "delivered": "An inbox took a delivery.",
    "delivery_crashed": "A defect of ours; the delivery is taken over by another worker. Report it.",
    "delivery_failed": "A defect of ours: the delivery is a dead letter, `WORKER_ERROR`. Report it.",
    "encryption_keys_not_read": (
        "The file of key encryption keys has changed and cannot be used; the former keys go on."
    ),
    "encryption_keys_read": "The file of key encryption keys has changed and was read.",
    "expired": "A delivery's expiry, set by the caller, has passed.",
    "given_up": (
        "A stopping worker left deliveries to others (`deliveries`); or a process that crashes again and "
        "again is started no more (`child`, at level error)."
    ),
    "handler_failed": "A handler of an activity type raised.",
    "host_asked_to_wait": "A host answered 429 or 503 with a time to wait: nothing goes there until then.",
    "host_down": (
        "A host has failed for longer than `FEDSVC_HOST_DOWN_AFTER`, or says that it is gone. Watchers "
        "are told HOST_DOWN."
    ),
    "host_up": "A host that was down is back. Watchers are told HOST_UP.",
    "hosts_set_right": (
        "What Redis knew of what is in flight to hosts was wrong, and was set right. Often: report it."
    ),
    "inbox_gone": "An inbox answered 410. Watchers are told INBOX_GONE.",
    "key_cannot_be_opened": "No key encryption key opens a stored private key: put the former one back.",
    "key_deleted": "A key that was to be deleted once nothing needs it is gone.",
    "key_rejected": "A host does not take a key's signatures. Watchers are told KEY_REJECTED.",
    "key_of_another_actor": (
        "A call brings an activity that is to be signed with a key whose id is not below its actor's. Lemmy "
        "verifies with the actor's key, and will refuse it. Told once for each key and actor."
    ),
    "keys_encrypted_anew": "Private keys were sealed with the first key encryption key.",
    "keys_not_looked_after": "Redis was away while the keys were looked after; tried again.",
    "killed": "A process did not stop in time and was killed.",
    "left": "A stopping worker gave up its leases.",
    "left_without_word": "A stopping worker could not reach Redis; its leases end by themselves.",
    "listening": "A process serves.",
    "loop_failing": (
        "A loop of a worker, or what it needs, does not work; readiness says so too. Told once, until it "
        "works again."
    ),
    "loop_recovered": "That loop works again.",
    "memory": "Redis has passed `FEDSVC_MEMORY_WARNING`, up (`short` is true) or down.",
    "memory_critical": "Redis has passed `FEDSVC_MEMORY_CRITICAL`: bulk deliveries are refused, later all.",
    "memory_relieved": "Redis has room again: nothing is refused.",
    "no_figures": "The queue's figures could not be read for Prometheus.",
    "no_sample": "The queue's figures could not be read for the dashboard's charts.",
    "not_serving": "The server cannot do its work; readiness says so too.",
    "operation_ended": "A replay or purge has ended.",
    "operation_failed": "A defect of ours ended a replay or purge. Report it.",
    "operation_let_go": "Another server carries an operation on.",
    "operation_taken_up": "This server carries an operation on.",
    "operation_unreadable": "An operation of a later version, or of nobody, is left to others.",
    "operation_waits": "Redis went away during an operation; whichever server is there first goes on.",
    "operations_wait": "Redis is away; operations wait.",
    "origin_backlogs_off": "The backlogs of origins did not add up, and were set right. Often: report it.",
    "outcome_never_archived": "SQL can never hold this outcome; it was passed over.",
    "purge_away": "The archive cannot be purged now; tried again.",
    "reaction_failed": "A handler raised upon an outcome.",
    "reactions_dropped": "Handlers are too slow for their outcomes; some were not told.",
    "reactions_given_up": "A stopping worker did not wait for handlers any longer.",
    "reclaimed": "Deliveries of a worker that died were taken over.",
    "restored": "A host's backlog came back from SQL.",
    "retry": "An attempt failed; the delivery is tried again at `due_ms`, or waits for its host.",
    "rpc_failed": "A defect of ours ended a call with INTERNAL. Report it.",
    "roster_unread": "Redis does not say who works beside this worker; it goes on by what it knew.",
    "schedule_failed": "A defect of ours ended a run of a schedule. Report it.",
    "schedule_left_out": "A run was missed, and the schedule says to leave it out.",
    "schedule_ran": "A run of a schedule has ended, at level warning if it failed.",
    "schedule_unreadable": "A schedule of a later version, or of nobody, is passed over; others run.",
    "schedule_unusable": (
        "This machine does not know the time zone of a schedule, or this version its cron expression; others "
        "run."
    ),
    "schedule_waits": "Redis went away during a run; a worker takes it up again.",
    "serving": "The server can do its work.",
    "settle_refused": (
        "Redis refused to end a delivery's flight: somebody changed what is in it. Report it."
    ),
    "settled_by_another": (
        "A delivery had been taken over and was settled by somebody else; its inbox may have seen it twice."
    ),
    "sign_in_blocked": "Too many wrong tokens from an address at the dashboard.",
    "sign_in_refused": "A wrong token at the dashboard.",
    "signing_process_ended": (
        "The process that signs for a worker has ended: the worker signs what is left itself, and starts "
        "another."
    ),
    "signing_process_failed": (
        "No process that signs could be started: the worker signs itself, which slows it down."
    ),
    "spill_away": "SQL or Redis is away; no backlog moves between them.",
    "spilled": "Part of the backlog of a host that is down moved to SQL.",
    "spilled_batch_adopted": (
        "Redis has lost its memory, or was restored to an earlier state: it was told of a part of a backlog "
        "that waits in SQL, which comes back with its host."
    ),
    "spilled_batch_missing": (
        "SQL does not have a batch that it should: was it, or Redis, restored from a backup?"
    ),
    "spilled_given_up": (
        "Deliveries whose batch SQL does not have ended: as the archive says that they had, or because "
        "nobody wants them or their time is over; those are dead letters, `BODY_MISSING`."
    ),
    "stopped": "A process has ended in order.",
    "stopping": "A process was told to stop.",
    "superseded": "A delivery was made pointless by a newer one.",
    "tokens_not_read": "The file of tokens has changed and cannot be used; the former tokens go on.",
    "tokens_read": "The file of tokens was read.",
    "unsettled": (
        "A stopping worker could not settle deliveries; others take them over, and inboxes may see them "
        "twice."
    ),
}


class Line(NamedTuple):
    event: str
    level: str
    fields: tuple[str, ...]
    where: str


def lines() -> list[Line]:
    """Every call that logs an event, wherever it is."""
    found = []
    for path in sorted((ROOT / "fedsvc").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            level = _level(node.func, name)
            if level and node.args and isinstance(node.args[0], ast.Constant):
                fields = [word.arg for word in node.keywords if word.arg and word.arg != "exc_info"]
                if any(isinstance(word.value, ast.Name) and not word.arg for word in node.keywords):
                    fields += _common_fields(tree)
                found.append(Line(str(node.args[0].value), level, tuple(fields), name))
    return found


def _level(called: ast.expr, module: str) -> str:
    match called:
        case ast.Attribute(ast.Name("log"), level) if level in _LEVELS:
            return "error" if level == "exception" else level
        case ast.Name("tell") | ast.Attribute(_, "_tell") if module in _TELL:
            return _TELL[module]
        case _:
            return ""


def _common_fields(module: ast.Module) -> list[str]:
    """Keys of what a module calls `fields`, and hands on to a line as a whole."""
    found = []
    for node in ast.walk(module):
        match node:
            case ast.Assign([ast.Name("fields")], ast.Dict(keys)) | ast.AnnAssign(
                ast.Name("fields"), value=ast.Dict(keys)
            ):
                found += [str(key.value) for key in keys if isinstance(key, ast.Constant)]
            case ast.Assign([ast.Subscript(ast.Name("fields"), ast.Constant(key))]):
                found.append(str(key))
            case _:
                pass
    return found


def log_page() -> str:
    page = [
        "# Log events",
        "",
        "Every line that server and workers log, generated from the code by `make docs`. One line of JSON",
        "each, on standard error; `FEDSVC_LOG_LEVEL` says from which level on, `FEDSVC_LOG_FORMAT=console`",
        "makes them text. Each has `timestamp`, `process`, `level` and `event`; what is written while a call",
        "is served also has `rpc`, `caller` and the call's `request_id`, and with",
        "[tracing](../operations.md#traces) `trace_id`. Lines with an exception have it in `exception`.",
        "Private keys, passwords and tokens are taken out of all of them.",
        "",
        "*info or debug*: info with `FEDSVC_LOG_DELIVERIES`.",
        "",
        "| event | level | fields | what it means |",
        "|---|---|---|---|",
    ]
    found = lines()
    for event in sorted({line.event for line in found}):
        told = [line for line in found if line.event == event]
        levels = ", ".join(dict.fromkeys(line.level for line in told))
        fields = ", ".join(f"`{field}`" for field in dict.fromkeys(f for line in told for f in line.fields))
        page.append(f"| `{event}` | {levels} | {fields or '-'} | {EVENTS[event]} |")
    if unknown := EVENTS.keys() - {line.event for line in found}:
        raise ValueError(f"nobody logs {sorted(unknown)}")
    return "\n".join(page) + "\n"
