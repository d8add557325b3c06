"""A simulated shop through all roles, on an embedded broker and Redis."""
