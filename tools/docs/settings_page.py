"""The page of settings."""

from fedsvc.config import Settings
from fedsvc.config_types import Address


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "Environment variables, read by every command. Generated from `fedsvc/config.py` by `make docs`.",
        "An unknown `FEDSVC_` variable or a bad value is an error at start that names it.",
        "",
        "| variable | default | what it is |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        if hasattr(default, "get_secret_value"):
            default = default.get_secret_value()
        if isinstance(default, (tuple, frozenset)) and not isinstance(default, Address):
            default = ",".join(map(str, sorted(default)))
        text = "" if default is None else str(default)
        text = text.lower() if isinstance(default, bool) else text
        shown = f"`{text}`" if text else "-"
        lines.append(f"| `{Settings.variable(name)}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"
