"""Make the secrets that compose.yaml takes, each a file in deploy/compose/secrets. Needs nothing but Python.

Those that are there already stay as they are, so that it may be run again. The containers' users are others
than yours and have to read the files; nobody else gets into the directory.
"""

import base64
import hashlib
import secrets
import sys
from pathlib import Path

DIRECTORY = Path(__file__).parent / "secrets"


def password() -> str:
    return secrets.token_urlsafe(24)


def contents() -> dict[str, str]:
    redis, postgres, token = password(), password(), secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode()).hexdigest()
    return {
        "redis-url": f"redis://:{redis}@valkey:6379/0",
        "valkey-settings": f"requirepass {redis}",
        "database-url": f"postgresql://fedsvc:{postgres}@postgres/fedsvc",
        "postgres-password": postgres,
        "key-encryption-keys": base64.b64encode(secrets.token_bytes(32)).decode(),
        # the one is for the application, the other, from which it does not follow, for the server
        "token": token,
        "tokens": f"application:deliver+operate+keys:*:{digest}",
        "grafana-password": password(),
    }


def main(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    made = contents()
    there = {name for name in made if (directory / name).exists()}
    if there and there != made.keys():
        sys.exit(f"{directory} has some of the secrets and not others: they belong together")
    if there:
        print(f"{directory} has all of them already")
        return
    for name, text in made.items():
        path = directory / name
        path.write_text(text + "\n")
        path.chmod(0o444)
    print(f"made {len(made)} files in {directory}; keep a copy of key-encryption-keys elsewhere")
    print(f"the application shows the server the token in {directory / 'token'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else DIRECTORY)
