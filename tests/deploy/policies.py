"""Policies that do not hold, each with why."""

from __future__ import annotations

from typing import Final

EXEMPT: Final[dict[str, dict[str, str]]] = {
    "chart": {
        "CKV_K8S_11": "no limit of CPU by default: throttling costs deadlines; values take one",
        "CKV_K8S_15": "a tag or digest of ours is never another image later; values take Always",
        "CKV_K8S_43": "the digest is that of the operator's registry: image.digest",
    },
    "compose": {
        "CL-0019": "images are pinned by version; a digest would be of one platform, and none was checked",
        "CL-0026": "no limit of CPU: throttling costs deadlines; memory and processes have theirs",
    },
    "image": {"CKV_DOCKER_7": "later stages stand on the first, whose base is pinned by the day"},
}
HADOLINT_IGNORED: Final[dict[str, str]] = {
    "DL3008": "Debian serves one version of a package at a time: one that is pinned soon is gone",
}
