"""Numbers with their nouns in printed lines."""


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return ``count`` with its noun, "1 shard" or "2,000 shards"; ``plural`` is that of an irregular noun."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
