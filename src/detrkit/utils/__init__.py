"""Files, names and documents: what every room needs and none owns."""
