"""Whatever loads weights on behalf of critics."""
