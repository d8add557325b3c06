"""What runs: the roles worker, profiles and alerts, their stages, the command line and the demo."""
