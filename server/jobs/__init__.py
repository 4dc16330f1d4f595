"""Jobs: taken on only when they cannot be lost, listed, watched and cancelled."""
