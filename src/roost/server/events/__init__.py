"""Who hears of what: the `EventBus` seam and its adapters."""
