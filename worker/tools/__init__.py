"""What the commands do: look, plan, replay, mend, erase."""
