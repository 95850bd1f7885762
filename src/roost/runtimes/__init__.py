"""How a sandbox is made: the `Runtime` seam; its adapters are found by the entry-point group `roost.runtimes`."""
