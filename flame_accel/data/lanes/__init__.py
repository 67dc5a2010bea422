"""Which document and which token stands where: orders, lanes, mixtures, packing."""
