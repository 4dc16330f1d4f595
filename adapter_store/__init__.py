"""Shared ground of server and trainer_worker: what an adapter version is, how it is kept, and the job that leads to it."""
