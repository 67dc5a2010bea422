"""The token cache: tokenized documents in memory-mapped files.

`file_format` defines the files of the folder; `chunk_encoder` encodes ranges of records, in
parallel; `shard_writer` and `cache_writer` write them; `token_cache` reads documents back.
"""
