"""What a run would see, in figures: lengths of documents, the way of tokens into rows, packing."""
