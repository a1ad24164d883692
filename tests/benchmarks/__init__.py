"""The same work over this transport and its peers, in one session, broker by broker in turn.

``python -m tests.benchmarks --help`` says what can be chosen. Nothing here asserts on time.

Rooms: ``sizes``, ``spaces`` (brokers, and a place of one's own on each), ``crew`` (processes that
begin together), ``messages``, ``measures`` (what a benchmark is and what it yields); then one room
per subject; ``suite``, ``rounds``, ``environment``, ``summary``, ``plot``, ``command``, ``table``.
"""
