"""Many hosts with TLS: how often two worker processes shake hands with each, and what a delivery costs."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

from benchmarks import certificates
from benchmarks.conditions import Conditions
from benchmarks.contenders import Bare, Ours
from benchmarks.figures import Figure, Section, at_most, ratios
from benchmarks.load import address
from benchmarks.race import Contender, race, say

EACH = 10
#: hosts that share a certificate
SHARED = 100
#: open files of a process beside its connections
SPARE = 500


def run(conditions: Conditions) -> Section:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE
    wanted = conditions.pick(10_000, 500)
    hosts = min(wanted, most // SHARED * SHARED)
    deliveries = EACH * hosts
    with tempfile.TemporaryDirectory(prefix="fedsvc-bench-") as directory:
        addresses = [address(n) for n in range(hosts)]
        ca, files = certificates.make(Path(directory), addresses, SHARED)
        with conditions.stage(files, FEDSVC_CA_FILE=str(ca)) as (service, sink):
            bare = Bare(service, sink, deliveries, hosts=hosts, ca=str(ca))
            ours = Ours(service, sink, deliveries, processes=2, hosts=hosts, tls=True)
            contenders: list[Contender] = [bare, ours]
            for contender in (bare, ours):
                contender.uncounted = 1  # handshakes are in the first of all
            # minutes each: once
            laps = race(contenders, 1, sink, service.database, say)
    our, their = laps[ours.name].laps, laps[bare.name].laps
    cpu, theirs = laps[ours.name].cpu_us, laps[bare.name].cpu_us
    notes = [
        "handshakes in full: one that resumes a session costs no certificate; addresses of 127.0.0.0/8 stand "
        "for names, so that no lookup is in it; certificates (P-256) are verified",
    ]
    if hosts < wanted:
        notes.append(f"{hosts:,} hosts instead of {wanted:,}: no more files may be open (RLIMIT_NOFILE)")
    return Section(
        "tls",
        f"TLS: {hosts:,} hosts, {EACH} deliveries each, two worker processes; one round",
        [
            Figure("handshakes per host", "", [lap.handshakes / hosts for lap in our], at_most(1.2), 2),
            Figure("connections per host", "", [lap.connections / hosts for lap in our], None, 2),
            Figure("bare: handshakes per host", "", [lap.handshakes / hosts for lap in their], None, 2),
            Figure("worker CPU per delivery, handshakes included", "us", cpu),
            Figure("bare: CPU per delivery", "us", theirs),
            Figure("worker CPU per delivery, to bare's", "x", ratios(cpu, theirs), None, 2),
            Figure("deliveries per second", "/s", laps[ours.name].per_second),
            Figure("bare: deliveries per second", "/s", laps[bare.name].per_second),
        ],
        notes,
    )
