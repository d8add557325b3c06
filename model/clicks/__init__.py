"""Click and purchase: features of states, the head, its log and its fitting."""
