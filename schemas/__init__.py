"""The contract: events in, scores out, folds and features between the roles, and where each of them lives.

Nothing here imports anything of ours. What changes here moves other people's data, so every change must stay
backward compatible: new fields are optional, fields are never renamed or retyped, bytes that last begin with
a format version that the next release can still read. ``tests/unit/schemas`` holds that line.
"""
