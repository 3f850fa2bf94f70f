"""The types that travel between the rooms: batches, targets, outputs, results, class lists."""
