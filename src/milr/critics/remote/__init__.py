"""Whatever speaks HTTP on behalf of critics: chat completions, and the wire format of the critic service."""
