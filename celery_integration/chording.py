"""Chords counted in the file: the last part to return publishes the body, once.

No task polls for it. A part is stored with its task's result; a worker that dies between the last
part and the body leaves a mark, which another one finds (see ``kombu_sqlite.chords``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

from celery import states
from celery._state import get_current_task
from celery.app.task import Context
from celery.backends.base import Backend
from celery.canvas import _chain, chord, group, maybe_signature
from celery.exceptions import ChordError, TaskRevokedError
from celery.result import GroupResult, allow_join_result, result_from_tuple
from celery.utils.log import get_logger
from kombu.utils.uuid import uuid

from kombu_sqlite import QueueBusyError, QueueDiskError, Store

__all__ = ("ChordMixin", "Part")

logger = get_logger(__name__)

#: A chord whose header does not end is forgotten after so long, unless the app says when.
_UNFINISHED_S = 90 * 86400.0


def _ends_of(signature: Any, app: Any) -> Iterator[Any]:
    """Yield the signatures that may each be a part of the chord around ``signature``."""
    yield signature
    tasks: list[Any] = []
    if isinstance(signature, group):
        tasks = list(signature.tasks)
    elif isinstance(signature, _chain):
        tasks = list(signature.tasks)[-1:]
    for task in tasks:
        yield from _ends_of(maybe_signature(task, app=app), app)


def _members_of(chain: Any) -> Iterator[Any]:
    """Yield the elements of a request's chain, and after a group the tasks in it."""
    for element in chain if isinstance(chain, (list, tuple)) else ():
        yield element
        if isinstance(element, dict) and element.get("subtask_type") in ("group", "chain"):
            yield from _members_of(element["kwargs"].get("tasks"))


def _is_nested(results: Any) -> bool:
    """Return whether a header's results have a structure that the parts alone would not show.

    A header that a generator makes is judged by its first result: asking for the others would make
    all of its tasks before the first one is published.
    """
    if type(results) not in (list, tuple):
        results = islice(results, 1)
    return any(isinstance(result, GroupResult) for result in results)


class Part(NamedTuple):
    """A header task's result on its way into a chord, encoded."""

    group_id: str
    task_id: str
    position: int | None
    part: str | bytes
    body: str | bytes


def _is_passing(exc: BaseException | None) -> bool:
    """Return whether the file was locked or the disk full; Kombu wraps what a publish raises."""
    passing = (QueueBusyError, QueueDiskError)
    return exc is not None and (isinstance(exc, passing) or isinstance(exc.__cause__, passing))


