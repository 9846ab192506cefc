"""Containers of the image, as a cluster would run them: read-only, without root and without any rights.

docker and podman run them themselves. buildah only builds: what it has built is mounted, and runc runs it.
They share the network of this machine, so that servers and inboxes on loopback are reached.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: seconds for a command that ends by itself
PATIENCE = 120
UID = 10001


def output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


class Runtime(ABC):
    #: how containers are kept apart from the machine, in words
    isolation: str
    #: bytes
    size: int

    def __init__(self, image: str, mounts: Mapping[str, Path]) -> None:
        """`mounts`: what containers see, read-only, by where they see it."""
        self.image = image
        self.mounts = mounts

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """User, Entrypoint, Labels, Healthcheck and so on, by Docker's names."""

    @abstractmethod
    def command(self, name: str, arguments: tuple[str, ...], environment: Mapping[str, str]) -> list[str]:
        """What runs a container in the foreground."""

    @abstractmethod
    def exec(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run something in a container that runs."""

    @abstractmethod
    def kill(self, name: str) -> None:
        """End it at once, if it is there; what it leaves is removed."""

    @abstractmethod
    def close(self) -> None: ...


class Engine(Runtime):
    """docker or podman."""

    def __init__(self, program: str, image: str, mounts: Mapping[str, Path]) -> None:
        super().__init__(image, mounts)
        self._program = program
        self.isolation = f"{program}: its own namespaces, read-only, no capabilities, network of the host"
        self._told = json.loads(output_of(program, "image", "inspect", image))[0]
        self.size = self._told["Size"]

    @property
    def config(self) -> dict[str, Any]:
        # podman tells of the health check beside the rest
        return {"Healthcheck": self._told.get("Healthcheck"), **self._told["Config"]}

    def command(self, name: str, arguments: tuple[str, ...], environment: Mapping[str, str]) -> list[str]:
        rights = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
        variables = [part for pair in environment.items() for part in ("--env", "=".join(pair))]
        volumes = [part for to, what in self.mounts.items() for part in ("--volume", f"{what}:{to}:ro")]
        run = (self._program, "run", "--rm", "--name", name, "--network", "host")
        return [*run, *rights, "--tmpfs", "/tmp", *volumes, *variables, self.image, *arguments]

    def exec(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = (self._program, "exec", name, *arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)

    def kill(self, name: str) -> None:
        subprocess.run((self._program, "rm", "--force", name), capture_output=True, timeout=PATIENCE)

    def close(self) -> None:
        return


class Bundles(Runtime):
    """What buildah has built, run by runc."""

    isolation = (
        "runc: namespaces for processes, mounts, IPC and host name, read-only root, user 10001, no "
        "capabilities, no new privileges; network of the host, no seccomp profile"
    )

    def __init__(self, image: str, mounts: Mapping[str, Path]) -> None:
        super().__init__(image, mounts)
        told = json.loads(output_of("buildah", "inspect", "--type", "image", image))
        self._config: dict[str, Any] = told["Docker"]["config"]
        self._working = output_of("buildah", "from", "--pull-never", image).strip()
        self._scratch = tempfile.TemporaryDirectory(prefix="fedsvc-image-")
        self._root = output_of("buildah", "mount", self._working).strip()
        files = (path for path in Path(self._root).rglob("*") if path.is_file() and not path.is_symlink())
        self.size = sum(path.stat().st_size for path in files)

    @property
    def config(self) -> dict[str, Any]:
        return self._config

    def command(self, name: str, arguments: tuple[str, ...], environment: Mapping[str, str]) -> list[str]:
        own = dict(entry.split("=", 1) for entry in self._config["Env"])
        process = {
            "terminal": False,
            "user": {"uid": UID, "gid": UID},
            "args": [*self._config["Entrypoint"], *arguments],
            "env": [f"{key}={value}" for key, value in (own | dict(environment)).items()],
            "cwd": self._config["WorkingDir"],
            "capabilities": {},
            "noNewPrivileges": True,
        }
        tmpfs = ["nosuid", "nodev", "mode=1777", "size=64m"]
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755", "size=64k"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": tmpfs},
            *(
                {"destination": to, "type": "bind", "source": what, "options": ["rbind", "ro"]}
                for to, what in (
                    *((to, str(what)) for to, what in self.mounts.items()),
                    ("/etc/hosts", "/etc/hosts"),
                    ("/etc/resolv.conf", "/etc/resolv.conf"),
                )
            ),
        ]
        bundle = Path(self._scratch.name, name)
        bundle.mkdir(exist_ok=True)
        (bundle / "config.json").write_text(
            json.dumps(
                {
                    "ociVersion": "1.0.2",
                    "process": process,
                    "root": {"path": self._root, "readonly": True},
                    "hostname": name[:60],
                    "mounts": mounts,
                    "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
                }
            )
        )
        return ["runc", "run", "--bundle", str(bundle), name]

    def exec(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ("runc", "exec", name, *arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)

    def kill(self, name: str) -> None:
        subprocess.run(("runc", "delete", "--force", name), capture_output=True, timeout=PATIENCE)

    def close(self) -> None:
        subprocess.run(("buildah", "umount", self._working), capture_output=True, timeout=PATIENCE)
        subprocess.run(("buildah", "rm", self._working), capture_output=True, timeout=PATIENCE)
        self._scratch.cleanup()


class Container:
    """One container that runs until it is stopped; its output is kept in `log`."""

    def __init__(
        self, runtime: Runtime, log: Path, arguments: tuple[str, ...], environment: Mapping[str, str]
    ) -> None:
        self._runtime = runtime
        self.name = f"fedsvc-check-{os.getpid()}-{secrets.token_hex(4)}"
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                runtime.command(self.name, arguments, environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def exec(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._runtime.exec(self.name, *arguments)

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()  # both docker run and runc run hand it on
        return self.wait()

    def close(self) -> None:
        self._runtime.kill(self.name)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def runtime_of(engine: str, image: str, mounts: Mapping[str, Path]) -> Runtime:
    return Bundles(image, mounts) if engine == "buildah" else Engine(engine, image, mounts)
