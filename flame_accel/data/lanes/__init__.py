"""From documents to rows: the order in which lanes read, mixtures of sources, packing."""
