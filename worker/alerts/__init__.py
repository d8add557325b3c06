"""The alerts role: when negative opinion on a subject surges; and the same detector over a history."""
