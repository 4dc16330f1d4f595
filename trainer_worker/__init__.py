"""The worker: claims jobs, learns increments, measures every task, gates and publishes versions."""
