"""Redis: states written under a fence, and read within a bound of time."""
