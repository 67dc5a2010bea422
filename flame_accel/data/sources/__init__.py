"""What a dataset may be: files, folders, saved tables, streams; as documents of text."""
