"""What runs on one node: it launches, feeds, measures and ends sandboxes, and keeps the run logs."""
