"""How settings are read from the environment, and what is told of those that are wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fedsvc.config_files import urls_from_files
from fedsvc.config_types import as_text
from fedsvc.errors import ConfigurationError

#: names that existed before fedsvc and are kept; every other setting is FEDSVC_<NAME>
INHERITED: Final = frozenset(
    {"REDIS_URL", "DATABASE_URL", "MAX_RETRY_DURATION", "TASK_TTL", "MAX_BATCH_SIZE"}
)


class FromEnvironment(BaseModel):
    """An object of settings: each field is a variable."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    def contradictions(self) -> Iterator[ConfigurationError]:
        """What is valid by itself, and does not go together: nothing starts so."""
        return iter(())

    @classmethod
    def variable(cls, field: str) -> str:
        """The environment variable that sets `field`."""
        name = field.upper()
        return name if name in INHERITED else f"FEDSVC_{name}"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Read `environ` (the process's by default). `overrides` that are not None win.

        Raises ConfigurationError naming every bad or unknown variable. FEDSVC_CLIENT_ is the client's.
        """
        settings, problems = cls.read(environ, **overrides)
        if problems := problems or list(settings.contradictions()):
            raise _together(problems)
        return settings

    @classmethod
    def read(
        cls, environ: Mapping[str, str] | None = None, **overrides: Any
    ) -> tuple[Self, list[ConfigurationError]]:
        """The same, and what is wrong with it: what is bad or unknown is taken as if it were not set."""
        environ = os.environ if environ is None else environ
        names = {cls.variable(field): field for field in cls.model_fields}
        values: dict[str, Any] = {names[name]: value for name, value in environ.items() if name in names}
        problems = [
            ConfigurationError(name, "unknown setting")
            for name in sorted(environ.keys() - names.keys())
            if name.startswith("FEDSVC_") and not name.startswith("FEDSVC_CLIENT_")
        ]
        given = {field: value for field, value in overrides.items() if value is not None}
        values, unread = urls_from_files(values, given, {field: name for name, field in names.items()})
        values, problems = values | given, problems + unread
        try:
            return cls(**values), problems
        except ValidationError as error:
            wrong = {
                str(told["loc"][0]): told["msg"].removeprefix("Value error, ")
                for told in error.errors(include_input=False, include_url=False)
            }
        problems += [ConfigurationError(cls.variable(field), problem) for field, problem in wrong.items()]
        return cls(**{field: value for field, value in values.items() if field not in wrong}), problems

    def to_environment(self) -> dict[str, str]:
        """The variables that make another process read the same settings (secrets in clear)."""
        return {self.variable(field): as_text(getattr(self, field)) for field in type(self).model_fields}


def _together(problems: Sequence[ConfigurationError]) -> ConfigurationError:
    """All of them as one; there is one at least."""
    first, *others = problems
    return ConfigurationError(first.setting, "; ".join((first.problem, *map(str, others))))
