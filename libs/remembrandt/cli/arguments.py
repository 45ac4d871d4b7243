"""Arguments that several commands read alike."""

from remembrandt.errors import ConfigError


def parse_where(texts: list[str]) -> dict[str, tuple[str, ...]]:
    """`column=value[,value…]` arguments as a filter."""
    where = {}
    for text in texts:
        column, separator, values = text.partition("=")
        if not separator or not column or not values:
            raise ConfigError(f"--where {text} must look like column=value or column=value,value")
        where[column] = tuple(values.split(","))
    return where