class ChordMixin:
    """The part of the backend that counts chords."""

    app: Any
    expires: Any
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    encode_result: Callable[[Any, str], Any]
    exception_to_python: Callable[[Any], Any]
    chord_error_from_stack: Callable[..., Any]
    store_result: Callable[..., Any]
    _seconds: Callable[[Any], float | None]

    #: Whether the broker is the same file.
    is_brokers: bool

    @property
    def store(self) -> Store:
        """The file; the backend knows it."""
        raise NotImplementedError

    def ensure_chords_allowed(self) -> None:
        """Allow them."""

    @property
    def _chord_expires_s(self) -> float | None:
        """How long an unfinished chord is kept; its header may hold tasks that are due late."""
        kept = self._finished_chord_expires_s
        if kept is None or self.app.conf.get("result_chord_expires") is not None:
            return kept
        return max(kept, _UNFINISHED_S)

    @property
    def _finished_chord_expires_s(self) -> float | None:
        chosen = self.app.conf.get("result_chord_expires")
        return self._seconds(self.expires if chosen is None else chosen)

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """Begin to count a chord; called before its header is published."""
        group_id, results = header_result_args[0], header_result_args[1]
        header = None
        if _is_nested(results):
            result = self.app.GroupResult(*header_result_args)
            header = self.encode({"result": result.as_tuple()})
        self.store.chords.begin(group_id, header, self._chord_expires_s)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Record how many parts the body waits for."""
        # the group in which a nested chain ends is given a size as well, and never a part
        kept = self._finished_chord_expires_s
        if self.store.chords.set_size(group_id, chord_size, kept):
            self.finish_chord(group_id)

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Let the body wait for one task more."""
        self.store.chords.add_part(chord_id, self._chord_expires_s)

    # -- parts ---------------------------------------------------------------------------------

    def prepare_part(
        self, request: Any, state: str, result: Any, told: list[Any] | None = None
    ) -> Part | None:
        """Return a task's part of its chord, encoded; None when it is in none.

        Arguments:
            told: the errbacks that have heard of this failure.
        """
        if request is None or not request.chord:
            return None
        group_id, task_id = request.group, request.id
        if not group_id or not task_id:
            return None
        part = [task_id, state, self.encode_result(result, state), *([told] if told else [])]
        body = self.encode(request.chord)
        return Part(group_id, task_id, request.group_index, self.encode(part), body)

    def return_part(self, part: Part | None) -> None:
        """Count a part; the last one has the body published after the transaction's commit."""
        if part is None:
            return
        with self.store.database.joined() as handle:
            if self.store.chords.return_part(*part, self._chord_expires_s):
                handle.after_commit.append(lambda: self.finish_chord(part.group_id))

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count the part of a task whose row is not this backend's to end."""
        self.return_part(self.prepare_part(request, state, result))

    # -- the body ------------------------------------------------------------------------------

    def finish_chord(self, group_id: str) -> None:
        """Publish the body of a chord whose parts are all there, or fail it; once."""
        found = self.store.chords.get(group_id)
        if found is None or found.state != "due":
            return
        callback = maybe_signature(self.decode(found.body), app=self.app)
        try:
            results = self._results_of(group_id, found.header)
        except ChordError as exc:
            self._fail_chord(group_id, callback, exc)
            return
        except Exception as exc:
            logger.exception("Chord %s could not be joined", group_id)
            self._fail_chord(group_id, callback, ChordError(f"Join error: {exc!r}"))
            return
        try:
            self._publish_body(group_id, callback, results)
        except (QueueBusyError, QueueDiskError) as exc:
            logger.warning("The body of chord %s waits for the file: %s", group_id, exc)
        except Exception as exc:
            if _is_passing(exc):  # nothing was written, the mark stands: any worker finds it
                logger.warning("The body of chord %s waits for the file: %s", group_id, exc)
                return
            logger.exception("The body of chord %s could not be published", group_id)
            self._fail_chord(group_id, callback, ChordError(f"Callback error: {exc!r}"))

    def _publish_body(self, group_id: str, callback: Any, results: list[Any]) -> None:
        """Publish the body and take the mark: in one transaction where both are in one file.

        With another broker the body comes first, so that a crash in between publishes it once
        more, under the same task id, rather than never.
        """
        if not self.is_brokers:
            callback.delay(results)
        with self.store.chords.finishing(group_id, self._finished_chord_expires_s) as mine:
            if mine and self.is_brokers:
                callback.delay(results)

    def _results_of(self, group_id: str, header: Any) -> list[Any]:
        if header is not None:
            result = result_from_tuple(self.decode(header)["result"], self.app)
            result.on_ready()
            timeout = self.app.conf.result_chord_join_timeout
            with allow_join_result():
                joined: list[Any] = result.join_native(timeout=timeout, propagate=True)
            return joined
        return [self._value_of(part) for part in self.store.chords.parts(group_id)]

    def _value_of(self, part: Any) -> Any:
        task_id, state, value, *_ = self.decode(part)
        if state in states.EXCEPTION_STATES:
            value = self.exception_to_python(value)
        if state in states.PROPAGATE_STATES:
            error = ChordError(f"Dependency {task_id} raised {value!r}")
            error.__cause__ = value if isinstance(value, Exception) else None
            raise error
        return value

    def _fail_chord(self, group_id: str, callback: Any, error: ChordError) -> None:
        """Fail the body; done before the mark is taken, so that a crash in between repeats it."""
        if callback.id is None and "task_id" not in callback.options:
            callback.options["task_id"] = uuid()
        self._fail_body(callback, error, self._told_in(group_id))
        with self.store.chords.finishing(group_id, self._finished_chord_expires_s):
            pass

    def _told_in(self, group_id: str) -> list[Any]:
        """Return the errbacks that have heard of a failure from a chord within this one."""
        told: list[Any] = []
        for part in self.store.chords.parts(group_id):
            with suppress(Exception):  # a damaged part: it is why the chord fails
                for errbacks in self.decode(part)[3:]:
                    told.extend(errbacks)
        return told

    def _fail_body(self, callback: Any, error: ChordError, told: list[Any]) -> None:
        """Fail a body; whoever waits for it, or for what comes after it, is told.

        Celery fails the body alone: a chord around it, and the body of a body that is a chord
        itself, would wait for ever. ``chord.link_error`` links its errback to all of these bodies:
        those in ``told`` have heard of the failure from a chord within.
        """
        if isinstance(callback, _chain):  # Celery 5.6 puts what follows a chord into its body
            self._fail_chain(callback.tasks, error)
        elif isinstance(callback, group):  # which 5.6 revokes first; who waits would hear of that
            self._fail_chain(callback.tasks, error.__cause__ or error)
        own: Any = callback.options.get("link_error") or []
        own = own if isinstance(own, list) else [own]
        if told:
            own = callback.options["link_error"] = [each for each in own if each not in told]
        told = [*told, *own]
        self.chord_error_from_stack(callback, error)
        for end in _ends_of(callback, self.app):
            if end.options.get("chord"):
                context = Context(end)
                context.update(end.options)
                context.id = end.options.get("task_id")
                context.group = end.options.get("group_id")
                self.return_part(self.prepare_part(context, states.FAILURE, error, told))
        if isinstance(callback, chord) and callback.body is not None:
            body = maybe_signature(callback.body, app=self.app).clone()
            self._fail_body(body, error, told)

    def _fail_chain(
        self,
        chain: Any,
        exc: BaseException,
        traceback: Any = None,
        store_result: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """Propagate an end to the tasks chained after it; to each one of a group at the end."""
        elements = list(_members_of(chain))
        if hasattr(Backend, "_fail_chain"):
            super()._fail_chain(  # type: ignore[misc]
                elements, exc, traceback, store_result=store_result, state=state
            )
            return
        # Celery 5.6 does this inside mark_as_failure
        for element in elements:
            context = Context(element)
            context.update(context.options)
            context.id = context.options.get("task_id")
            context.group = context.options.get("group_id")
            if store_result and state in states.PROPAGATE_STATES and context.id is not None:
                self.store_result(context.id, exc, state, traceback=traceback, request=context)
            if "chord" in context.options:
                self.on_chord_part_return(context, state, exc)
            body = (context.kwargs or {}).get("body")
            if getattr(context, "subtask_type", None) == "chord" and body is not None:
                elements.extend(_members_of([body]))  # a chord's result is its body's

    def current_task_children(self, request: Any = None) -> list[Any] | None:
        """Return the tasks that a task has published, for its result's ``children``."""
        request = request or getattr(get_current_task(), "request", None)
        if request:
            return [result.as_tuple() for result in getattr(request, "children", None) or ()]
        return None

    def revoked_error(self, reason: str) -> TaskRevokedError:
        """Return what a revoked task's caller gets."""
        return TaskRevokedError(reason)
