"""Which handler an activity type has. Built once for each process.

Others add handlers as entry points of the group `fedsvc.handlers`, each a subclass of Handler. One that
cannot be taken is an error at start which names it: without its rules nothing would be as it was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, NamedTuple

from fedsvc.domain.activity import MAX_ID, MAX_TYPE, Activity
from fedsvc.domain.delivery import Priority
from fedsvc.domain.relations import Relation, Rule
from fedsvc.domain.retry import RetryPolicy
from fedsvc.errors import ConfigurationError, HandlerFailed, InvalidActivity
from fedsvc.handlers.base import DeliveryOutcome, Handler
from fedsvc.handlers.collections import Add, Remove
from fedsvc.handlers.content import Create, Delete, Update
from fedsvc.handlers.default import Default
from fedsvc.handlers.moderation import Flag, Move
from fedsvc.handlers.responses import Answer, Block, Follow
from fedsvc.handlers.votes import Announce, Undo, Vote

GROUP: Final = "fedsvc.handlers"
BUILT_IN: Final[tuple[type[Handler], ...]] = (
    Create, Update, Delete, Follow, Answer, Vote, Announce, Undo, Add, Remove, Block, Flag, Move,
)  # fmt: skip
_OWN: Final = frozenset((*BUILT_IN, Default))
#: characters of a key that a handler makes: an Add's is of two ids
_MAX_KEY: Final = 2 * MAX_ID + 1


class Rules(NamedTuple):
    """What the server goes by for an activity, if its caller asks for nothing else."""

    priority: Priority
    relation: Relation


class Registry:
    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        """`handlers`: by type, as `built_in` and `load` make them."""
        self._handlers = dict(handlers)
        self._default: Final = Default()

    @classmethod
    def built_in(cls) -> Registry:
        """Ours alone."""
        return cls({name: handler for made in BUILT_IN for handler in (made(),) for name in made.types})

    @classmethod
    def load(cls, installed: Iterable[EntryPoint] | None = None) -> Registry:
        """Ours, and those of others that are installed. Raises ConfigurationError, which names the entry
        point."""
        registry = cls.built_in()
        added: dict[str, EntryPoint] = {}
        points = entry_points(group=GROUP) if installed is None else installed
        for point in sorted(points, key=lambda point: (point.name, point.value)):
            handler = _loaded(point)
            for name in handler.types:
                if name in added:
                    raise _refused(point, f"handles {name}, as {_told(added[name])} does")
                if name in registry._handlers and not handler.replaces:
                    problem = f"handles {name}, which is built in: say `replaces = True` to replace it"
                    raise _refused(point, problem)
                added[name] = point
            registry._handlers.update(dict.fromkeys(handler.types, handler))
        return registry

    def of(self, activity_type: str) -> Handler:
        """The type's handler, or the default."""
        return self._handlers.get(activity_type, self._default)

    @property
    def types(self) -> tuple[str, ...]:
        """All that have a handler of their own."""
        return tuple(self._handlers)

    def rules(self, activity: Activity) -> Rules:
        """Check an activity and say what holds for it. Raises InvalidActivity, HandlerFailed."""
        handler = self.of(activity.type)
        try:
            handler.check(activity)
            relation = handler.relation(activity)
            priority = handler.priority
            if type(handler) not in _OWN:
                _examine(priority, relation)
        except InvalidActivity:
            raise
        except Exception as error:
            raise HandlerFailed(_name(handler), activity.type) from error
        return Rules(priority, relation)

    def retry(self, activity_type: str) -> RetryPolicy:
        """The type's policy. Raises HandlerFailed."""
        handler = self.of(activity_type)
        try:
            policy = handler.retry
            if type(policy) is not RetryPolicy or policy.problem():
                raise TypeError("retry is no sound RetryPolicy")
        except Exception as error:
            raise HandlerFailed(_name(handler), activity_type) from error
        return policy

    def reaction(self, activity_type: str) -> Callable[[DeliveryOutcome], None] | None:
        """What is to be called with the outcomes of a type; None if its handler reacts to nothing."""
        handler = self.of(activity_type)
        return handler.on_outcome if type(handler).on_outcome is not Handler.on_outcome else None

    @property
    def reacts(self) -> bool:
        """Whether any handler reacts to outcomes."""
        return any(self.reaction(name) is not None for name in self._handlers)


def _examine(priority: Any, relation: Any) -> None:
    """Whether the queue can store what a handler of others says. Raises TypeError."""
    if type(priority) is not Priority:
        raise TypeError("priority is no Priority")
    if type(relation) is not Relation or type(relation.rule) is not Rule:
        raise TypeError("relation() gave no Relation with a Rule")
    for text in (relation.ordering_key, relation.family, relation.undoes):
        if type(text) is not str or len(text) > _MAX_KEY or not text.isprintable():
            raise TypeError(f"relation() gave a key that is not text of at most {_MAX_KEY} characters")


def _loaded(point: EntryPoint) -> Handler:
    try:
        made = point.load()
    except Exception as error:
        raise _refused(point, f"cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(made, type) and issubclass(made, Handler)):
        raise _refused(point, "is no subclass of fedsvc.handlers.Handler")
    try:
        handler = made()
        problem = _problem(handler)
    except Exception as error:
        raise _refused(point, f"cannot be made: {type(error).__name__}: {error}") from error
    if problem:
        raise _refused(point, problem)
    return handler


def _problem(handler: Handler) -> str:
    """What is wrong with a handler, in words; empty if nothing is."""
    names: Any = handler.types
    if not isinstance(names, tuple) or not names:
        return "its types are no tuple of names"
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_TYPE or not name.isprintable():
            return f"its types have {name!r}, which is no name of at most {MAX_TYPE} printable characters"
    if len(set(names)) < len(names):
        return "its types have a name twice"
    if type(handler.priority) is not Priority:
        return "its priority is no Priority"
    if type(handler.retry) is not RetryPolicy:
        return "its retry is no RetryPolicy"
    problem = handler.retry.problem()
    return f"its retry: {problem}" if problem else ""


def _refused(point: EntryPoint, problem: str) -> ConfigurationError:
    return ConfigurationError(f"entry point {_told(point)}", problem)


def _told(point: EntryPoint) -> str:
    origin = f" of {point.dist.name}" if point.dist else ""
    return f"{GROUP}:{point.name} = {point.value}{origin}"


def _name(handler: Handler) -> str:
    return f"{type(handler).__module__}.{type(handler).__qualname__}"
