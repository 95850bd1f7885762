"""Where nodes come from: the `Engine` seam; its adapters are found by the entry-point group `roost.engines`."""
