"""Types shared by all packages: batches, targets, outputs, results, class lists."""
