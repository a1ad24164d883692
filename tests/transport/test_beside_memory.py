"""The same random sequences through Kombu's memory transport: where both keep AMQP, they agree."""

from __future__ import annotations

import itertools
import tempfile
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kombu import VERSION, Connection, Exchange, Queue
from kombu.transport.memory import Channel, Transport

QUEUES = ("one", "two", "three")
KEYS = ("a", "a.b", "a.b.c", "b", "b.b")
EXCHANGES = {
    kind: Exchange(f"ex.{kind}", type=kind, durable=True) for kind in ("direct", "topic", "fanout")
}
#: Kombu's own "*" matched several words before 5.7; AMQP's, and ours, exactly one.
STARRED = ["*", "*.*", "*.b", "a.*.c"] if VERSION >= (5, 7) else []
PATTERNS = {
    "direct": st.sampled_from(KEYS),
    # Kombu's own "#" beside other words wants at least one; AMQP's, and ours, also matches none.
    "topic": st.sampled_from(["#", "b", *STARRED]),
    "fanout": st.just(""),
}
_numbers = itertools.count()


class Side:
    """One transport: a channel, and the messages it has got and not acknowledged."""

    def __init__(self, url: str) -> None:
        self.connection = Connection(url)
        self.channel = self.connection.channel()
        self.held: dict[str, list[Any]] = {name: [] for name in QUEUES}
        for exchange in EXCHANGES.values():
            exchange(self.channel).declare()
        for name in QUEUES:
            Queue(name, channel=self.channel).declare()

    def get(self, queue: str) -> Any:
        """What the next message of a queue says, and how it came there."""
        message = self.channel.basic_get(queue)
        if message is None:
            return None
        self.held[queue].append(message)
        info = message.delivery_info
        return (
            message.payload,
            message.headers,
            message.content_type,
            message.properties["priority"],
            info["exchange"],
            info["routing_key"],
        )

    def close(self) -> None:
        """Leave nothing, neither here nor in the process's memory."""
        self.connection.release()
        Channel.queues.clear()  # the memory transport's; what was held has come back
        Transport.global_state.clear()


class BesideMemory(RuleBasedStateMachine):
    """Every answer of both is compared."""

    @initialize()
    def begin(self) -> None:
        """Two empty brokers."""
        self.folder = tempfile.TemporaryDirectory()
        self.sides = [Side(f"sqlite:///{self.folder.name}/q.db"), Side("memory://")]

    def teardown(self) -> None:
        """Forget both."""
        for side in getattr(self, "sides", ()):
            side.close()
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @rule(data=st.data(), kind=st.sampled_from(sorted(EXCHANGES)), queue=st.sampled_from(QUEUES))
    def bind(self, data: Any, kind: str, queue: str) -> None:
        """Once more changes nothing."""
        key = data.draw(PATTERNS[kind])
        for side in self.sides:
            side.channel.queue_bind(queue, EXCHANGES[kind].name, key)

    @rule(
        kind=st.sampled_from(["", *sorted(EXCHANGES)]),
        key=st.sampled_from([*KEYS, *QUEUES]),
        headers=st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3)),
    )
    def publish(self, kind: str, key: str, headers: dict[str, Any]) -> None:
        """To whatever is bound; the default exchange knows queues by their names.

        All with one priority: the memory transport knows none.
        """
        if not kind and key not in QUEUES:
            return
        number = next(_numbers)
        for side in self.sides:
            side.connection.Producer(side.channel).publish(
                {"number": number},
                exchange=EXCHANGES[kind].name if kind else "",
                routing_key=key,
                headers=headers,
                priority=0,
                delivery_mode=2,
            )

    @rule(queue=st.sampled_from(QUEUES))
    def get(self, queue: str) -> None:
        """The oldest message, or none."""
        ours, memorys = (side.get(queue) for side in self.sides)
        assert ours == memorys

    @precondition(lambda self: any(self.sides[0].held.values()))
    @rule(data=st.data(), rejects=st.booleans())
    def end(self, data: Any, rejects: bool) -> None:
        """An acknowledged or rejected message is gone."""
        queue = data.draw(st.sampled_from([q for q in QUEUES if self.sides[0].held[q]]))
        place = data.draw(st.integers(0, len(self.sides[0].held[queue]) - 1))
        for side in self.sides:
            message = side.held[queue].pop(place)
            if rejects:
                message.reject()
            else:
                message.ack()

    @rule(queue=st.sampled_from(QUEUES))
    def requeue(self, queue: str) -> None:
        """A message put back into an empty queue is its next.

        Kombu's own puts it last elsewhere, and what came through an exchange through that again.
        """
        held = self.sides[0].held[queue]
        if not held or held[-1].delivery_info["exchange"]:
            return
        if self.sides[0].channel._size(queue) == 0:
            for side in self.sides:
                side.held[queue].pop().requeue()

    @rule(queue=st.sampled_from(QUEUES))
    def purge(self, queue: str) -> None:
        """Both tell how many messages there were."""
        ours, memorys = (side.channel.queue_purge(queue) for side in self.sides)
        assert ours == memorys

    @invariant()
    def sizes_agree(self) -> None:
        """Of what waits in each queue."""
        if hasattr(self, "sides"):
            for queue in QUEUES:
                ours, memorys = (
                    side.channel.queue_declare(queue, passive=True).message_count
                    for side in self.sides
                )
                assert ours == memorys


BesideMemory.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestBesideMemory = BesideMemory.TestCase
