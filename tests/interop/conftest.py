"""Fixtures of the interop tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from interop.node import NoRegistry
from interop.verifiers import Inboxes, verifier_inboxes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inboxes() -> AsyncIterator[Inboxes]:
    """The verifiers, serving. If npm's registry cannot be reached, their tests are skipped."""
    try:
        async with verifier_inboxes() as serving:
            yield serving
    except NoRegistry as error:
        pytest.skip(f"the verifiers of npm cannot be installed: {error}")
