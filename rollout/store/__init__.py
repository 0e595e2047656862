"""Finished trajectories on disk. `rollout.store.read(run_dir)` is the way in for people."""

from rollout.store.reading import Stored as Stored
from rollout.store.reading import read as read
