"""A token cache as a dataset: the folder that `prepare` wrote, tokenized already.

How its files are read is in `cache.token_cache`.
"""

from collections.abc import Sequence
from pathlib import Path

from flame_accel.data.cache.file_format import MANIFEST, TARGETS, UNFINISHED, read_manifest
from flame_accel.data.cache.token_cache import TokenCache
from flame_accel.data.encoded_datasets import IndexedDataset
from flame_accel.data.sources.held_out import HeldOut
from flame_accel.data.sources.options import DatasetOptions
from flame_accel.data.tokens.encoder import Encoder


class TokenCacheFolder:
    """The folder of a token cache; a dataset without splits, and its own record source."""

    splits: Sequence[str | None] = (None,)
    accepts_hf_split_slices = False

    def __init__(self, options: DatasetOptions) -> None:
        options.check_options_not_given("dataset_name", "data_dir", "data_files")
        self.name = options.dataset
        self.folder = Path(options.dataset)

    @staticmethod
    def recognizes(options: DatasetOptions) -> bool:
        """Whether the folder has the manifest of a token cache, or of one that is unfinished."""
        path = Path(options.dataset)
        return (path / MANIFEST).is_file() or (path / UNFINISHED).is_file()

    def open_split(self, split: str | None) -> "TokenCacheFolder":
        """The folder itself, which has no splits: files are opened by `open_encoded`."""
        return self

    def open_encoded(self, encoder: Encoder, held_out: HeldOut | None) -> IndexedDataset:
        """The documents of the cache, once it is known to be made by an equal encoder.

        Raises:
            UserError: the cache is unfinished or damaged, or was made with another tokenizer.
        """
        files = [name for shard in read_manifest(self.folder)["shards"] for name in shard["files"]]
        conversations = any(name.endswith(TARGETS) for name in files)
        cache = TokenCache(
            self.folder,
            tokenizer_identity=encoder.tokenizer_identity(with_chat_template=conversations),
            add_bos=encoder.add_bos,
            held_out=held_out,
        )
        return IndexedDataset(
            cache,
            held_out,
            conversations=conversations,
            storage_description="a token cache",
            num_tokens=cache.num_tokens if held_out is None else None,
        )
