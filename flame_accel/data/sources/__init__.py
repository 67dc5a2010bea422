"""From options to records: every kind of dataset, located, opened and read."""
