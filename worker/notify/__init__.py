"""The notify role: alerts to the people who asked for them."""
