"""Every key that fedsvc has in Redis, and nothing else, is named here.

All state of a host lives in one partition, and all keys of a partition share one hash slot by their
tag (`fedsvc:{p3}`), so that every script touches a single slot and runs on Redis Cluster.
The Lua scripts build the same names from the same prefix: see `lua/prelude.lua`.

    <ns>:{pN}:ready:urgent|normal|bulk   stream    group `workers`; an entry's id is <number>-0, its
                                                   field `d` the delivery's sequence
    <ns>:{pN}:woken                      stream    the same, for what comes out of a lane straight into a
                                                   worker's hands: all of it is in flight
    <ns>:{pN}:line:<priority>:<origin>   list      sequences of an origin that are ready, for which the stream
                                                   was not short enough; oldest first
    <ns>:{pN}:lines:<priority>           list      origins that have such a line, in the order of their turns
    <ns>:{pN}:deliveries                 hash      sequence -> packed record (see `record.py`): the one
                                                   truth about a delivery; everything else refers to it
    <ns>:{pN}:message:<number>           hash      b body, m packed fields, i identity, o origin,
                                                   n deliveries that still need it
    <ns>:{pN}:activity:<key>             string    latest message's number, then segments of sequences
                                                   with their origin's and inboxes' keys: finds
                                                   duplicates and recipients
    <ns>:{pN}:retry                      zset      sequence by due time (ms): retries and scheduled
    <ns>:{pN}:expiry                     zset      sequence by the caller's expiry (ms)
    <ns>:{pN}:hosts                      hash      host -> packed state: circuit, slots, tokens, pause
    <ns>:{pN}:policies, :pauses          hash      host -> packed limits of its own; why it is paused
    <ns>:{pN}:recent                     hash      host -> its attempts that failed last, packed
    <ns>:{pN}:lane:<priority>:<host>     list      sequences that wait for their host, oldest first
    <ns>:{pN}:wake                       zset      host by the time (ms) at which its lanes are tried again
    <ns>:{pN}:group:<hash>               string    sequences that share an ordering key or concern one object
    <ns>:{pN}:group:<hash>:apart         string    those that concern it, but keep another order
    <ns>:{pN}:held:<hash>:<host>         list      sequences that wait for others before them in order
    <ns>:{pN}:followed                   hash      <hash>:<host> -> how many of those others there are
    <ns>:{pN}:dead                       stream    dead letters: d sequence, o packed outcome
    <ns>:{pN}:outcomes                   stream    every terminal outcome: d, s state, o packed outcome;
                                                   many, o for several: see lua/logged.lua
    <ns>:{pN}:archived                   string    number of the last outcome that SQL has committed
    <ns>:{pN}:trimmed                    string    number of the last outcome that is only in SQL
    <ns>:{pN}:spills                     hash      batch -> what of a lane is in SQL
    <ns>:{pN}:spent                      set       batches that SQL may still have, and nobody needs
    <ns>:{pN}:consumers                  zset      worker -> time (ms) at which its lease ends
    <ns>:{pN}:looked                     string    when (ms) a worker last looked for dead ones
    <ns>:{pN}:counters, :rates           hash      what stats are read from
    <ns>:{pN}:backlog                    hash      origin -> how many of its deliveries are pending
    <ns>:{pN}:sequence                   string    the last number given out (microseconds)
    <ns>:{pN}:request:<id>               string    first answer to a request id; expires
    <ns>:{pN}:archiver                   string    lease of the process that archives this partition
    <ns>:{pN}:operation:<id>             string    how many dead letters an operation has replayed or purged
    <ns>:{pN}:key-uses                   hash      name of a registered key -> messages that need it
    <ns>:key:<name>                      hash      an encrypted private key: of a call, by its fingerprint; or
                                                   registered, by a name that stays when it is replaced
    <ns>:key-names                       set       names of keys of calls
    <ns>:registered-keys                 zset      `<origin> <key id>`, all of score 0
    <ns>:leaving-keys                    set       ids of registered keys that are to be deleted
    <ns>:{operations}:id:<id>            hash      an operation on dead letters: what was asked, how far it is
    <ns>:{operations}:all, :open         zset, set their ids by time; of those that have not ended
    <ns>:{schedules}:id:<id>             hash      a schedule: what was asked, who has its run in hand
    <ns>:{schedules}:all, :due           zset      their ids by name; by when to look at them next (ms)
    <ns>:audit                           list      audit events that SQL does not have yet, oldest first
    <ns>:origins                         set       every origin that has ever sent something
    <ns>:partitions                      string    number of partitions, recorded at first start
    <ns>:formats                         hash      formats of the data -> first version that wrote it
    <ns>:written                         string    written once a second by each server: whether it can be
    <ns>:clock-shift                     (per partition) string, milliseconds; tests move time with it
    <ns>:bell                            channel   a partition's number, when there is work in it; with a `!`
                                                   when it is urgent; `+` or `-` and a worker's name when
                                                   it begins, or takes nothing more
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from fedsvc.domain.delivery import Priority

#: consumer group of the ready streams
GROUP = "workers"


@dataclass(frozen=True, slots=True)
class PartitionKeys:
    """Names of one partition's keys."""

    prefix: str

    def ready(self, priority: Priority) -> str:
        return f"{self.prefix}:ready:{priority.stream}"

    def message(self, number: int) -> str:
        return f"{self.prefix}:message:{number}"

    def activity(self, key: bytes) -> str:
        return f"{self.prefix}:activity:{key.hex()}"

    def group(self, key: str) -> str:
        return f"{self.prefix}:group:{key}"

    def request(self, id: str) -> str:
        return f"{self.prefix}:request:{id}"

    @property
    def deliveries(self) -> str:
        return f"{self.prefix}:deliveries"

    def operation(self, id: str) -> str:
        return f"{self.prefix}:operation:{id}"

    @property
    def key_uses(self) -> str:
        return f"{self.prefix}:key-uses"

    @property
    def spills(self) -> str:
        return f"{self.prefix}:spills"

    @property
    def spent(self) -> str:
        return f"{self.prefix}:spent"

    @property
    def retry(self) -> str:
        return f"{self.prefix}:retry"

    @property
    def backlog(self) -> str:
        return f"{self.prefix}:backlog"

    @property
    def recent(self) -> str:
        return f"{self.prefix}:recent"

    @property
    def consumers(self) -> str:
        return f"{self.prefix}:consumers"

    @property
    def sequence(self) -> str:
        return f"{self.prefix}:sequence"

    @property
    def dead(self) -> str:
        return f"{self.prefix}:dead"

    @property
    def outcomes(self) -> str:
        return f"{self.prefix}:outcomes"

    @property
    def archived(self) -> str:
        return f"{self.prefix}:archived"

    @property
    def archiver(self) -> str:
        return f"{self.prefix}:archiver"

    @property
    def clock_shift(self) -> str:
        return f"{self.prefix}:clock-shift"


