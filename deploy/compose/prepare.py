"""Make the secrets that compose.yaml takes, each a file in deploy/compose/secrets. Needs nothing but Python.

    python3 deploy/compose/prepare.py --origin social.example

Those that are there already stay as they are, so that it may be run again. The containers' users are others
than yours and have to read the files; nobody else gets into the directory.
"""

import argparse
import base64
import hashlib
import re
import secrets
import sys
from pathlib import Path

DIRECTORY = Path(__file__).parent / "secrets"


def password() -> str:
    return secrets.token_urlsafe(24)


def entry(name: str, scopes: str, origins: str, token: str) -> str:
    """By which the server knows a token, which does not follow from it."""
    return f"{name}:{scopes}:{origins}:{hashlib.sha256(token.encode()).hexdigest()}"


def contents(origins: list[str]) -> dict[str, str]:
    """`origins`: hosts of the key ids that the application signs for."""
    redis, postgres = password(), password()
    application, operator = (f"fedsvc_{secrets.token_urlsafe(32)}" for _ in range(2))
    tokens = [
        entry("application", "deliver+keys", "+".join(origins), application),
        entry("operator", "operate+deliver+keys", "*", operator),
    ]
    return {
        "redis-url": f"redis://:{redis}@valkey:6379/0",
        "valkey-settings": f"requirepass {redis}",
        "database-url": f"postgresql://fedsvc:{postgres}@postgres/fedsvc",
        "postgres-password": postgres,
        "key-encryption-keys": base64.b64encode(secrets.token_bytes(32)).decode(),
        "token": application,
        "operator-token": operator,
        "tokens": "\n".join(tokens),
        "grafana-password": password(),
    }


def main(directory: Path, origins: list[str]) -> None:
    made = contents(origins)
    there = {name for name in made if (directory / name).exists()}
    if there and there != made.keys():
        sys.exit(f"{directory} has some of the secrets and not others: they belong together")
    if there:
        print(f"{directory} has all of them already")
        return
    if not origins:
        sys.exit("say with --origin for which host the application signs, such as --origin social.example")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    for name, text in made.items():
        path = directory / name
        path.write_text(text + "\n")
        path.chmod(0o444)
    print(f"made {len(made)} files in {directory}; keep a copy of key-encryption-keys elsewhere")
    print(f"the application shows the server the token in {directory / 'token'}")
    print(f"operators show it that in {directory / 'operator-token'}")


def origin(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", text):
        raise argparse.ArgumentTypeError("is no host, in lower case and without https:// or port")
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", nargs="?", type=Path, default=DIRECTORY)
    parser.add_argument(
        "--origin", action="append", type=origin, default=[], help="host of the key ids that the application "
        "signs for; may be given several times",
    )  # fmt: skip
    options = parser.parse_args()
    main(options.directory, options.origin)
