"""Real processes on one file, killed, stopped and loaded."""
