"""Files, names and documents: helpers that every package uses."""
