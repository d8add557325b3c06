"""The worker role: events in, scores out, one encoder pass for all of them."""