@dataclass(frozen=True)
class Keys:
    """Names of all keys of one queue."""

    namespace: str = "fedsvc"

    def partition(self, number: int) -> PartitionKeys:
        return _partition(self.namespace, number)

    def private_key(self, name: str) -> str:
        return f"{self.namespace}:key:{name}"

    @property
    def key_names(self) -> str:
        return f"{self.namespace}:key-names"

    @property
    def registered_keys(self) -> str:
        return f"{self.namespace}:registered-keys"

    @property
    def leaving_keys(self) -> str:
        return f"{self.namespace}:leaving-keys"

    @property
    def partitions(self) -> str:
        return f"{self.namespace}:partitions"

    @property
    def formats(self) -> str:
        return f"{self.namespace}:formats"

    @property
    def written(self) -> str:
        return f"{self.namespace}:written"

    @property
    def audit(self) -> str:
        return f"{self.namespace}:audit"

    @property
    def schedules(self) -> str:
        return f"{self.namespace}:{{schedules}}"

    @property
    def operations(self) -> str:
        return f"{self.namespace}:{{operations}}"

    @property
    def origins(self) -> str:
        return f"{self.namespace}:origins"

    @property
    def bell(self) -> str:
        return f"{self.namespace}:bell"


@cache
def _partition(namespace: str, number: int) -> PartitionKeys:
    return PartitionKeys(f"{namespace}:{{p{number}}}")
