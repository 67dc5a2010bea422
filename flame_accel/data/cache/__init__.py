"""The token cache: tokenised documents in memory-mapped files."""
