"""Producers, workers, a beat and a reader on one file, killed, ended and stopped at random.

``python -m tests.acceptance.kill`` runs them, prints a summary and ends with 1 if a promise of the
README did not hold. The rooms, from the ground up:

- ``ledger``: what a process notes, whole lines that outlive it.
- ``app``: the Celery tasks; ``roles``: what the plain processes do.
- ``scenery``: starts and restarts the processes, sends the signals.
- ``evidence``: reads file, ledgers and logs; ``verdict``: compares them.
- ``play``: the course of a run, and its summary.
"""
