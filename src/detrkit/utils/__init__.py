"""Files, names, documents, settings and registries: helpers that every package uses."""
