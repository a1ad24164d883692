"""The same work over this transport and its peers, in one session, broker by broker in turn.

``python -m tests.benchmarks --help`` says what can be chosen. Nothing here asserts on time.

Rooms: ``sizes``, ``spaces`` (a place of one's own on a broker), ``servers``, ``brokers``, ``crew``
(processes that begin together), ``messages``, ``measures`` (what a benchmark is and yields),
``app`` and ``workers`` (Celery); then one room per subject; ``suite``, ``rounds``,
``environment``, ``summary``, ``plot``, ``command``, ``table``.
"""
