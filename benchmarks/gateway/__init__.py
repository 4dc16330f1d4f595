"""What HTTP and routing cost beside the engine alone."""
