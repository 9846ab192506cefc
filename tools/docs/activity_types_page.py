"""The page of activity types."""

from fedsvc.domain.activity import Activity
from fedsvc.domain.relations import Rule
from fedsvc.handlers.registry import Registry

#: what a delivery takes back that was not sent yet, in words
_TAKEN_BACK = {
    Rule.NONE: "-",
    Rule.SAME_KEY: "what has the same key",
    Rule.OLDER_UPDATES: "Updates of the same object",
    Rule.OBJECT: "Create and Updates of the same object",
    Rule.UNDONE: "the activity that it undoes",
}


def handlers_page() -> str:
    lines = [
        "# Activity types",
        "",
        "What holds for each type if the caller asks for nothing else. Generated from `fedsvc/handlers` by",
        "`make docs`; [how to add a type](../handlers.md).",
        "",
        "Attempts are one more than retries. The delay before a retry is the first delay, times the factor",
        "for each one before it, up to the longest; of that 80 to 100 percent are waited, times",
        "`FEDSVC_RETRY_SCALE`. Deliveries that share an ordering key and a host go one after the other; an",
        "Announce of an activity goes in the order of what it announces. What is taken back was not sent.",
        "",
        "| type | priority | retries | factor | first delay s | longest s | ordering key | takes back |",
        "|---|---|---|---|---|---|---|---|",
    ]
    registry = Registry.built_in()
    for name in (*registry.types, "others"):
        handler = registry.of(name)
        policy = handler.retry
        relation = handler.relation(_sample(name))
        keys = [relation.ordering_key]
        if name == "Announce":  # of what else may be announced
            keys += [handler.relation(_sample(name, inner)).ordering_key for inner in ("Create", "Like")]
        shown = " or ".join(f"`{key}`" for key in keys) if any(keys) else "-"
        retries = f"{policy.retries} | {policy.factor}"
        delays = f"{policy.first_delay_s:g} | {policy.longest_delay_s:g}"
        taken_back = _TAKEN_BACK[relation.rule]
        lines.append(f"| {name} | {handler.priority.name} | {retries} | {delays} | {shown} | {taken_back} |")
    return "\n".join(lines) + "\n"


def _sample(name: str, inner: str = "") -> Activity:
    """An activity whose members say where they come from."""
    return Activity("id", name, "actor", "object", inner, "object.object", "target")
