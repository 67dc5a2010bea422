"""How far the writing of a token cache is: share, speed, and the time that it still takes."""

from typing import NamedTuple


class CacheProgress(NamedTuple):
    """How much of a cache is written."""

    documents: int
    """Documents written, by this attempt and earlier ones."""
    total_documents: int
    resumed_documents: int
    """Those of `documents` that an earlier attempt wrote."""
    tokens: int
    """Tokens written by this attempt."""
    elapsed_seconds: float
    """Duration of this attempt so far."""

    @property
    def is_complete(self) -> bool:
        """Whether every document is written."""
        return self.documents == self.total_documents

    @property
    def remaining_seconds(self) -> float:
        """The time left, at the speed of this attempt alone."""
        written = self.documents - self.resumed_documents
        return self.elapsed_seconds / written * (self.total_documents - self.documents)

    def describe(self) -> str:
        """One line: share, documents, tokens, speed of this attempt, and the time left."""
        minutes, seconds = divmod(round(self.remaining_seconds), 60)
        return (
            f"{self.documents / self.total_documents:6.1%}  {self.documents:,} documents  "
            f"{self.tokens:,} tokens  {self.tokens / self.elapsed_seconds:,.0f} tok/s  "
            f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"
        )
