"""The token cache: tokenised documents in memory-mapped files.

`layout` says what lies in the folder, `encoding` turns ranges of records into the bytes of it, in
parallel, `writer` writes them, `reader` gives documents back.
"""
