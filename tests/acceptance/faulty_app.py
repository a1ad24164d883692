"""The app whose results are in the broker's file, on a file system that fails when told to."""

import os

import apsw
import living
from faults import Faults

app = living.app

#: Kept, since SQLite only borrows it; the processes of a pool inherit it.
faults = Faults(switch=os.environ["TEST_FAULTS"])
apsw.set_default_vfs("faulty")
