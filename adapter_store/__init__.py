"""Hold what both siblings share: what an adapter version is, how it is kept, and the job that leads to it."""
